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
    """What was to be computed and does not fit into the `free` bytes, and what would fit.

    In training, of `unit` by a stage.
    """

    length: int
    rows: int
    predicted: MemoryEstimate
    free: int
    device_type: str
    alternatives: Sequence[Alternative]
    stage: str = "sft"
    unit: str = "rows"


def describe_free_memory(free: int, device_type: str) -> str:
    """What is free, where something did not fit."""
    return f"{gib(free)} are free on {device_type}, of which {SPARE:.0%} stay free"


def describe_alternative(alternative: Alternative) -> str:
    """A change and what it needs; of a shorter length also what it leaves for passages."""
    shorter = alternative.shorter
    leaves = ""
    if shorter is not None and shorter.passage:
        leaves = (
            f" (leaves at least {shorter.room} tokens for passages of about {shorter.passage} each)"
        )
    return f"{alternative.change}{leaves}: {alternative.predicted}"


def describe_alternatives(misfit: Misfit, nothing: str) -> Iterator[str]:
    """Lines: each change of one thing that would fit; or `nothing`, what was tried in vain."""
    if not misfit.alternatives:
        yield nothing
        return
    yield "what would fit:"
    for alternative in misfit.alternatives:
        yield f"  {describe_alternative(alternative)}"


def describe_training_misfit(misfit: Misfit) -> Iterator[str]:
    """Lines: what training needs and what is free, then each change of one thing that would fit."""
    yield (
        f"{misfit.stage}: batch size {misfit.rows} with {misfit.unit} of {misfit.length} tokens "
        f"needs {misfit.predicted}; {describe_free_memory(misfit.free, misfit.device_type)}"
    )
    yield from describe_alternatives(
        misfit,
        "No single change makes it fit. Combine a shorter format.max_length, a smaller "
        "sft.lora.r and a smaller model.",
    )


def describe_answering_misfit(misfit: Misfit, prompt: int) -> Iterator[str]:
    """Lines: what answering one prompt of so many tokens needs and what is free, then each change
    of one thing that would fit.
    """
    yield (
        f"answering a prompt of {prompt} tokens needs {misfit.predicted}; "
        f"{describe_free_memory(misfit.free, misfit.device_type)}"
    )
    nothing = "No single change makes it fit. Combine a shorter prompt with a smaller model."
    yield from describe_alternatives(misfit, nothing)


def describe_merging_misfit(misfit: Misfit) -> Iterator[str]:
    """Lines: what merging needs and what is free, then each model that would fit."""
    yield (
        f"merging the adapter into its base model, in float32 in host memory, needs "
        f"{misfit.predicted}; {describe_free_memory(misfit.free, misfit.device_type)}"
    )
    yield from describe_alternatives(misfit, "No smaller model in models/ fits either.")
    yield "You can still ask the adapter without merging it: python -m commands.ask"
