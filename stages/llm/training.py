"""Fine-tuning with TRL: the trainer, the checks of what it is about to train on, and one step as a proof that it fits."""

import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from peft import LoraConfig
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer
from trl.kernels import ChunkedLogProbFunction, chunked_logprob

from stages.llm.loading import pick_device, pick_dtype
from stages.llm.memory import PLAIN_HEAD_ROWS, measure_peak, resident_bytes
from stages.llm.processes import from_all, processes
from stages.llm.prompts import prompt_completion_ids
from stages.llm.sharding import find_sharding, shard_layers, takes_same_steps
from stages.params import SftParams
from stages.run import InputError

log = logging.getLogger(__name__)

IGNORED = -100  # the label that PyTorch's cross entropy leaves out
BLANK = "blank"  # the id of the row without a label
COMPLETE = "complete"  # the file that marks a whole checkpoint


class Trainer(SFTTrainer):  # type: ignore[misc]  # TRL ships no types
    """An SFTTrainer that sees each row once an epoch, and ends at a loss that is not finite, naming the step and the rows."""

    train_dataset: Dataset

    def add_blank(self, pad_token_id: int, effective_batch_size: int) -> None:
        """Append the row without a label that Order fills the last step of an epoch with."""
        rows: Dataset = self.train_dataset.select_columns(["id", "input_ids", "labels"])
        blank = {"id": BLANK, "input_ids": [pad_token_id], "labels": [IGNORED]}
        self.order = Order(len(rows), self.args.seed, effective_batch_size)
        self.add_callback(NextOrder(self.order))
        self.train_dataset = concatenate_datasets([rows, Dataset.from_list([blank], features=rows.features)])

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """Leave a model where it is that is sharded before it fits."""
        if find_sharding() is None:
            super()._move_model_to_device(model, device)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> "Order":
        return self.order

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass of one batch. Raises InputError where its loss is not finite."""
        ids = split_rows(inputs)  # before the model may change the mapping
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            rows = ", ".join(row for row in find_rows(self.train_dataset, ids) if row != BLANK)
            raise InputError(f"sft: the loss is {loss.item()} at step {self.state.global_step + 1}, rows {rows}")
        return loss

    def prove_step(self) -> int:
        """The most bytes in tensors during one whole optimizer step on the longest train rows, of which nothing remains.

        It is a step in the midst of training: Adam's moments are there, and where several batches make a step also the gradients
        of those before. Raises InputError where the loss of these rows is not finite, torch.OutOfMemoryError where the step does
        not fit.
        """
        if self.args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs)
        *rows, blank = self.train_dataset
        by_length = sorted(rows, key=lambda row: -len(row["input_ids"]))[: self.args.per_device_train_batch_size]
        blanks = [blank] * (self.args.per_device_train_batch_size - len(by_length))
        inputs = self._prepare_inputs(self.data_collator([*by_length, *blanks]))
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        before = [parameter.detach().to("cpu", copy=True) for parameter in trainable]
        resident = 0 if self.model.device.type == "cuda" else resident_bytes(self.model)

        def step() -> None:
            self.model.train()
            optimizer = torch.optim.AdamW(trainable, lr=self.args.learning_rate)
            for parameter in trainable:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            if self.args.gradient_accumulation_steps == 1:
                optimizer.zero_grad()
            with (
                torch.random.fork_rng([self.model.device] if self.model.device.type == "cuda" else []),
                self.accelerator.autocast(),
            ):
                loss = self.model(**inputs, use_cache=False, fused_lm_head=True).loss
            if not torch.isfinite(loss):
                raise InputError(
                    f"sft: the loss of the longest rows, {', '.join(row['id'] for row in by_length)}, is {loss.item()}"
                )
            loss.backward()
            optimizer.step()

        try:
            return resident + measure_peak(self.model.device, step)
        finally:
            for parameter, value in zip(trainable, before, strict=True):
                parameter.grad = None
                parameter.data.copy_(value)


def split_rows(inputs: Mapping[str, torch.Tensor]) -> list[list[int]]:
    """The input ids of a batch row by row; a batch without padding is one row in which positions begin anew."""
    if "attention_mask" in inputs:
        return cast(list[list[int]], inputs["input_ids"].tolist())
    starts = (inputs["position_ids"][0] == 0).nonzero()[1:, 0].tolist()
    return [part.tolist() for part in inputs["input_ids"][0].tensor_split(starts)]


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


class Order(Sampler[int]):
    """Every row once an epoch, in an order drawn from seed and epoch, then blanks until the last optimizer step is full.

    A blank is the dataset's last row, without a label. So no row is lost or seen twice, however many rows a process takes at a time
    and however many processes there are, and all of them make the same steps of the same rows.
    """

    def __init__(self, rows: int, seed: int, effective_batch_size: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0
        self.blanks = -rows % effective_batch_size

    def __len__(self) -> int:
        return self.rows + self.blanks

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.randperm(self.rows, generator=generator).tolist()
        yield from [self.rows] * self.blanks


class NextOrder(TrainerCallback):  # type: ignore[misc]  # transformers ships types that mypy is told to skip
    """Tells the sampler which epoch begins."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the order of the epoch that begins, or that a resumed run is in."""
        self.order.epoch = int(state.epoch or 0)


