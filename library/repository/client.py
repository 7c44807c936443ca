"""Git and DVC as commands.

Imports nothing but the standard library and our errors: it must run where all else fails.

`run_git` and `run_dvc` leave it to the caller to look at the exit status; `read_git` and `read_dvc`
raise InputError where the command fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from library.errors import InputError

Finished = subprocess.CompletedProcess[str]
OWN_WORDS = ("error: ", "torch.OutOfMemoryError", "ERROR: ")  # a stage's, PyTorch's and DVC's


def run(*command: str, folder: Path | None = None, timeout: float | None = None) -> Finished:
    """Run a command to its end, its output kept."""
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        check=False,
    )


def run_git(*arguments: str, folder: Path | None = None) -> Finished:
    """Run git."""
    return run("git", *arguments, folder=folder)


def run_dvc(*arguments: str, folder: Path | None = None) -> Finished:
    """Run this environment's DVC, whatever is on PATH."""
    return run(sys.executable, "-m", "dvc", *arguments, folder=folder)


def failure_line(output: str) -> str:
    """The line of an output that says why it failed: an error's own where there is one, or the
    last.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith(OWN_WORDS)]
    return own[0] if own else lines[-1] if lines else "it said nothing"


def read_git(*arguments: str, folder: Path | None = None) -> str:
    """What git prints. Raises InputError with the first line of what went wrong."""
    done = run_git(*arguments, folder=folder)
    if done.returncode:
        raise InputError(f"git {arguments[0]}: {next(iter(done.stderr.splitlines()), 'failed')}")
    return done.stdout


def read_dvc(*arguments: str, folder: Path | None = None) -> str:
    """What DVC prints. Raises InputError with the line that says why it failed."""
    done = run_dvc(*arguments, folder=folder)
    if done.returncode:
        raise InputError(f"dvc {' '.join(arguments)}: {failure_line(done.stdout + done.stderr)}")
    return done.stdout


def read_dvc_json(*arguments: str) -> dict[str, Any]:
    """The JSON that a DVC command prints. Raises InputError with what it said where it failed."""
    done = run_dvc(*arguments)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        raise InputError(f"dvc {' '.join(arguments)}: {failure_line(done.stderr)}") from None


def find_cache_dir() -> Path:
    """The folder of DVC's cache."""
    return Path(read_dvc("cache", "dir").strip())
