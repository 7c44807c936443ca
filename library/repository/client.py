"""Run git and DVC as commands.

Imports only the standard library and our errors, so that it works when everything else fails.
`run_git` and `run_dvc` leave the exit status to the caller; `read_git` and `read_dvc` raise
InputError if the command fails.
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
    """Run a command to its end and keep its output."""
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
    """The line of an output that says why a command failed: that of an error, or the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith(OWN_WORDS)]
    return own[0] if own else lines[-1] if lines else "it said nothing"


def read_git(*arguments: str, folder: Path | None = None) -> str:
    """The output of git. Raises InputError with the first line of an error."""
    done = run_git(*arguments, folder=folder)
    if done.returncode:
        raise InputError(f"git {arguments[0]}: {next(iter(done.stderr.splitlines()), 'failed')}")
    return done.stdout


def read_dvc(*arguments: str, folder: Path | None = None) -> str:
    """The output of DVC. Raises InputError with the line that says why it failed."""
    done = run_dvc(*arguments, folder=folder)
    if done.returncode:
        raise InputError(f"dvc {' '.join(arguments)}: {failure_line(done.stdout + done.stderr)}")
    return done.stdout


def read_dvc_json(*arguments: str) -> dict[str, Any]:
    """The JSON output of a DVC command. Raises InputError with DVC's message if it failed."""
    done = run_dvc(*arguments)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        raise InputError(f"dvc {' '.join(arguments)}: {failure_line(done.stderr)}") from None


def find_cache_dir() -> Path:
    """The folder of DVC's cache."""
    return Path(read_dvc("cache", "dir").strip())