class Progress(ProgressCallback):  # type: ignore[misc]
    """One bar, and a line for each evaluation."""

    loss = float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the bar, which need not move at each step."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.mininterval = 2

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show no bar for an evaluation."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Say what was logged last, once there is a validation loss beside it."""
        self.loss = logs.get("loss", self.loss)
        if "eval_loss" in logs and self.training_bar is not None:
            self.training_bar.write(
                f"step {state.global_step} of {state.max_steps}: loss {self.loss:.4f}, validation loss {logs['eval_loss']:.4f}"
            )


class MarkComplete(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint once all of it is written: a kill can leave half of one."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the mark into the checkpoint that was just written, by all processes."""
        processes().wait_for_everyone()
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def find_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint in a folder that was written whole; what was not is removed."""
    for path in folder.glob("checkpoint-*"):
        if not (path / COMPLETE).exists():
            shutil.rmtree(path, ignore_errors=True)
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), default=None)


def find_triton(device: torch.device) -> bool:
    """Whether TRL's fused head runs as Triton's kernels in all processes, which takes Triton and a C compiler.

    Where it does not on CUDA, plain PyTorch computes the head instead, and in smaller tiles, of which it makes several copies.
    """
    if device.type != "cuda":
        return False
    works = chunked_logprob._use_triton(device)
    try:
        hidden = torch.zeros(2, 16, device=device, dtype=torch.float16, requires_grad=True)
        targets = torch.zeros(2, device=device, dtype=torch.long)
        ChunkedLogProbFunction.apply(hidden, torch.zeros_like(hidden), None, targets, 1.0, 2)[0].sum().backward()
    except Exception as error:  # noqa: BLE001 - of whatever kind: it is Triton's, its compiler's or the driver's
        log.warning("Triton's kernels do not run here: %s", str(error).strip().partition("\n")[0])
        works = False
    if not works:
        log.warning(
            "the loss is computed by plain PyTorch, more slowly; for Triton's kernels install a C compiler and Python's headers"
        )
        chunked_logprob._TRITON_AVAILABLE = False
        chunked_logprob.TOKEN_CHUNK_SIZE = PLAIN_HEAD_ROWS
    return all(from_all([works]))


def logging_steps(eval_steps: int, steps: int) -> int:
    """How often the training loss is logged: about ten times in all, and once at each evaluation.

    It divides `eval_steps`: a run that goes on from a checkpoint then logs the same means as one that was never stopped.
    """
    wanted = max(1, min(eval_steps // 4, steps // 10))
    return next(every for every in range(wanted, 0, -1) if eval_steps % every == 0)


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    params: SftParams,
    max_length: int,
    gradient_checkpointing: bool,
    per_device: int,
    output_dir: Path,
    padding_free: bool = False,
) -> Trainer:
    """A trainer on a loaded base model, with a new LoRA adapter in float32 and every row checked.

    It takes `per_device` rows at a time in each process, as many times as make the effective batch size; one after the other with
    `padding_free`, which is for attention that needs no mask to keep them apart. The adapter with the
    least validation loss is the one it ends with. Checkpoints go to `output_dir`.
    """
    disable_progress_bars()  # five bars of half a second each
    device = pick_device()
    dtype = pick_dtype(device)
    at_once = per_device * processes().num_processes
    steps = count_steps(len(train), params)
    args = SFTConfig(
        output_dir=str(output_dir),
        seed=params.seed,
        num_train_epochs=params.num_train_epochs,
        per_device_train_batch_size=per_device,
        # the mean over rows: in larger batches, the loss that chooses the adapter would depend on which rows share one
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=params.effective_batch_size // at_once,
        learning_rate=params.learning_rate,
        lr_scheduler_type=params.lr_scheduler_type,
        warmup_steps=params.warmup_steps,
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        # Two tokens to spare: after the end of turn, a chat template may close with a line end. Without padding TRL cuts nothing,
        # and wants no number; check_dataset holds the rows to it.
        max_length=None if padding_free else max_length + 2,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=device.type == "cpu",
        gradient_checkpointing=gradient_checkpointing,
        padding_free=padding_free,
        ddp_find_unused_parameters=False,
        eval_strategy="steps",
        eval_steps=params.eval_steps,
        save_strategy="steps",
        save_steps=params.eval_steps,
        save_total_limit=3,  # the best one, the last that is marked complete, and the one that is being written
        restore_callback_states_from_checkpoint=True,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=logging_steps(params.eval_steps, steps),
        report_to="none",
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,  # Progress has its own
    )
    args._n_gpu = min(args.n_gpu, 1)  # one process, one card; with more, TRL refuses. LAUNCHER is for those
    # The optimizer is created by train(), after the cast below.
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=to_dataset(train),
        eval_dataset=to_dataset(validation),
        processing_class=tokenizer,
        # given here, not applied before: only then TRL seeds before the adapter is initialized
        peft_config=LoraConfig(task_type="CAUSAL_LM", **params.lora.model_dump()),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=params.early_stopping_patience), MarkComplete()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress)
    check_dataset(trainer.train_dataset, train, tokenizer, max_length)
    check_dataset(trainer.eval_dataset, validation, tokenizer, max_length)
    trainer.add_blank(tokenizer.pad_token_id, params.effective_batch_size)
    # TRL casts the adapter of a quantized model to bfloat16; in that, small updates are lost, and fp16's scaler fails.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    # by way of the CPU: PEFT would read the best adapter to the first card, whichever is this process's own
    trainer.model.load_adapter = partial(trainer.model.load_adapter, torch_device="cpu")
    # as of a model that transformers has sharded: no DDP, which refuses it, and gradients of adapters are averaged all the same
    trainer.is_distributed_loading_by_transformers = shard_layers(trainer.model, device)
    return trainer


@torch.no_grad()
def prove_answer(model: PreTrainedModel, length: int) -> int:
    """The most bytes in tensors while an answer of two tokens ends at `length`: keys and values are then as many as ever.

    Raises torch.OutOfMemoryError where it does not fit.
    """
    model.eval()
    same_steps = takes_same_steps()
    resident = 0 if model.device.type == "cuda" else resident_bytes(model)
    ids = torch.full((1, length - 2), model.generation_config.eos_token_id[0], device=model.device)

    def answer() -> None:
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, min_new_tokens=2, synced_gpus=same_steps
        )

    return resident + measure_peak(model.device, answer)
