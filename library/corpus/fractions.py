"""Take part of the train rows, for learning curves."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from library.records import FormattedRow

R = TypeVar("R", bound=FormattedRow)


def choose_groups(groups: Iterable[str], fraction: float) -> set[str]:
    """A share of the groups, at least one: those with the smallest hashes of their names.

    A smaller share therefore lies inside a larger one.
    """
    ordered = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    return set(ordered[: max(1, round(fraction * len(ordered)))])


def take_fraction(rows: Sequence[R], fraction: float) -> list[R]:
    """The rows of a share of their groups, in their order."""
    chosen = choose_groups((row["group"] for row in rows), fraction)
    return [row for row in rows if row["group"] in chosen]
