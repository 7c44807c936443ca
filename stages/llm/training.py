"""Fine-tuning with TRL: the trainer that stops on a loss that is not finite, and the checks of what it is about to train on."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from stages.llm.loading import pick_dtype
from stages.llm.prompts import prompt_completion_ids
from stages.params import SftParams
from stages.run import InputError

IGNORED = -100  # the label that PyTorch's cross entropy leaves out


class Trainer(SFTTrainer):  # type: ignore[misc]  # TRL ships no types
    """An SFTTrainer that ends at the first loss that is not finite, naming the step and the rows."""

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass of one batch. Raises InputError where its loss is not finite."""
        ids = inputs["input_ids"].tolist()  # before the model may change the mapping
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            rows = ", ".join(find_rows(self.train_dataset, ids))
            raise InputError(f"sft: the loss is {loss.item()} at step {self.state.global_step + 1}, rows {rows}")
        return loss


def find_rows(dataset: Dataset, batch: Sequence[Sequence[int]]) -> list[str]:
    """The `id` of the dataset's row behind each padded row of input ids."""
    known = {tuple(row["input_ids"]): row["id"] for row in dataset}
    longest = max(map(len, known))
    return [
        next((known[key] for end in range(min(len(ids), longest), 0, -1) if (key := tuple(ids[:end])) in known), "unknown")
        for ids in batch
    ]


def to_dataset(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Formatted rows as TRL's conversational prompt-completion rows."""
    return Dataset.from_list(
        [
            {"id": row["id"], "prompt": row["messages"], "completion": [{"role": "assistant", "content": row["positive"]}]}
            for row in rows
        ]
    )


def check_dataset(dataset: Dataset, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raise InputError where what TRL made of the rows is not what they ask: see each message.

    TRL cuts overlong rows at the end, so the answer goes first, and drops rows that are left without labels.
    """
    if len(dataset) != len(rows):
        raise InputError(f"sft: {len(rows)} rows went in, {len(dataset)} came out of tokenization")
    for made, row in zip(dataset, rows, strict=True):
        prompt, completion = prompt_completion_ids(tokenizer, row["messages"], row["positive"])
        ids, labels = made["input_ids"], made["labels"]
        end = len(prompt) + len(completion)
        if ids[: len(prompt)] != prompt:
            raise InputError(f"sft: row {row['id']}: the trained prompt is not the prompt that is asked")
        if ids[len(prompt) : end] != completion:
            raise InputError(f"sft: row {row['id']}: the answer is cut off or changed before training")
        if any(label != IGNORED for label in labels[: len(prompt)]) or labels[len(prompt) : end] != completion:
            raise InputError(f"sft: row {row['id']}: the loss is not on the answer and its end-of-turn token alone")
        if end > max_length:
            raise InputError(f"sft: row {row['id']}: {end} tokens, format.max_length is {max_length}")


def count_steps(rows: int, params: SftParams) -> int:
    """How many optimizer steps training on `rows` rows takes. Raises InputError where its warm-up would never end."""
    steps = math.ceil(params.num_train_epochs * math.ceil(rows / params.effective_batch_size))
    if params.warmup_steps >= max(1, steps):
        raise InputError(
            f"params.yaml: sft.warmup_steps: {params.warmup_steps}, but {rows} train rows make only {steps} optimizer steps in "
            f"{params.num_train_epochs:g} epochs of {params.effective_batch_size} rows a step; lower it, to 0 if need be"
        )
    return steps


def per_device_batch_size(effective: int, device: torch.device) -> int:
    """Rows that go through the device at once: PER_DEVICE_TRAIN_BATCH_SIZE in the environment, else all on a CPU and 1 on CUDA.

    It depends on the machine's memory; the effective batch size, which it must divide, is the parameter.
    """
    default = effective if device.type == "cpu" else 1
    value = os.environ.get("PER_DEVICE_TRAIN_BATCH_SIZE", str(default))
    if not value.isdigit() or int(value) == 0 or effective % int(value):
        raise InputError(
            f"PER_DEVICE_TRAIN_BATCH_SIZE in the environment: {value!r} does not divide sft.effective_batch_size, {effective}"
        )
    return int(value)


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    params: SftParams,
    max_length: int,
    gradient_checkpointing: bool,
    output_dir: Path,
) -> Trainer:
    """A trainer on a loaded base model, with a new LoRA adapter in float32 and every row checked.

    The adapter with the least validation loss is the one it ends with. Checkpoints go to `output_dir`, which nothing keeps.
    """
    disable_progress_bars()  # five bars of half a second each
    device, dtype = model.device, pick_dtype(model.device)
    per_device = per_device_batch_size(params.effective_batch_size, device)
    args = SFTConfig(
        output_dir=str(output_dir),
        seed=params.seed,
        num_train_epochs=params.num_train_epochs,
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=per_device,
        gradient_accumulation_steps=params.effective_batch_size // per_device,
        learning_rate=params.learning_rate,
        lr_scheduler_type=params.lr_scheduler_type,
        warmup_steps=params.warmup_steps,
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        # two tokens to spare: after the end of turn, a chat template may close with a line end
        max_length=max_length + 2,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=device.type == "cpu",
        gradient_checkpointing=gradient_checkpointing,
        eval_strategy="steps",
        eval_steps=params.eval_steps,
        save_strategy="steps",
        save_steps=params.eval_steps,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=max(1, min(params.eval_steps // 4, count_steps(len(train), params) // 10)),
        report_to="none",
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=None,
    )
    # The optimizer is created by train(), after the cast below.
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=to_dataset(train),
        eval_dataset=to_dataset(validation),
        processing_class=tokenizer,
        # given here, not applied before: only then TRL seeds before the adapter is initialized
        peft_config=LoraConfig(task_type="CAUSAL_LM", **params.lora.model_dump()),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=params.early_stopping_patience)],
    )
    check_dataset(trainer.train_dataset, train, tokenizer, max_length)
    check_dataset(trainer.eval_dataset, validation, tokenizer, max_length)
    # TRL casts the adapter of a quantized model to bfloat16; in that, small updates are lost, and fp16's scaler fails.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer
