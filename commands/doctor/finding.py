"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = ("ok", "note", "problem")


@dataclass(frozen=True)
class Finding:
    """One line: `ok`, a `note` to know, or a `problem` that stops the pipeline.

    `remedy` is a command.
    """

    level: str
    subject: str
    text: str
    remedy: str | None = None

    def __str__(self) -> str:
        line = f"{self.level:8}{self.subject}: {self.text}"
        return line if self.remedy is None else f"{line}  ->  {self.remedy}"
