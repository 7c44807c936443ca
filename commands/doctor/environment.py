"""Python, the installed packages, and what is set in the environment."""

from __future__ import annotations

import importlib.util
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from commands.doctor.finding import Finding

LOCK_PATH = Path("requirements.lock")
PROJECT_PATH = Path("pyproject.toml")
NEEDED = (3, 11)
SHOWN = 5


def find_missing_environment() -> Finding | None:
    """That nothing is installed yet, which every other check would stumble over; None where DVC is
    there.
    """
    if importlib.util.find_spec("dvc") is not None:
        return None
    text = f"{sys.executable} has none of the packages" + (
        "" if Path(".venv").is_dir() else ", and .venv is not there yet"
    )
    return Finding("problem", "environment", text, "make environment")


def check_python() -> Iterator[Finding]:
    """Python's version, and whether the `python` that DVC will run for a stage is this one."""
    version = ".".join(map(str, sys.version_info[:3]))
    if tuple(sys.version_info) < NEEDED:
        yield Finding(
            "problem",
            "python",
            f"{version}, 3.11 or newer is needed",
            "make environment PYTHON=/path/to/python3.11",
        )
        return
    yield Finding("ok", "python", f"{version} in {sys.prefix}")
    found = shutil.which("python")
    if found is None or Path(found).parent.resolve() != Path(sys.executable).parent.resolve():
        text = f"DVC would run its stages by {found or 'no python at all'}, not by {sys.executable}"
        yield Finding("problem", "python on PATH", text, "source .venv/bin/activate")


def compare_versions(lock: str) -> tuple[list[str], list[str]]:
    """Which packages of a lock are installed in another version, as text, and the names of those
    that are not installed.

    A local label such as torch's `+cpu` is no other version.
    """
    differing, missing = [], []
    for line in lock.splitlines():
        name, separator, wanted = line.partition("==")
        if not separator:
            continue
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if installed.split("+")[0] != wanted.strip().split("+")[0]:
            differing.append(f"{name} {installed}, locked {wanted.strip()}")
    return differing, missing


def check_packages(
    lock_path: Path = LOCK_PATH, project_path: Path = PROJECT_PATH
) -> Iterator[Finding]:
    """Installed versions against requirements.lock.

    What pyproject.toml names must be there, others may be for other systems.
    """
    import tomllib

    differing, missing = compare_versions(lock_path.read_text())
    named = {
        requirement.split(";")[0].strip().lower()
        for requirement in tomllib.loads(project_path.read_text())["project"]["dependencies"]
    }
    needed = [name for name in missing if name.lower().replace("_", "-") in named]
    found = [*differing, *(f"{name} is not installed" for name in needed)]
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        yield Finding(
            "problem",
            "packages",
            "; ".join(found[:SHOWN]) + more,
            "rm -f .venv/.ready && make environment",
        )
    else:
        absent = f", {len(missing)} of other systems or extras absent" if missing else ""
        yield Finding("ok", "packages", f"as in {lock_path}{absent}")


def _positive_number(value: str) -> str | None:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    return None if 0 < number < math.inf else "expected a positive number"


def _positive_count(value: str) -> str | None:
    return None if value.isdigit() and int(value) > 0 else "expected a positive whole number"


def _launcher(value: str) -> str | None:
    try:
        words = shlex.split(value)
    except ValueError as error:
        return str(error)
    return None if not words or shutil.which(words[0]) else f"{words[0]} is not found"


# what each stands for, and what is wrong with its value, if anything
VARIABLES: dict[str, tuple[str, Callable[[str], str | None]]] = {
    "MEMORY_LIMIT_GIB": ("memory is planned as on a device with so many GiB", _positive_number),
    "LAUNCHER": ("zeroshot, sft and predict are started by it", _launcher),
    "FSDP": (
        "of the model's layers a process holds a share, or none, until they compute",
        lambda value: (
            None if value in ("", "full_shard", "offload") else "expected full_shard or offload"
        ),
    ),
    "DETERMINISTIC": (
        "whether CUDA computes the same bytes twice, which takes longer",
        lambda value: None if value in ("", "0", "1") else "expected 0 or 1",
    ),
    "PER_DEVICE_TRAIN_BATCH_SIZE": (
        "rows at once when training, in place of what is predicted to fit",
        _positive_count,
    ),
    "TOKENS_PER_BATCH": (
        "tokens at once when answering, in place of what is predicted to fit",
        _positive_count,
    ),
    "OMP_NUM_THREADS": ("processor threads of every process", _positive_count),
    "CUDA_VISIBLE_DEVICES": ("the only cards that are seen", lambda _: None),
    "HF_HOME": ("where the hub cache is", lambda _: None),
    "HF_HUB_OFFLINE": ("no model is downloaded", lambda _: None),
}


def check_variables() -> Iterator[Finding]:
    """Variables in the environment that change what a stage does, where they are set."""
    for name, (meaning, find_fault) in VARIABLES.items():
        value = os.environ.get(name)
        if value is None:
            continue
        fault = find_fault(value)
        if fault is None:
            yield Finding("note", name, f"{value!r} in the environment: {meaning}")
        else:
            yield Finding(
                "problem", name, f"{value!r} in the environment: {fault}", f"unset {name}"
            )
