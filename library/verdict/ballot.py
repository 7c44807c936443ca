"""The items of a blind vote: pairs, repeats and catch trials."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from library.params import ReviewParams
from library.records import FormattedRow


def _draw(seed: int, *names: str) -> bytes:
    return hashlib.sha256(":".join((str(seed), *names)).encode()).digest()


def choose_rows(rows: Sequence[FormattedRow], count: int, seed: int) -> list[FormattedRow]:
    """Up to `count` rows, at most one of each group, spread over the lengths of their references.

    One row comes from each of `count` strata.
    """
    if not rows or not count:
        return []
    by_group: dict[str, FormattedRow] = {}
    for row in sorted(rows, key=lambda row: _draw(seed, row["id"])):
        by_group.setdefault(row["group"], row)
    ordered = sorted(by_group.values(), key=lambda row: (len(row["positive"]), row["id"]))
    strata = np.array_split(np.arange(len(ordered)), min(count, len(ordered)))
    return [
        min((ordered[i] for i in stratum), key=lambda row: _draw(seed, "stratum", row["id"]))
        for stratum in strata
    ]


def make_items(
    rows: Sequence[FormattedRow],
    answers: Mapping[str, Mapping[str, str]],
    params: ReviewParams,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """The items to vote on, in order, and the key that says whose answers they are.

    `answers` are by system (each of `params.systems`) and row id. The key has, by item, the row,
    the kind, and the systems of `x` and `y`. Rows whose two answers are the same text are left out.
    Some rows come again at the end with sides swapped (`repeat`); others are mixed in with the same
    answer on both sides (`catch`). `reference` says whether the reference is shown after the vote:
    for a pair that comes again, only the second time.
    """
    rng = random.Random(params.seed)
    one, other = (answers[system] for system in params.systems)
    differing = [row for row in rows if one[row["id"]] != other[row["id"]]]
    chosen = choose_rows(differing, params.pairs, params.seed)
    rng.shuffle(chosen)
    groups = {row["group"] for row in chosen}
    elsewhere = [row for row in rows if row["group"] not in groups]
    others = choose_rows(elsewhere, params.catch_trials, params.seed) if chosen else []
    order: list[tuple[str, FormattedRow]] = [("pair", row) for row in chosen]
    for row in others:
        order.insert(rng.randint(1, len(order)), ("catch", row))
    order += [("repeat", row) for row in chosen[: params.repeats]]
    items: list[dict[str, Any]] = []
    key: dict[str, dict[str, str]] = {}
    seen: dict[str, str] = {}
    for number, (kind, row) in enumerate(order, 1):
        x, y = rng.sample(params.systems, 2)
        if kind == "repeat":
            x, y = (key[seen[row["id"]]][name] for name in ("x", "y"))
        elif kind == "catch":
            y = x
        item = str(number)
        key[item] = {
            "row": row["id"],
            "kind": kind,
            "x": x,
            "y": y,
            **({"of": seen[row["id"]]} if kind == "repeat" else {}),
        }
        seen.setdefault(row["id"], item)
        texts = {name: answers[system][row["id"]] for name, system in (("x", x), ("y", y))}
        items.append({"item": item, "row": row["id"], "swap": kind == "repeat", **texts})
    again = {entry["of"] for entry in key.values() if "of" in entry}
    for made in items:  # after seeing the reference, nobody judges a pair as before
        made["reference"] = made["item"] not in again
    return items, key
