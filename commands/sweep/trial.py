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
    """A trial came to no validation loss by what it tried; the message says why."""


class TrialStoppedError(Exception):
    """A trial was stopped early, since it was worse than others."""


def raise_failure(output: str, log_path: Path) -> None:
    """Raise TrialFailedError where a stage failed; InputError where it was not the trial's doing.

    That is where DVC failed, or the disk is full.
    """
    if "failed to run: " in output and "No space left on device" not in output:
        raise TrialFailedError(failure_line(output))
    said = output[output.find("ERROR: ") :] if "ERROR: " in output else failure_line(output)
    raise InputError(
        f"{' '.join(said.split())}\n{log_path} has all of it; the same command goes on with this "
        "trial"
    )


def find_training(since: float) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that was written since a time.

    Its run's folder, and the trainer's state in it.
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
    """The least validation loss of `dvc exp run --name NAME … sft` with these parameters.

    `should_stop` is told each evaluation, as the share of the steps that are done and the loss, and
    says whether to stop there. Raises TrialStoppedError where it did, TrialFailedError where a
    stage failed or never came to an evaluation, and InputError where the run failed without one.
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
