"""Fine-tuning with TRL: the trainer that params.yaml describes, and what is saved of its run."""

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import disable_progress_bars
from peft import LoraConfig
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig

from library.errors import InputError
from library.files import hash_adapter, hash_file, read_json, write_json
from library.llm.architectures import find_unadaptable
from library.llm.devices import pick_device, pick_dtype
from library.llm.patches import (
    keep_adapter_in_float32,
    mark_as_sharded,
    read_adapters_on_cpu,
    use_one_card,
)
from library.llm.processes import processes
from library.llm.sharding import shard_layers
from library.llm.trainer import CheckedTrainer
from library.llm.trainer_callbacks import MarkComplete, Progress
from library.llm.training_rows import check_dataset, count_steps, to_dataset
from library.params import DpoParams, SftLoraParams, SftParams
from library.paths import ADAPTER_RECORD, MANIFEST_PATH, formatted_path
from library.records import FormattedRow


@dataclass(frozen=True)
class TrainingTask:
    """What to train on, and how; the batch size is chosen separately.

    Checkpoints go to `output_dir`. With `padding_free` the rows of a batch are concatenated; the
    attention must keep them apart without a mask.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Sequence[FormattedRow]
    validation: Sequence[FormattedRow]
    params: SftParams
    max_length: int
    gradient_checkpointing: bool
    output_dir: Path
    padding_free: bool = False


def logging_steps(eval_steps: int, steps: int) -> int:
    """How often to log the training loss: about ten times in all, and at each evaluation.

    It divides `eval_steps`, so that a resumed run logs the same means as one that was never
    stopped.
    """
    wanted = max(1, min(eval_steps // 4, steps // 10))
    return next(every for every in range(wanted, 0, -1) if eval_steps % every == 0)


def shared_arguments(
    output_dir: Path, params: SftParams | DpoParams, per_device: int, device: torch.device
) -> dict[str, Any]:
    """The arguments that SFT and DPO share, with batch size `per_device` in each process.

    Gradient accumulation makes up the effective batch size.
    """
    dtype = pick_dtype(device)
    return {
        "output_dir": str(output_dir),
        "seed": params.seed,
        "num_train_epochs": params.num_train_epochs,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": (
            params.effective_batch_size // (per_device * processes().num_processes)
        ),
        "learning_rate": params.learning_rate,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": device.type == "cpu",
        "ddp_find_unused_parameters": False,
        "save_strategy": "steps",
        "restore_callback_states_from_checkpoint": True,
        "report_to": "none",
        "dataloader_pin_memory": device.type == "cuda",
        "disable_tqdm": True,  # Progress shows its own bar
    }


def training_arguments(task: TrainingTask, per_device: int, device: torch.device) -> SFTConfig:
    """TRL's configuration of a task, with batch size `per_device` in each process.

    Training ends with the adapter that has the lowest validation loss.
    """
    params = task.params
    steps = count_steps(len(task.train), params)
    args = SFTConfig(
        **shared_arguments(task.output_dir, params, per_device, device),
        lr_scheduler_type=params.lr_scheduler_type,
        warmup_steps=params.warmup_steps,
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        max_length=None,  # TRL would truncate; check_dataset enforces format.max_length
        gradient_checkpointing=task.gradient_checkpointing,
        padding_free=task.padding_free,
        eval_strategy="steps",
        eval_steps=params.eval_steps,
        save_steps=params.eval_steps,
        # the best, the last complete one, and the one being written
        save_total_limit=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=logging_steps(params.eval_steps, steps),
    )
    use_one_card(args)
    return args


def lora_config(model: PreTrainedModel, params: SftLoraParams) -> LoraConfig:
    """The LoRA configuration of params.yaml, for those layers of the model that can be adapted."""
    everywhere = params.target_modules == "all-linear"
    excluded = find_unadaptable(model) if everywhere else []
    return LoraConfig(
        task_type="CAUSAL_LM", exclude_modules=excluded or None, **params.model_dump()
    )


def build_trainer(model: PreTrainedModel, task: TrainingTask, per_device: int) -> CheckedTrainer:
    """Build a trainer on a base model, with a new float32 LoRA adapter and every row checked.

    Each process takes batches of `per_device` rows and accumulates them to the effective batch
    size.
    """
    disable_progress_bars()  # five bars of half a second each
    device = pick_device()
    patience = task.params.early_stopping_patience
    trainer = CheckedTrainer(
        model=model,
        args=training_arguments(task, per_device, device),
        train_dataset=to_dataset(task.train, task.tokenizer),
        eval_dataset=to_dataset(task.validation, task.tokenizer),
        processing_class=task.tokenizer,
        # passed here, because only then TRL sets the seed before the adapter is initialized
        peft_config=lora_config(model, task.params.lora),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=patience), MarkComplete()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress)
    check_dataset(trainer.train_dataset, task.train, task.tokenizer, task.max_length)
    check_dataset(trainer.eval_dataset, task.validation, task.tokenizer, task.max_length)
    trainer.add_blank(task.tokenizer.pad_token_id, task.params.effective_batch_size)
    prepare_adapters(trainer, device)
    if task.params.lora.use_dora:
        check_magnitudes(trainer.model)
    if task.params.lora.starts_from_weights:
        keep_initial_adapter(trainer.model, task.output_dir / "initial")
    return trainer


def check_magnitudes(model: torch.nn.Module) -> None:
    """Raise InputError if a layer has a row of zeros, because DoRA would divide by 0."""
    for name, value in model.named_parameters():
        if "lora_magnitude_vector" in name and (value == 0).any():
            layer = name.partition(".lora_magnitude_vector")[0].removeprefix("base_model.model.")
            raise InputError(
                f"params.yaml: sft.lora.use_dora: {layer} has rows of zeros, by whose length DoRA "
                "divides; name other layers in sft.lora.target_modules, or set this to false"
            )


def keep_initial_adapter(model: Any, folder: Path) -> None:
    """Save the initial adapter. `save_adapter` needs it if the base's weights were changed to make
    it.
    """
    if processes().is_main_process:
        model.save_pretrained(folder)
    model.initial_adapter_dir = folder


def prepare_adapters(trainer: Any, device: torch.device) -> None:
    """Prepare a new trainer: train in float32, read adapters through the CPU, and shard the model's
    layers if FSDP asks for it.
    """
    keep_adapter_in_float32(trainer.model)
    read_adapters_on_cpu(trainer.model)
    if shard_layers(trainer.model, device):
        mark_as_sharded(trainer)


def history_csv(
    log_history: Iterable[Mapping[str, Any]], measures: Sequence[str] = ("loss", "eval_loss")
) -> str:
    """The trainer's log as CSV: step, epoch, losses or other measures, learning rate, gradient
    norm.

    Times are left out, so that the file is the same in every run.
    """
    columns = ["step", "epoch", *measures, "learning_rate", "grad_norm"]
    entries = pd.DataFrame(list(log_history)).reindex(columns=columns)
    merged = entries.groupby("step", as_index=False).first()
    return str(merged.dropna(subset=list(measures), how="all").to_csv(index=False))


def save_adapter(model: Any, adapter_dir: Path, started_from: Path | None = None) -> None:
    """Save the adapter, with the manifest of its base model and training data.

    The same adapter gives the same bytes: module names are sorted, because PEFT's sets have another
    order in each process, and the base's local folder is replaced by its name. An adapter that was
    taken out of the base's weights is saved as LoRA of twice its rank, for the published base.
    `started_from` is the adapter that training continued from.
    """
    shutil.rmtree(adapter_dir, ignore_errors=True)
    adapter_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=adapter_dir.parent) as folder:
        complete = Path(folder) / "adapter"
        model.save_pretrained(
            complete,
            selected_adapters=["default"],
            path_initial_model_for_weight_conversion=getattr(model, "initial_adapter_dir", None),
        )
        (complete / "README.md").unlink(missing_ok=True)
        manifest = read_json(MANIFEST_PATH)
        source = manifest["source"]
        config = read_json(complete / "adapter_config.json")
        for name in ("target_modules", "exclude_modules"):
            config[name] = sorted(config[name]) if config[name] else config[name]
        config["base_model_name_or_path"] = source.get("id", source.get("path"))
        write_json(complete / "adapter_config.json", config)
        write_json(complete / "base.json", manifest)
        record: dict[str, Any] = {
            "adapter": hash_adapter(complete),
            "rows": {split: hash_file(formatted_path(split)) for split in ("train", "validation")},
        }
        if started_from is not None:
            record["started_from"] = hash_adapter(started_from)
        write_json(complete / ADAPTER_RECORD, record)
        complete.replace(adapter_dir)
