"""One trial of a sweep: `dvc exp run … sft` in the workspace, which is put back afterwards.

In the workspace, not in a copy of it: files that Git does not track are there, and checkpoints/
lets a trial that was killed go on.
"""

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from commands.sweep.space import overrides
from library.errors import InputError
from library.files import read_json, write_json
from library.params import flatten, read_yaml
from library.paths import (
    CHECKPOINTS_DIR,
    EVALUATION_PATH,
    HISTORY_PATH,
    LOCK_PATH,
    PARAMS_PATH,
    PIPELINE_PATH,
)
from library.repository.client import failure_line, read_dvc, read_git

log = logging.getLogger(__name__)

KEPT_DIR = CHECKPOINTS_DIR / "sweep-workspace"  # what a sweep changes in the workspace, as it was
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0  # for DVC to end in order once its stage is stopped


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


def end_process(pid: int) -> None:
    """End what a process has started, and so let it end in order.

    End it, too, where it does not within PATIENCE_SECONDS.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        process = psutil.Process(pid)
        while (
            process.is_running()
            and process.status() != psutil.STATUS_ZOMBIE
            and time.monotonic() < deadline
        ):
            for child in process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.terminate()
            psutil.wait_procs([process], timeout=0.5)
        for left in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                left.kill()
    except psutil.NoSuchProcess:
        return


def is_alive(recorded: dict[str, Any] | None) -> bool:
    """Whether a process that was recorded as {pid, created} still runs.

    Another by the same number is not it.
    """
    try:
        return (
            recorded is not None
            and psutil.Process(recorded["pid"]).create_time() == recorded["created"]
        )
    except psutil.NoSuchProcess:
        return False


def _record(name: str, pid: int, **others: Any) -> None:
    write_json(
        KEPT_DIR / f"{name}.json",
        {"pid": pid, "created": psutil.Process(pid).create_time(), **others},
    )


def _recorded(name: str) -> dict[str, Any] | None:
    path = KEPT_DIR / f"{name}.json"
    return dict(read_json(path)) if path.exists() else None


def _changed_files() -> list[Path]:
    return [
        PARAMS_PATH,
        LOCK_PATH,
        *(Path(name) for name in read_yaml(PIPELINE_PATH).get("metrics", [])),
    ]


def _head() -> str:
    return read_git("rev-parse", "HEAD").strip()


def _put_back() -> None:
    for path in _changed_files():
        kept = KEPT_DIR / "files" / path
        if kept.exists():
            path.parent.mkdir(exist_ok=True)  # Git and DVC remove folders that are empty
            shutil.copyfile(kept, path)
        else:
            path.unlink(missing_ok=True)
    read_dvc("checkout", "--quiet", "--force", "--allow-missing", "--with-deps", "sft")
    shutil.rmtree(KEPT_DIR)


def recover_workspace() -> None:
    """Put the workspace back after a sweep that was killed, and end the trial that it left running.

    Raises InputError where that sweep still runs, or where the workspace was worked in since.
    """
    if not KEPT_DIR.exists():
        return
    if is_alive(owner := _recorded("sweep")):
        raise InputError(
            f"a sweep runs in this workspace, as process {owner and owner['pid']}; it has one "
            "workspace, one GPU"
        )
    trial = _recorded("trial")
    if trial is not None and is_alive(trial):
        log.info("the trial that was left running, process %d, is ended", trial["pid"])
        end_process(trial["pid"])
    started = read_json(KEPT_DIR / "started.json")
    kept, now = (
        flatten(read_yaml(folder / PARAMS_PATH)) for folder in (KEPT_DIR / "files", Path())
    )
    changed = [name for name in kept.keys() | now.keys() if kept.get(name) != now.get(name)]
    tried = (trial or {}).get("values", {})
    edited = sorted(
        name
        for name in changed
        if name not in started["searched"] or now.get(name) != tried.get(name)
    )
    if edited or started["head"] != _head():
        what = (
            f"params.yaml was edited ({', '.join(edited)})" if edited else "something was committed"
        )
        raise InputError(
            f"{what} since a sweep was killed; {KEPT_DIR / 'files'} has params.yaml, dvc.lock and "
            f"metrics as they were before it: take what you need, delete {KEPT_DIR}, and start "
            "again"
        )
    _put_back()
    log.info("params.yaml, dvc.lock and metrics are as they were before the sweep that was killed")


@contextmanager
def borrow_workspace(searched: Sequence[str]) -> Iterator[None]:
    """Keep what trials change, and put it back at the end; after a kill, `recover_workspace` does.

    Meanwhile the workspace has no metrics/evaluation.json: a trial would carry on the test metrics
    of another run.
    """
    files = KEPT_DIR / "files"
    incomplete = KEPT_DIR.with_suffix(".incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    for path in _changed_files():
        if path.exists():
            (incomplete / "files" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, incomplete / "files" / path)
    write_json(incomplete / "started.json", {"head": _head(), "searched": list(searched)})
    incomplete.replace(files.parent)
    _record("sweep", psutil.Process().pid)
    EVALUATION_PATH.unlink(missing_ok=True)
    try:
        yield
    finally:
        _put_back()


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
            _record("trial", process.pid, values=dict(values))
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
