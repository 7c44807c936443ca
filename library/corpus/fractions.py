"""Part of the train rows, to see what fewer of them would have taught."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from library.records import FormattedRow

R = TypeVar("R", bound=FormattedRow)


def choose_groups(groups: Iterable[str], fraction: float) -> set[str]:
    """A share of the groups, one at least: those whose names' hashes are smallest, so that a
    smaller share lies within a larger one.
    """
    ordered = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    return set(ordered[: max(1, round(fraction * len(ordered)))])


def take_fraction(rows: Sequence[R], fraction: float) -> list[R]:
    """The rows of that share of their groups, in their order."""
    chosen = choose_groups((row["group"] for row in rows), fraction)
    return [row for row in rows if row["group"] in chosen]
