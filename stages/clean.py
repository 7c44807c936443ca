"""Clean the raw rows: usable ones in one form, every other with its reason, every change with an example.

Reads the file that `data.path` names. Writes data/clean/: rows.jsonl, rejected.jsonl, changes.jsonl; and metrics/clean.json.
"""

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from cachetools import LRUCache, cached
from datasets import Value
from tqdm import tqdm

from stages.corpus.groups import find_contradictions, hash_text
from stages.corpus.rows import FIELDS, check_rejected_share, open_atomic, row_id, to_line, write_json, write_jsonl
from stages.corpus.rules import Finding, clean_text
from stages.corpus.table import map_table, read_table
from stages.params import load_params
from stages.run import run_stage

log = logging.getLogger(__name__)

SHOWN_REJECTED = 10
CACHED_CHARACTERS = 20_000_000  # of texts that a process has just cleaned: rows share their contexts and answers
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


def clean_row(row: Mapping[str, Any], rules: Collection[str], columns: Mapping[str, str | None]) -> dict[str, Any]:
    """A raw row with every text cleaned by the same rules, and the changes; or its problem. FEATURES are its columns."""
    texts: dict[str, Any] = dict.fromkeys(FIELDS)
    changes = []
    counts: Counter[str] = Counter()
    keys: dict[str, str] = {}
    problem = row["problem"]
    key = row_id(row)
    for field in FIELDS:
        if problem is not None or row[field] is None:
            continue
        texts[field], found, keys[field] = _clean(row[field], tuple(rules))
        for rule, finding in found.items():
            changes.append(to_line({"id": key, "field": field, "rule": rule, **vars(finding)}))
            counts[rule] += finding.count
    if problem is None:
        problem = next((f'"{columns[field]}" is empty once cleaned' for field in FIELDS if texts[field] == ""), None)
    if problem is None and texts["positive"] == texts["negative"]:
        problem = f'"{columns["negative"]}" is the same text as "{columns["positive"]}"'
    return {
        "place": row["place"],
        "problem": problem,
        "id": key,
        "clean_id": row_id(texts),
        "query": texts["query"],
        **{f"{field}_key": keys.get(field) for field in ("anchor", "positive", "negative")},
        "line": to_line({"id": key, "place": row["place"], **texts, "contradicts": None}),
        "changes": "".join(changes),
        "counts": json.dumps(counts),
    }


def find_rejected(rows: Iterable[Mapping[str, Any]], drop_contradictions: bool) -> tuple[dict[int, str], dict[str, str]]:
    """Which rows are rejected, by index, and why; and which rows contradict another, by id, with the other's id.

    Duplicates are told by their cleaned text; the first one stays. Rows are mappings with the columns of FEATURES but the texts.
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
        {"id": row["id"], "query": row["query"], **{field: row[f"{field}_key"] for field in ("anchor", "positive", "negative")}}
        for _, row in kept.values()
    )
    if drop_contradictions:
        places = {row["id"]: row["place"] for _, row in kept.values()}
        for index, row in kept.values():
            if (other := contradictions.get(row["id"])) is not None:
                rejected[index] = f"contradicts {places[other]}: the same context and question, the answers exchanged"
    return rejected, contradictions


def main() -> None:
    """Clean the rows of `data.path`. Fails where more than `clean.max_rejected_share` of them can't be used."""
    params = load_params()
    path = Path(params.data.path)
    columns = params.data.columns.model_dump()
    rules = [name for name, on in params.clean.rules if on]
    # on Windows a file that is mapped into memory can't be removed: it goes with the system's own cleaning
    with tempfile.TemporaryDirectory(prefix="clean-", ignore_cleanup_errors=True) as cache:
        raw = read_table(path, params.data.columns, Path(cache))
        table = map_table(raw, clean_row, FEATURES, rules=rules, columns=columns)
        problems, contradictions = find_rejected(
            table.remove_columns(["line", "changes", "counts"]), params.clean.on_contradiction == "drop"
        )
        rejected = [
            {"file": str(path), "place": place, "id": key, "reason": problems[index]}
            for index, (place, key) in enumerate(zip(table["place"], table["id"], strict=True))
            if index in problems
        ]
        for record in rejected[:SHOWN_REJECTED]:
            log.info("rejected %s: %s", record["place"], record["reason"])
        if len(rejected) > SHOWN_REJECTED:
            log.info("%d rejected rows in all: see data/clean/rejected.jsonl", len(rejected))
        out_dir = Path("data/clean")
        write_jsonl(out_dir / "rejected.jsonl", rejected)
        check_rejected_share(rejected, len(table), params.clean.max_rejected_share)
        changed: Counter[str] = Counter()
        with_negative = 0
        with open_atomic(out_dir / "rows.jsonl") as rows, open_atomic(out_dir / "changes.jsonl") as changes:
            for index, row in enumerate(tqdm(table, desc="clean", unit="row", mininterval=2)):
                if index in problems:
                    continue
                other = contradictions.get(row["id"])
                rows.write(to_line({**json.loads(row["line"]), "contradicts": other}) if other else row["line"])
                changes.write(row["changes"])
                changed.update(json.loads(row["counts"]))
                with_negative += row["negative_key"] is not None
    metrics = {
        "rows": len(table),
        "kept": len(table) - len(rejected),
        "rejected": len(rejected),
        "rejected_share": round(len(rejected) / len(table), 6),
        "with_negative": with_negative,
        "contradictory": len(contradictions),
        "changes": {name: changed[name] for name in rules},
    }
    write_json(Path("metrics/clean.json"), metrics)
    log.info("%s: kept %d of %d rows, %d changes", path, metrics["kept"], len(table), changed.total())


if __name__ == "__main__":
    run_stage(main)
