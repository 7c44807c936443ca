"""The training loop: it checks memory on the longest rows first, and survives one out of memory."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from library.errors import InputError
from library.llm.checkpoints import find_checkpoint
from library.llm.devices import pick_device
from library.llm.memory.formula import ComputeSettings
from library.llm.memory.measuring import (
    OutOfMemoryError,
    free_memory,
    measure_peak,
    name_out_of_memory,
    resident_bytes,
)
from library.llm.memory.planning import LongestLengths, Plan, plan_training
from library.llm.sharding import takes_same_steps
from library.llm.trainer import EachRowOnce
from library.params import DpoParams, SftParams
from library.paths import BASE_DIR
from library.units import gib

log = logging.getLogger(__name__)

T = TypeVar("T", bound=EachRowOnce)


@torch.no_grad()
def measure_answer(model: PreTrainedModel, length: int) -> int:
    """The most bytes in tensors while two tokens are generated, ending at `length` tokens.

    Keys and values are then at their largest. Raises torch.OutOfMemoryError if it does not fit.
    """
    model.eval()
    same_steps = takes_same_steps()
    resident = 0 if model.device.type == "cuda" else resident_bytes(model)
    ids = torch.full((1, length - 2), model.generation_config.eos_token_id[0], device=model.device)

    def answer() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=2,
            min_new_tokens=2,
            synced_gpus=same_steps,
        )

    return resident + measure_peak(model.device, answer)


def train_within_memory(
    settings: ComputeSettings,
    params: SftParams | DpoParams,
    longest: LongestLengths,
    build: Callable[[int, bool], T],
    checkpoints: Path,
) -> tuple[T, dict[str, Any]]:
    """Train the model in artifacts/base/ to the end; returns the trainer, and for the report the
    plan, the memory measured and the longest lengths.

    Resumes from the last complete checkpoint if there is one. `build` makes the trainer for a batch
    size, with or without gradient checkpointing. Before the first step, memory is measured on the
    longest rows; if they do not fit, checkpointing is turned on if that is left open, then the
    batch size lowered. Later, training may run out of memory once. Raises InputError if not even
    one row fits.
    """
    length, unit = longest.length, settings.unit
    most_rows: int | None = None
    measured: dict[str, int] | None = None
    incidents: list[str] = []
    while True:
        plan = plan_training(BASE_DIR, settings, params, longest, most_rows)
        rows = plan.per_device_train_batch_size
        log.info(
            "batch size %d, with %s of up to %d tokens, needs %s; %s are free",
            *(rows, unit, length, plan.predicted, gib(plan.free)),
        )
        trainer: T | None = None
        try:
            with name_out_of_memory(pick_device()):
                trainer = build(rows, plan.gradient_checkpointing)
                if measured is None:
                    measured = _prove(trainer, length)
                _train(trainer, checkpoints)
                # two digits: the rest differs between runs
                measured_mb = {
                    name: int(float(f"{size / 1e6:.2g}")) for name, size in measured.items()
                }
                return trainer, {
                    **plan.record(),
                    "measured": measured_mb,
                    "incidents": incidents,
                    "longest": {"length": length, "answer": longest.answer},
                }
        except OutOfMemoryError:
            when = "before the first step"
            if measured is not None and trainer is not None:
                when = f"at step {trainer.state.global_step}"
            can_save = settings.optional_checkpointing and not plan.gradient_checkpointing
            if (rows == 1 and not can_save) or plan.processes > 1 or incidents:
                said = (
                    f"{settings.stage}: out of memory {when} with batch size {rows} and {unit} of "
                    f"{length} tokens"
                )
                raise InputError(_explain(said, plan)) from None
        remedy = "a smaller one (the effective batch size stays the same)"
        if can_save:
            remedy = "gradient checkpointing"
            settings = replace(settings, optional_checkpointing=False)
        else:
            most_rows = rows - 1
        log.warning("out of memory %s with batch size %d; continuing with %s", when, rows, remedy)
        if measured is not None:
            incidents.append(f"out of memory {when} with batch size {rows}")
            measured = None  # what goes on takes less
        del trainer
        free_memory()


def _prove(trainer: EachRowOnce, length: int) -> dict[str, int]:
    measured = {
        "train": trainer.measure_training_step(),
        "answer": measure_answer(trainer.model, length),
    }
    log.info(
        "measured on the longest rows: a training step takes %s, an answer %s",
        *map(gib, measured.values()),
    )
    return measured


def _train(trainer: Any, checkpoints: Path) -> None:
    checkpoint = find_checkpoint(checkpoints)
    if checkpoint is not None:
        log.info("resuming from %s", checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _explain(said: str, plan: Plan) -> str:
    rows = plan.per_device_train_batch_size
    advice = "set PER_DEVICE_TRAIN_BATCH_SIZE to less in the environment"
    if not plan.gradient_checkpointing:
        advice = "set gradient_checkpointing: true in the model's file"
    elif rows == 1:
        advice = "lower format.max_length"
    return (
        f"{said}; predicted: {plan.predicted}; free: {gib(plan.free)}; {advice}, and run it again"
    )
