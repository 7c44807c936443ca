"""What does not fit into memory and what would, as data and as text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from library.llm.memory.formula import MemoryEstimate
from library.llm.memory.measuring import SPARE
from library.units import gib


@dataclass(frozen=True)
class ShorterLength:
    """A lower format.max_length, and the tokens of the longest formatted row with it.

    It leaves each question at least `room` tokens for passages of about `passage` tokens each.
    """

    max_length: int
    longest: int
    room: int = 0
    passage: int = 0


@dataclass(frozen=True)
class Alternative:
    """A single change, as the user would make it, and the memory needed with it."""

    change: str
    predicted: MemoryEstimate
    shorter: ShorterLength | None = None


@dataclass(frozen=True)
class Misfit:
    """What does not fit into the `free` bytes, and the changes that would.

    In training, it is a batch of `unit` in a `stage`.
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
    """Say how much memory is free when something did not fit."""
    return f"{gib(free)} are free on {device_type}, of which {SPARE:.0%} stay free"


def describe_alternative(alternative: Alternative) -> str:
    """Describe a change and its memory; for a shorter length also the room for passages."""
    shorter = alternative.shorter
    leaves = ""
    if shorter is not None and shorter.passage:
        leaves = (
            f" (leaves at least {shorter.room} tokens for passages of about {shorter.passage} each)"
        )
    return f"{alternative.change}{leaves}: {alternative.predicted}"


def describe_alternatives(misfit: Misfit, nothing: str) -> Iterator[str]:
    """Yield a line per change that would fit, or `nothing` if none does."""
    if not misfit.alternatives:
        yield nothing
        return
    yield "what would fit:"
    for alternative in misfit.alternatives:
        yield f"  {describe_alternative(alternative)}"


def describe_training_misfit(misfit: Misfit) -> Iterator[str]:
    """Yield lines: what training needs, what is free, and the changes that would fit."""
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
    """Yield lines: what a prompt of `prompt` tokens needs, what is free, and the changes that would
    fit.
    """
    yield (
        f"answering a prompt of {prompt} tokens needs {misfit.predicted}; "
        f"{describe_free_memory(misfit.free, misfit.device_type)}"
    )
    nothing = "No single change makes it fit. Combine a shorter prompt with a smaller model."
    yield from describe_alternatives(misfit, nothing)


def describe_merging_misfit(misfit: Misfit, asking: str) -> Iterator[str]:
    """Yield lines: what merging needs, what is free, the models that would fit, and the command
    `asking` that needs no merging.
    """
    yield (
        f"merging the adapter into its base model, in float32 in host memory, needs "
        f"{misfit.predicted}; {describe_free_memory(misfit.free, misfit.device_type)}"
    )
    yield from describe_alternatives(misfit, "No smaller model in models/ fits either.")
    yield f"You can still ask the adapter without merging it: {asking}"
