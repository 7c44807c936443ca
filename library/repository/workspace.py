"""Run experiments in the workspace, and restore it afterwards.

They run in the workspace rather than in a copy, because files that git does not track are there,
and because checkpoints/ lets a killed run resume.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from library.errors import InputError
from library.files import read_json, write_json
from library.params import flatten, read_yaml
from library.paths import (
    CHECKPOINTS_DIR,
    EVALUATION_PATH,
    LOCK_PATH,
    PARAMS_PATH,
    PIPELINE_PATH,
)
from library.repository.client import read_dvc, read_git

log = logging.getLogger(__name__)

KEPT_DIR = CHECKPOINTS_DIR / "sweep-workspace"  # the originals of what is changed in the workspace
PATIENCE_SECONDS = 60.0  # that DVC has to end in order once its stage is stopped


def end_process(pid: int) -> None:
    """End a process's children so that it ends in order; end it too after PATIENCE_SECONDS."""
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
    """Whether a process recorded as {pid, created} still runs; a new process with its id does not
    count.
    """
    try:
        return (
            recorded is not None
            and psutil.Process(recorded["pid"]).create_time() == recorded["created"]
        )
    except psutil.NoSuchProcess:
        return False


def record_process(name: str, pid: int, **others: Any) -> None:
    write_json(
        KEPT_DIR / f"{name}.json",
        {"pid": pid, "created": psutil.Process(pid).create_time(), **others},
    )


def recorded_process(name: str) -> dict[str, Any] | None:
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


def _put_back(target: str | None) -> None:
    for path in _changed_files():
        kept = KEPT_DIR / "files" / path
        if kept.exists():
            path.parent.mkdir(exist_ok=True)  # Git and DVC remove folders that are empty
            shutil.copyfile(kept, path)
        else:
            path.unlink(missing_ok=True)
    targets = [] if target is None else ["--with-deps", target]
    read_dvc("checkout", "--quiet", "--force", "--allow-missing", *targets)
    shutil.rmtree(KEPT_DIR)


def recover_workspace() -> None:
    """Restore the workspace after a killed sweep, and end the trial that it left running.

    Raises InputError if that sweep still runs, or if the workspace was changed since.
    """
    if not KEPT_DIR.exists():
        return
    if is_alive(owner := recorded_process("sweep")):
        raise InputError(
            f"a sweep is running in this workspace, as process {owner and owner['pid']}; only one "
            "can run at a time"
        )
    trial = recorded_process("trial")
    if trial is not None and is_alive(trial):
        log.info("ended process %d, a trial that was still running", trial["pid"])
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
    _put_back(started["target"])
    log.info("restored params.yaml, dvc.lock and metrics from before the killed sweep")


@contextmanager
def borrow_workspace(searched: Sequence[str], target: str | None = "sft") -> Iterator[None]:
    """Save what trials change up to the stage `target` (None: all stages), and restore it at the
    end.

    After a kill, `recover_workspace` restores it. Meanwhile the workspace has no
    metrics/evaluation.json, since a trial would carry another run's test metrics.
    """
    files = KEPT_DIR / "files"
    incomplete = KEPT_DIR.with_suffix(".incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    for path in _changed_files():
        if path.exists():
            (incomplete / "files" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, incomplete / "files" / path)
    started = {"head": _head(), "searched": list(searched), "target": target}
    write_json(incomplete / "started.json", started)
    incomplete.replace(files.parent)
    record_process("sweep", psutil.Process().pid)
    EVALUATION_PATH.unlink(missing_ok=True)
    try:
        yield
    finally:
        _put_back(target)
