"""One trial of a sweep: `dvc exp run … sft` in the workspace."""

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from commands.sweep.space import overrides
from library.errors import InputError
from library.paths import (
    CHECKPOINTS_DIR,
    HISTORY_PATH,
)
from library.repository.client import failure_line
from library.repository.workspace import end_process, record_process

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5


class TrialFailedError(Exception):
    """A trial has no validation loss because of its parameters; the message says why."""


class TrialStoppedError(Exception):
    """A trial was stopped early because it was worse than others."""


def raise_failure(output: str, log_path: Path) -> None:
    """Raise TrialFailedError if a stage failed, or InputError if DVC failed or the disk is full."""
    if "failed to run: " in output and "No space left on device" not in output:
        raise TrialFailedError(failure_line(output))
    said = output[output.find("ERROR: ") :] if "ERROR: " in output else failure_line(output)
    raise InputError(
        f"{' '.join(said.split())}\n{log_path} has the whole log; the same command resumes this "
        "trial"
    )


def find_training(since: float) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint since a time: its run's folder and the trainer's state; None without
    one.
    """
    try:
        states = [
            (path.stat().st_mtime, path)
            for path in CHECKPOINTS_DIR.glob("sft-*/checkpoint-*/trainer_state.json")
        ]
        modified, path = max(states, default=(0.0, Path()))
        return None if modified < since else (path.parents[1], json.loads(path.read_text()))
    except (FileNotFoundError, ValueError):  # removed since, or not written to its end
        return None


def run_trial(
    name: str,
    values: Mapping[str, Any],
    log_path: Path,
    should_stop: Callable[[float, float], bool],
) -> float:
    """Run `dvc exp run --name NAME … sft` with these parameters; return the lowest validation loss.

    `should_stop` gets each evaluation as the share of steps done and the loss, and decides whether
    to stop. Raises TrialStoppedError if it stopped, TrialFailedError if a stage failed or training
    never reached an evaluation, and InputError if the run failed otherwise.
    """
    command = [sys.executable, "-m", "dvc", "exp", "run", "--name", name, *overrides(values), "sft"]
    since, judged = time.time(), 0
    with log_path.open("w") as output:
        # a session of its own: Ctrl-C reaches the sweep alone, which then ends the trial in order
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            record_process("trial", process.pid, values=dict(values))
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                found = find_training(since)
                if found is None:
                    continue
                folder, state = found
                evaluations = [entry for entry in state["log_history"] if "eval_loss" in entry]
                for entry in evaluations[judged:]:
                    if should_stop(entry["step"] / state["max_steps"], entry["eval_loss"]):
                        end_process(process.pid)
                        shutil.rmtree(folder, ignore_errors=True)
                        raise TrialStoppedError
                judged = len(evaluations)
        finally:
            end_process(process.pid)
            process.wait()
    if process.returncode:
        raise_failure(log_path.read_text(errors="replace"), log_path)
    losses = pd.read_csv(HISTORY_PATH)["eval_loss"].dropna()
    if losses.empty:
        raise TrialFailedError("training ended before the first evaluation: lower sft.eval_steps")
    return float(losses.min())
