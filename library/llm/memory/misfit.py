"""What does not fit and what would: as data, and in words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from library.llm.memory.formula import MemoryEstimate
from library.llm.memory.measuring import SPARE
from library.units import gib


@dataclass(frozen=True)
class ShorterLength:
    """A lower value of format.max_length, and what it would make of the formatted rows, in tokens.

    It leaves each question `room` or more for passages, which take about `passage`.
    """

    max_length: int
    longest: int
    room: int = 0
    passage: int = 0


@dataclass(frozen=True)
class Alternative:
    """A change of one thing, as a user makes it, and what training or answering needs then."""

    change: str
    predicted: MemoryEstimate
    shorter: ShorterLength | None = None


@dataclass(frozen=True)
class Misfit:
    """What was to be computed and does not fit into the `free` bytes, and what would fit."""

    length: int
    rows: int
    predicted: MemoryEstimate
    free: int
    device_type: str
    alternatives: Sequence[Alternative]


def describe_free_memory(free: int, device_type: str) -> str:
    """What is free, where something did not fit."""
    return f"{gib(free)} are free on {device_type}, and {SPARE:.0%} of it are kept free"


def describe_alternative(alternative: Alternative) -> str:
    """A change and what it needs; of a shorter length also what it leaves for passages."""
    shorter = alternative.shorter
    leaves = ""
    if shorter is not None and shorter.passage:
        leaves = (
            f", which leaves {shorter.room} tokens or more for passages of about {shorter.passage}"
        )
    return f"{alternative.change}{leaves}: {alternative.predicted}"


def describe_training_misfit(misfit: Misfit) -> Iterator[str]:
    """Lines: what training needs and what is free, then each change of one thing that would fit."""
    yield (
        f"sft: rows of {misfit.length} tokens, {misfit.rows} at a time, need {misfit.predicted}; "
        f"{describe_free_memory(misfit.free, misfit.device_type)}"
    )
    if not misfit.alternatives:
        yield (
            "nothing that changes one thing would fit: neither length nor rank nor another model"
        )
        return
    yield "what would fit:"
    for alternative in misfit.alternatives:
        yield f"  {describe_alternative(alternative)}"


def describe_answering_misfit(misfit: Misfit, prompt: int) -> str:
    """What answering one prompt of so many tokens needs, what is free, and what to change."""
    changes = "".join(f", or set {other.change}" for other in misfit.alternatives)
    return (
        f"answering a prompt of {prompt} tokens needs {misfit.predicted}, "
        f"{describe_free_memory(misfit.free, misfit.device_type)}; lower format.max_length, or "
        f"choose a smaller model{changes}"
    )
