"""Numbers for the profile: shared texts, contradictions, defects, and what fits."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from library.corpus.cleaning_rules import RULES
from library.corpus.groups import (
    Tie,
    Ties,
    drop_instructions,
    find_contradictions,
    find_disagreements,
    find_given_away,
    hash_text,
    list_ties,
    pair_rows,
)
from library.corpus.near_duplicates import find_near_duplicates
from library.corpus.rows import FIELDS, NOTHING
from library.corpus.shapes import UNANSWERABLE
from library.corpus.splitting import check_split, make_split
from library.errors import InputError
from library.params import SplitParams

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
EXAMPLES = 3  # places that stand for all
QUOTED = 60  # characters of a question or an answer


def describe_lengths(lengths: "pd.Series[float]") -> dict[str, float]:
    """Mean, extremes and quantiles of lengths; zeros if there are none."""
    if lengths.empty:
        lengths = pd.Series([0.0])
    numbers: dict[str, Any] = {"mean": lengths.mean(), "min": lengths.min(), "max": lengths.max()}
    numbers |= {name: lengths.quantile(share) for name, share in QUANTILES.items()}
    return {name: round(float(number), 1) for name, number in numbers.items()}


def forecast_window(
    tokens: pd.DataFrame, overhead: int, max_new_tokens: int, window: int
) -> dict[str, float]:
    """How much of the rows fits into a window of `window` tokens.

    The frame has the tokens of query, positive and anchor. `whole` is the share of rows whose
    question, answer and context fit. `context_kept` is the mean share of the context that remains
    after `overhead` (template and markup), question and the reserve of `max_new_tokens`.
    """
    if tokens.empty:
        return {"whole": 0.0, "context_kept": 0.0}
    left = window - overhead - tokens["query"] - max_new_tokens
    kept = (left / tokens["anchor"].replace(0, 1)).clip(0, 1)
    return {
        "whole": round(float((tokens.sum(axis=1) + overhead <= window).mean()), 6),
        "context_kept": round(float(kept.mean()), 6),
    }


def count_defects(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, Any]]]:
    """The findings of each rule by field, and one example per rule: place, field, before and
    after.
    """
    counts = {field: dict.fromkeys(RULES, 0) for field in FIELDS}
    examples: dict[str, dict[str, Any]] = {}
    for row in rows:
        for field, found in json.loads(row["defects"]).items():
            for rule, finding in found.items():
                counts[field][rule] += finding["count"]
                examples.setdefault(rule, {"place": row["place"], "field": field, **finding})
    return counts, examples


def describe_rows(
    table: Sequence[Mapping[str, Any]], params: SplitParams
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Numbers on what rows share, contradict and how they would be split, with up to three places
    each.

    Rows are mappings with the columns of FEATURES. Only usable rows are compared, and only the
    first of several duplicates.
    """
    complete = [row for row in table if row["problem"] is None]
    rows: dict[str, dict[str, Any]] = {}
    examples: dict[str, list[str]] = {name: [] for name in ("unusable", "duplicates")}
    examples["unusable"] = [
        f"{row['place']}: {row['problem']}" for row in table if row["problem"] is not None
    ]
    examples["nothing"] = [text for text in examples["unusable"] if NOTHING in text]
    for row in complete:
        if row["id"] in rows:
            examples["duplicates"].append(f"{row['place']} is {rows[row['id']]['place']} again")
        else:
            keys = {field: row[f"{field}_key"] for field in ("anchor", "positive", "negative")}
            keys["anchor"] = keys["anchor"] or ""
            keys["also_right"] = list(json.loads(row["answers"]))
            rows[row["id"]] = {**row, **keys}
    first_places: dict[str, str] = {}
    for row in rows.values():
        first_places.setdefault(row["compared"], row["place"])
    near = find_near_duplicates(
        {row["compared"]: row["sketch"] for row in rows.values() if row["sketch"]}
    )
    tied = {
        key: list_ties(
            row["anchor"],
            hash_text(row["query"]),
            json.loads(row["answers"]),
            params,
            [Tie(*tie) for tie in json.loads(row["turns"])],
        )
        for key, row in rows.items()
    }
    shown = {key: text for row in rows.values() for key, text in json.loads(row["shown"]).items()}
    contexts = {key: row["context_id"] for key, row in rows.items()}
    same = near if params.near_duplicate_contexts else []
    ties = Ties(drop_instructions(tied), contexts, same, shown)
    split = make_split(ties, params)
    sizes = Counter(split.groups.values())
    by_anchor: dict[str, list[str]] = {}
    positives: dict[str, str] = {}
    negatives: dict[str, str] = {}
    for row in rows.values():
        if row["anchor"]:
            by_anchor.setdefault(row["anchor"], []).append(row["place"])
        positives.setdefault(row["positive"], row["place"])
        if row["negative"]:
            negatives.setdefault(row["negative"], row["place"])
    shared = [standing for standing in by_anchor.values() if len(standing) > 1]
    both = [
        f"right in {positives[key]}, wrong in {negatives[key]}"
        for key in positives
        if key in negatives
    ]
    contradictions = find_contradictions(rows.values())
    disagreements = find_disagreements(
        row for row in rows.values() if row["id"] not in contradictions
    )
    pairs = pair_rows([row for row in rows.values() if row["id"] not in contradictions])
    trained = [row for row in rows.values() if split.splits[row["id"]] == "train"]
    given_away = find_given_away(trained, rows.values(), pairs)
    try:
        faults = check_split(split, ties, params)
    except InputError as error:
        faults = str(error).splitlines()
    counts = split.count()
    asked = params.shares.model_dump()
    compared = [row for row in rows.values() if row["negative_characters"]]
    longer = sum(row["positive_characters"] > row["negative_characters"] for row in compared)

    def places(pairs: Mapping[str, str]) -> list[str]:
        return [
            f"{rows[one]['place']} and {rows[other]['place']}"
            for one, other in pairs.items()
            if one < other
        ]

    def quote(text: str) -> str:
        return f"“{text[:QUOTED]}{'…' * (len(text) > QUOTED)}”"

    def answers(keys: Sequence[str]) -> str:
        said = [f"{rows[key]['place']}: {quote(shown[rows[key]['positive']])}" for key in keys]
        return f"{quote(rows[keys[0]]['query'])} {'; '.join(said[:EXAMPLES])}"

    examples |= {
        "disagreeing": [answers(keys) for keys in disagreements],
        "several_wrong": [
            f"{row['place']}: {row['wrong']}" for row in rows.values() if row["wrong"] > 1
        ],
        "shared_contexts": [", ".join(standing[:EXAMPLES]) for standing in shared],
        "positive_here_negative_there": both,
        "swapped_pairs": places(pairs),
        "contradictory": places(contradictions),
        "largest_group": [split.describe_largest()],
        "shares": faults,
        "near_duplicate_contexts": [
            f"{first_places[one]} and {first_places[other]}" for one, other in near
        ],
    }
    numbers: dict[str, Any] = {
        "rows": len(table),
        "unusable": len(table) - len(complete),
        "unanswerable": sum(row["problem"] == UNANSWERABLE for row in table),
        "nothing": len(examples["nothing"]),
        "duplicates": len(complete) - len(rows),
        "with_negative": len(compared),
        "groups": {"count": len(sizes), "largest": split.largest},
        "splits": {
            name: {
                "rows": number,
                "groups": groups,
                "share": round(number / max(1, len(rows)), 6),
                "asked_share": asked[name],
                "negatives_given_away": sum(split.splits[key] == name for key in given_away),
            }
            for name, (number, groups) in counts.items()
        },
        "group_sizes": {
            str(size): count for size, count in sorted(Counter(sizes.values()).items())
        },
        "shared_contexts": len(shared),
        "rows_of_shared_contexts": sum(map(len, shared)),
        "positive_here_negative_there": len(both),
        "swapped_pairs": len(pairs) // 2,
        "contradictory": len(contradictions),
        "near_duplicate_contexts": len(near),
        "longer_positive_share": round(longer / len(compared), 6) if compared else 0.0,
    }
    if disagreements:  # written only if there are any
        asked_again = sum(map(len, disagreements))
        numbers["disagreeing"] = {"questions": len(disagreements), "rows": asked_again}
    if examples["several_wrong"]:
        numbers["several_wrong"] = len(examples["several_wrong"])
    return numbers, {name: found[:EXAMPLES] for name, found in examples.items()}
