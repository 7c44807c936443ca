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


def describe_alternatives(misfit: Misfit, nothing: str) -> Iterator[str]:
    """Lines: each change of one thing that would fit; or `nothing`, what was tried in vain."""
    if not misfit.alternatives:
        yield f"nothing that changes one thing would fit: {nothing}"
        return
    yield "what would fit:"
    for alternative in misfit.alternatives:
        yield f"  {describe_alternative(alternative)}"


def describe_training_misfit(misfit: Misfit) -> Iterator[str]:
    """Lines: what training needs and what is free, then each change of one thing that would fit."""
    yield (
        f"sft: rows of {misfit.length} tokens, {misfit.rows} at a time, need {misfit.predicted}; "
        f"{describe_free_memory(misfit.free, misfit.device_type)}"
    )
    yield from describe_alternatives(misfit, "neither length nor rank nor another model")


def describe_answering_misfit(misfit: Misfit, prompt: int) -> Iterator[str]:
    """Lines: what answering one prompt of so many tokens needs and what is free, then each change
    of one thing that would fit.
    """
    yield (
        f"answering a prompt of {prompt} tokens needs {misfit.predicted}; "
        f"{describe_free_memory(misfit.free, misfit.device_type)}"
    )
    yield from describe_alternatives(misfit, "neither a shorter prompt nor another model")


def describe_merging_misfit(misfit: Misfit) -> Iterator[str]:
    """Lines: what merging needs and what is free, then each model that would fit."""
    yield (
        f"merging the adapter into its base, in float32 in the computer's memory, needs "
        f"{misfit.predicted}; {describe_free_memory(misfit.free, misfit.device_type)}"
    )
    yield from describe_alternatives(misfit, "no smaller model")
    yield "the adapter can be asked as it is: python -m commands.ask"
