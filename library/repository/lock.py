"""Whether dvc.lock matches the code, the parameters and the data beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.params import flatten
from library.paths import PARAMS_PATH, PIPELINE_PATH
from library.repository.client import read_dvc_json, run_dvc

ABSENT = {"deleted", "not in cache"}  # the words of `dvc status` for data that is only missing here


@dataclass(frozen=True)
class DryRun:
    """What `dvc repro` would run, as far as it could be asked; `failure` is the message if it
    failed.

    Data that is only missing here does not count.
    """

    stages: list[str]
    failure: str | None

    @property
    def is_blocked(self) -> bool:
        """Whether another DVC is running here."""
        return self.failure is not None and "it is being blocked by" in self.failure

    @property
    def lacks_data(self) -> bool:
        """Whether it ended because data is missing here."""
        return self.failure is not None and "No such file" in self.failure


def dry_run() -> DryRun:
    """Ask DVC what it would run."""
    done = run_dvc("repro", "--dry", "--allow-missing")
    stages = re.findall(r"^Running stage '([^']+)'", done.stdout, re.MULTILINE)
    said = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
    return DryRun(stages, (said or "it said nothing") if done.returncode else None)


def find_stale() -> dict[str, list[str]] | None:
    """Why `dvc repro` would run something, by stage; None if dvc.lock is current."""
    would_run = dry_run()
    if would_run.failure is None and not would_run.stages:
        return None
    # of this pipeline only: embeddings need not be current for it
    if reasons := find_changes(PIPELINE_PATH):
        return reasons
    if would_run.stages:
        return {stage: ["runs anew"] for stage in would_run.stages}
    return {"dvc repro": [would_run.failure or "fails"]}


def find_changes(pipeline_path: Path) -> dict[str, list[str]]:
    """What changed since the stages of one pipeline ran, by stage; data only missing here does not
    count.
    """
    changes: dict[str, list[str]] = {}
    for stage, entries in read_dvc_json("status", str(pipeline_path), "--json").items():
        for entry in entries:
            found = [entry] if isinstance(entry, str) else _changed_paths(entry)
            if found:  # of a pipeline in a folder, stages are named PATH:STAGE
                changes.setdefault(stage.rpartition(":")[2], []).extend(found)
    return changes


def _changed_paths(entry: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The paths, and the parameters as `FILE:NAME`, that `dvc status` lists as changed."""
    found: list[str] = []

    def add(path: str, state: Any) -> None:
        if isinstance(state, Mapping):
            for name, inner in state.items():
                add(f"{path}: {name}", inner)
        elif state not in ABSENT or (path.endswith((".py", ".jinja")) and not Path(path).exists()):
            found.append(path)

    for changes in entry.values():
        for path, state in changes.items():
            add(path, state)
    return found


def is_consistent(
    stages: Mapping[str, Any], params: Mapping[str, Any], stage: str = "evaluate"
) -> bool:
    """Whether a stage and all before it ran on each other's outputs and with these parameters.

    Uses only the `stages` of a dvc.lock, such as another commit's. `params` are flat, those of
    other files as `FILE:NAME`. A lock that is half old and half new is not consistent.
    """
    if stage not in stages:
        return False
    made = {
        out["path"]: (name, out["md5"])
        for name, other in stages.items()
        for out in other.get("outs", [])
    }
    for path, values in stages[stage].get("params", {}).items():
        prefix = "" if path == str(PARAMS_PATH) else f"{path}:"
        for name, value in flatten(values).items():
            if params.get(f"{prefix}{name}", value) != value:
                return False
    for dep in stages[stage].get("deps", []):
        if len(_hashes_read(stages, dep["path"])) > 1:  # two stages ran on different versions of it
            return False
        maker, md5 = made.get(dep["path"], (None, None))
        if maker is not None and (md5 != dep["md5"] or not is_consistent(stages, params, maker)):
            return False
    return True


def is_recomputed(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether two locks have the same commands, parameters, code and raw data, but different
    results.

    Processors that round differently do that. Both are the `stages` of a dvc.lock. What a stage
    made from something that differs counts as a result.
    """
    return before != after and _given(before) == _given(after)


def _given(stages: Mapping[str, Any]) -> dict[str, Any]:
    """What results depend on, by stage: the command, parameters, and inputs that no stage makes."""
    outs = [out["path"] for stage in stages.values() for out in stage.get("outs", [])]

    def is_made(path: str) -> bool:
        return any(path == out or path.startswith(f"{out}/") for out in outs)

    return {
        name: (
            stage.get("cmd"),
            stage.get("params"),
            {dep["path"]: dep["md5"] for dep in stage.get("deps", []) if not is_made(dep["path"])},
        )
        for name, stage in stages.items()
    }


def _hashes_read(stages: Mapping[str, Any], path: str) -> set[str]:
    return {
        dep["md5"]
        for stage in stages.values()
        for dep in stage.get("deps", [])
        if dep["path"] == path
    }
