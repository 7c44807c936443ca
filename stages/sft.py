"""Fine-tune a LoRA adapter on the train rows, watched on the validation rows.

Reads data/formatted/train.jsonl, data/formatted/validation.jsonl and artifacts/base/. Writes artifacts/adapter/,
reports/sft_history.csv and reports/sft_memory.json: what was predicted and what one step on the longest rows took.
"""

import gc
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stages.corpus.rows import read_jsonl, write_json, write_text
from stages.llm.checkpoints import checkpoint_dir
from stages.llm.loading import describe_device, load_model, pick_attention, pick_device
from stages.llm.memory import count_ooms, gib, ran_out_of_memory
from stages.llm.preflight import Longest, Plan, make_setting, plan_training, shorten
from stages.llm.processes import start_processes
from stages.llm.prompts import BASE_DIR, load_tokenizer
from stages.llm.training import Trainer, build_trainer, count_steps, find_checkpoint, find_triton, prove_answer
from stages.params import load_model_file, load_params
from stages.run import InputError, run_stage

log = logging.getLogger(__name__)

ADAPTER_DIR = Path("artifacts/adapter")
MEMORY_PATH = Path("reports/sft_memory.json")
ROWS_PATHS = (Path("data/formatted/train.jsonl"), Path("data/formatted/validation.jsonl"))


def history_csv(log_history: Iterable[Mapping[str, Any]]) -> str:
    """The trainer's log as CSV: step, epoch, train loss, validation loss, learning rate and gradient norm.

    Seconds are left out: nothing here may change when nothing changed.
    """
    columns = ["step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"]
    entries = pd.DataFrame(list(log_history)).reindex(columns=columns)
    merged = entries.groupby("step", as_index=False).first()
    return str(merged.dropna(subset=["loss", "eval_loss"], how="all").to_csv(index=False))


def save_adapter(model: Any, adapter_dir: Path) -> None:
    """Save the adapter and the manifest of its base; the same adapter gives the same bytes.

    PEFT holds `target_modules` as a set, whose order changes from process to process, and notes the base's folder on this disk.
    """
    shutil.rmtree(adapter_dir, ignore_errors=True)
    adapter_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=adapter_dir.parent) as folder:
        complete = Path(folder) / "adapter"
        model.save_pretrained(complete)
        (complete / "README.md").unlink(missing_ok=True)
        manifest = json.loads((BASE_DIR / "manifest.json").read_text())
        config = json.loads((complete / "adapter_config.json").read_text())
        config["target_modules"] = sorted(config["target_modules"])
        config["base_model_name_or_path"] = manifest["source"].get("id", manifest["source"].get("path"))
        write_json(complete / "adapter_config.json", config)
        write_json(complete / "base.json", manifest)
        complete.replace(adapter_dir)


def train_within_memory(
    plan_rows: Callable[[int | None], Plan], build: Callable[[int], Trainer], length: int, checkpoints: Path
) -> tuple[Trainer, dict[str, Any]]:
    """A trainer that has trained to the end, from the last whole checkpoint where there is one; and what that took, for the report.

    `plan_rows` says how many rows go through the device at once, at most so many where a number is given; `build` makes the
    trainer. Before the first step it is proved on the longest rows, and takes fewer until it fits; later, memory may run out once.
    """
    most_rows: int | None = None
    measured: dict[str, int] | None = None
    incidents: list[str] = []
    device = pick_device()
    while True:
        plan = plan_rows(most_rows)
        rows = plan.per_device_train_batch_size
        log.info("rows of %d tokens, %d at a time, need %s; %s are free", length, rows, plan.predicted, gib(plan.free))
        trainer: Trainer | None = None
        before = count_ooms(device)
        try:
            trainer = build(rows)
            if measured is None:
                measured = {"train": trainer.prove_step(), "answer": prove_answer(trainer.model, length)}
                log.info("proved on the longest rows: a step takes %s, an answer %s", *map(gib, measured.values()))
            checkpoint = find_checkpoint(checkpoints)
            if checkpoint is not None:
                log.info("going on from %s", checkpoint)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            # to two digits: the rest differs from run to run
            measured_mb = {name: int(float(f"{size / 1e6:.2g}")) for name, size in measured.items()}
            return trainer, {**plan.record(), "measured": measured_mb, "incidents": incidents}
        except RuntimeError as error:  # PyTorch's own, and those of the libraries that it calls
            if not ran_out_of_memory(error, device, before):
                raise
            when = "before the first step" if measured is None or trainer is None else f"at step {trainer.state.global_step}"
            if rows == 1 or plan.processes > 1 or incidents:
                advice = "lower format.max_length" if rows == 1 else "set PER_DEVICE_TRAIN_BATCH_SIZE to less in the environment"
                raise InputError(
                    f"sft: out of memory {when} with rows of {length} tokens, {rows} at a time, where {plan.predicted} were "
                    f"predicted and {gib(plan.free)} were free; {advice}, and run it again"
                ) from None
        log.warning("out of memory %s with %d rows at a time; going on with fewer, the effective batch size stays", when, rows)
        if measured is not None:
            incidents.append(f"out of memory {when} with {rows} rows at a time")
        most_rows = rows - 1
        del trainer
        gc.collect()
        torch.cuda.empty_cache()


def main() -> None:
    """Train and keep the adapter with the least validation loss."""
    state = start_processes()
    params = load_params()
    model_file = load_model_file(params.model)
    train, validation = (list(read_jsonl(path)) for path in ROWS_PATHS)
    log.info("%d train rows, %d optimizer steps at most", len(train), count_steps(len(train), params.sft))
    rows = [*train, *validation]
    longest = Longest(
        length=max(row["prompt_tokens"] + row["answer_tokens"] for row in rows),
        answer=max(row["answer_tokens"] for row in train),
        shorter=shorten(rows, params.format),
    )
    device = pick_device()
    setting = replace(make_setting(model_file, params.sft, device.type), triton=find_triton(device))
    checkpoints = checkpoint_dir(
        "sft",
        [*ROWS_PATHS, BASE_DIR],
        [params.format.max_length, params.sft.model_dump(), model_file.model_dump(), describe_device()],
        modules=["sft"],
    )
    tokenizer = load_tokenizer(BASE_DIR)

    def build(rows: int) -> Trainer:
        return build_trainer(
            load_model(BASE_DIR, model_file.quantization, shard=False),
            tokenizer,
            train,
            validation,
            params.sft,
            params.format.max_length,
            model_file.gradient_checkpointing,
            rows,
            checkpoints,
            padding_free=pick_attention(device) == "flash_attention_2",
        )

    trainer, memory = train_within_memory(
        lambda most_rows: plan_training(BASE_DIR, setting, params.sft, longest, most_rows), build, longest.length, checkpoints
    )
    log.info("least validation loss %.4f, at step %s", trainer.state.best_metric, trainer.state.best_global_step)
    if state.is_main_process:
        save_adapter(trainer.model, ADAPTER_DIR)
        write_text(Path("reports/sft_history.csv"), history_csv(trainer.state.log_history))
        write_json(MEMORY_PATH, {**memory, "longest": asdict(longest)})
        shutil.rmtree(checkpoints)
    state.wait_for_everyone()


if __name__ == "__main__":
    run_stage(main)
