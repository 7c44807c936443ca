"""Which rows belong together, and their split into train, validation and test so that no text
crosses over.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from rapidfuzz import fuzz

from library.errors import InputError
from library.params import Shares
from library.records import SPLITS

SAME_QUERY = 90.0


def normalize(text: str) -> str:
    """What counts as the same text: case and white space do not matter."""
    return " ".join(text.casefold().split())


def hash_text(text: str) -> str:
    """Thirty-two hexadecimal digits: the same for texts that count as the same."""
    return hashlib.sha256(normalize(text).encode()).hexdigest()[:32]


def group_rows(texts: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Map each row id to its group: the connected components of rows over identical normalized
    texts.

    `texts` holds, by row id, the row's anchor, positive and (where it has one) negative, or what
    `hash_text` makes of them. A group is named by its smallest id.
    """
    parent = {row: row for row in texts}

    def root(row: str) -> str:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[bytes, str] = {}
    for row, row_texts in texts.items():
        for text in row_texts:
            key = hashlib.sha256(normalize(text).encode()).digest()
            one, other = sorted((root(row), root(first.setdefault(key, row))))
            parent[other] = one
    return {row: root(row) for row in texts}


def split_groups(groups: Mapping[str, str], shares: Shares, seed: int) -> dict[str, str]:
    """Map each row id to a split: whole groups, largest first, each to the split that is least
    full.

    Deterministic in (row ids, groups, shares, seed): file order does not matter. Raises InputError
    where there are fewer groups than splits.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for row, group in groups.items():
        members[group].append(row)
    if len(members) < len(SPLITS):
        raise InputError(
            f"{len(groups)} rows make {len(members)} group{'s' * (len(members) != 1)} (rows that "
            f"share an anchor, positive or negative text); {', '.join(SPLITS)} need at least "
            f"{len(SPLITS)} groups. Answers as short as yes and no tie all rows together: "
            "reports/profile.html says which texts are shared"
        )

    def order(group: str) -> tuple[int, bytes]:
        return -len(members[group]), hashlib.sha256(f"{seed}:{group}".encode()).digest()

    wanted = {split: getattr(shares, split) * len(groups) for split in SPLITS}
    counts = dict.fromkeys(SPLITS, 0)
    splits: dict[str, str] = {}
    ordered = sorted(members, key=order)
    for position, group in enumerate(ordered):
        empty = [split for split in SPLITS if counts[split] == 0]
        open_splits = empty if len(ordered) - position == len(empty) else SPLITS
        split = min(open_splits, key=lambda name: counts[name] / wanted[name])
        counts[split] += len(members[group])
        splits.update(dict.fromkeys(members[group], split))
    return splits


def check_overlap(texts_by_split: Mapping[str, Iterable[str]]) -> None:
    """Raise InputError where a normalized text stands in two splits.

    The last line of defence: `split_groups` avoids it.
    """
    seen: dict[str, str] = {}
    for split, texts in texts_by_split.items():
        for text in texts:
            other = seen.setdefault(normalize(text), split)
            if other != split:
                raise InputError(f"the same text is in {other} and {split}: {text[:80]!r}")


def pair_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Map the id of each row that swaps its answers with another of the same anchor to that other's
    id, both ways.

    Rows are mappings with id, anchor, positive and, where they have one, negative: the texts, or
    what `hash_text` makes of them. A row has one partner at most.
    """
    waiting: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    partners: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        if not row.get("negative"):
            continue
        anchor, positive, negative = (
            normalize(row[field]) for field in ("anchor", "positive", "negative")
        )
        others = waiting[anchor, negative, positive]
        if others:
            other = others.pop(0)
            partners[row["id"]], partners[other] = other, row["id"]
        else:
            waiting[anchor, positive, negative].append(row["id"])
    return partners


def find_contradictions(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Map the id of each row to that of another which states the opposite: of its anchor the same
    query, the answers exchanged.

    Rows are mappings as `pair_rows` takes them, with their query. Queries are the same where at
    least 90% of their characters are (rapidfuzz's ratio).
    """
    seen: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    found: dict[str, str] = {}
    for row in rows:
        if not row["negative"]:
            continue
        query, anchor, positive, negative = (
            normalize(row[field]) for field in ("query", "anchor", "positive", "negative")
        )
        for other, other_query in seen[anchor, negative, positive]:
            if fuzz.ratio(query, other_query) >= SAME_QUERY:
                found.setdefault(row["id"], other)
                found.setdefault(other, row["id"])
        seen[anchor, positive, negative].append((row["id"], query))
    return found
