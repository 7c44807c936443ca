"""What a check finds, and how it looks outside Python."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

LEVELS = ("ok", "note", "problem")


@dataclass(frozen=True)
class Finding:
    """One line: `ok`, a `note` that one should know, or a `problem` that stops the pipeline; `remedy` is a command."""

    level: str
    subject: str
    text: str
    remedy: str | None = None

    def __str__(self) -> str:
        line = f"{self.level:8}{self.subject}: {self.text}"
        return line if self.remedy is None else f"{line}  ->  {self.remedy}"


def run(*command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command, its output kept; whoever asks looks at its exit status."""
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this environment's DVC, whatever is on PATH."""
    return run(sys.executable, "-m", "dvc", *arguments)


def ask_dvc(*arguments: str) -> str:
    """What DVC prints. Raises RuntimeError with what it says where it fails."""
    ended = dvc(*arguments)
    if ended.returncode:
        raise RuntimeError(last_line(ended.stderr))
    return ended.stdout


def last_line(text: str) -> str:
    """The last line that says something, such as an exception's own in a traceback."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing was said")
