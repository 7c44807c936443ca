"""Clean raw rows into one form, and give every other row its reason."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cachetools import LRUCache, cached
from datasets import Value

from library.corpus.cleaning_rules import Finding, clean_text
from library.corpus.groups import context_id, find_contradictions, hash_text, normalize
from library.corpus.rows import FIELDS, LISTS, row_id
from library.files import to_line

# cache of cleaned texts per process, because rows share contexts and answers
CACHED_CHARACTERS = 20_000_000

FEATURES = {
    "place": Value("string"),
    "problem": Value("string"),
    "id": Value("string"),
    "clean_id": Value("string"),
    "query": Value("large_string"),
    **{f"{field}_key": Value("string") for field in ("anchor", "positive", "negative")},
    "line": Value("large_string"),  # of rows.jsonl
    "changes": Value("string"),  # lines of changes.jsonl
    "counts": Value("string"),  # a JSON object: changes by rule
}


@cached(LRUCache(CACHED_CHARACTERS, getsizeof=lambda made: len(made[0])))
def _clean(text: str, rules: tuple[str, ...]) -> tuple[str, dict[str, Finding], str]:
    cleaned, found = clean_text(text, rules)
    return cleaned, found, hash_text(cleaned)


def clean_row(
    row: Mapping[str, Any], rules: Collection[str], columns: Mapping[str, str | None]
) -> dict[str, Any]:
    """Clean every text of a raw row; returns the row with its changes, or with its problem.

    FEATURES are the columns of the result.
    """
    texts: dict[str, Any] = dict.fromkeys(FIELDS)
    changes = []
    counts: Counter[str] = Counter()
    keys: dict[str, str] = {}
    problem = row["problem"]
    key = row_id(row)

    def clean(field: str, text: str) -> tuple[str, str]:
        cleaned, found, hashed = _clean(text, tuple(rules))
        for rule, finding in found.items():
            changes.append(to_line({"id": key, "field": field, "rule": rule, **vars(finding)}))
            counts[rule] += finding.count
        return cleaned, hashed

    for field in FIELDS:
        if problem is None and row[field] is not None:
            texts[field], keys[field] = clean(field, row[field])
    lists = {
        field: json.loads(row[field]) if problem is None and row[field] else [] for field in LISTS
    }
    right = {clean("also_right", text)[0]: None for text in lists["also_right"]}
    lists["also_right"] = [text for text in right if text not in ("", texts["positive"])]
    for turn in lists["turns"]:
        turn["content"] = clean("turns", turn["content"])[0]
    if problem is None and row["dropped"]:
        finding = Finding(1, row["dropped"], "")
        changes.append(
            to_line({"id": key, "field": "negative", "rule": "nothing", **vars(finding)})
        )
        counts["nothing"] += 1
    if problem is None:
        problem = next(
            (
                f'"{columns[field]}" is empty once cleaned'
                for field in FIELDS
                if texts[field] == "" and row[field]
            ),
            None,
        )
    right_texts = [normalize(text) for text in (texts["positive"], *lists["also_right"]) if text]
    if problem is None and texts["negative"] and normalize(texts["negative"]) in right_texts:
        problem = f'"{columns["negative"]}" is the same text as "{columns["positive"]}"'
    return {
        "place": row["place"],
        "problem": problem,
        "id": key,
        "clean_id": row_id(texts | {name: to_line(part) for name, part in lists.items() if part}),
        "query": texts["query"],
        **{f"{field}_key": keys.get(field) for field in ("positive", "negative")},
        "anchor_key": keys.get("anchor") or hash_text(""),
        "line": to_line(
            {
                "id": key,
                "place": row["place"],
                "context_id": context_id(row["anchor"], row["query"]),
                **texts,
                "anchor": texts["anchor"] or "",
                **lists,
                "contradicts": None,
            }
        ),
        "changes": "".join(changes),
        "counts": json.dumps(counts),
    }


def find_rejected(
    rows: Iterable[Mapping[str, Any]], drop_contradictions: bool
) -> tuple[dict[int, str], dict[str, str]]:
    """The rejected rows by index with their reasons, and the rows that contradict another, by id.

    A contradicting row maps to the other's id. Duplicates are recognized by their cleaned text; the
    first one stays. Rows are mappings with the columns of FEATURES except the texts.
    """
    rejected: dict[int, str] = {}
    kept: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for index, row in enumerate(rows):
        if row["problem"] is not None:
            rejected[index] = row["problem"]
        elif row["clean_id"] in kept:
            rejected[index] = f"exact duplicate of {kept[row['clean_id']][1]['place']}"
        else:
            kept[row["clean_id"]] = index, row
    contradictions = find_contradictions(
        {
            "id": row["id"],
            "query": row["query"],
            **{field: row[f"{field}_key"] for field in ("anchor", "positive", "negative")},
        }
        for _, row in kept.values()
    )
    if drop_contradictions:
        places = {row["id"]: row["place"] for _, row in kept.values()}
        for index, row in kept.values():
            if (other := contradictions.get(row["id"])) is not None:
                rejected[index] = (
                    f"contradicts {places[other]}: the same context and question, the answers "
                    "exchanged"
                )
    return rejected, contradictions
