"""Checks of Python, the installed packages and the environment variables."""

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

REQUIREMENTS_PATH = Path("requirements.lock")
PROJECT_PATH = Path("pyproject.toml")
NEEDED = (3, 11)
SHOWN = 5


def find_missing_environment() -> Finding | None:
    """The finding that nothing is installed yet; None if DVC is installed."""
    if importlib.util.find_spec("dvc") is not None:
        return None
    text = f"{sys.executable} has none of the packages" + (
        "" if Path(".venv").is_dir() else ", and there is no .venv yet"
    )
    return Finding("problem", "environment", text, "make environment")


def check_python() -> Iterator[Finding]:
    """Check Python's version, and that the `python` DVC will run is this one."""
    version = ".".join(map(str, sys.version_info[:3]))
    if tuple(sys.version_info) < NEEDED:
        yield Finding(
            "problem",
            "python",
            f"{version}; 3.11 or newer is needed",
            "make environment PYTHON=/path/to/python3.11",
        )
        return
    yield Finding("ok", "python", f"{version} in {sys.prefix}")
    found = shutil.which("python")
    if found is None or Path(found).parent.resolve() != Path(sys.executable).parent.resolve():
        text = f"DVC would run stages with {found or 'no python at all'}, not with {sys.executable}"
        yield Finding("problem", "python on PATH", text, "source .venv/bin/activate")


def compare_versions(lock: str) -> tuple[list[str], list[str]]:
    """Packages of a lock that are installed in another version, as text, and those not installed.

    A local label such as torch's `+cpu` does not count as another version.
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
    lock_path: Path = REQUIREMENTS_PATH, project_path: Path = PROJECT_PATH
) -> Iterator[Finding]:
    """Compare the installed versions with requirements.lock.

    Packages named in pyproject.toml must be installed; others may be for other systems.
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
        absent = f"; {len(missing)} for other systems or extras not installed" if missing else ""
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


# by name: the meaning, and a check that returns what is wrong with the value
VARIABLES: dict[str, tuple[str, Callable[[str], str | None]]] = {
    "MEMORY_LIMIT_GIB": ("plans as for a device with this much memory", _positive_number),
    "LAUNCHER": ("starts zeroshot, sft and predict", _launcher),
    "FSDP": (
        "shards the frozen layers, or keeps them in host memory",
        lambda value: (
            None if value in ("", "full_shard", "offload") else "expected full_shard or offload"
        ),
    ),
    "DETERMINISTIC": (
        "whether CUDA computes the same bytes twice, which takes longer",
        lambda value: None if value in ("", "0", "1") else "expected 0 or 1",
    ),
    "PER_DEVICE_TRAIN_BATCH_SIZE": (
        "batch size of training, instead of the largest that fits",
        _positive_count,
    ),
    "TOKENS_PER_BATCH": (
        "tokens per batch when answering, instead of the most that fit",
        _positive_count,
    ),
    "OMP_NUM_THREADS": ("processor threads of every process", _positive_count),
    "CUDA_VISIBLE_DEVICES": ("the GPUs that are visible", lambda _: None),
    "HF_HOME": ("where the Hub's cache is", lambda _: None),
    "HF_HUB_OFFLINE": ("nothing is downloaded from the Hub", lambda _: None),
}


def check_variables() -> Iterator[Finding]:
    """Report the environment variables that change what a stage does, if they are set."""
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
