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

from datasets import Value
from tqdm import tqdm

from stages.corpus.groups import find_contradictions, hash_text
from stages.corpus.rows import FIELDS, check_rejected_share, open_atomic, row_id, write_json, write_jsonl, write_line
from stages.corpus.rules import clean_text
from stages.corpus.table import TEXTS, map_table, read_table
from stages.params import load_params
from stages.run import run_stage

log = logging.getLogger(__name__)

SHOWN_REJECTED = 10
FEATURES = {
    "place": Value("string"),
    "problem": Value("string"),
    "id": Value("string"),
    "key": Value("string"),
    "changes": Value("string"),  # a JSON array
    **{f"{field}_key": Value("string") for field in FIELDS},
    **TEXTS,
}


def clean_row(row: Mapping[str, Any], rules: Collection[str], columns: Mapping[str, str | None]) -> dict[str, Any]:
    """A raw row with every text cleaned by the same rules, and the changes; or its problem. FEATURES are its columns."""
    texts: dict[str, Any] = dict.fromkeys(FIELDS)
    changes = []
    problem = row["problem"]
    for field in FIELDS:
        if problem is not None or row[field] is None:
            continue
        texts[field], found = clean_text(row[field], rules)
        changes += [{"field": field, "rule": rule, **vars(finding)} for rule, finding in found.items()]
    if problem is None:
        problem = next((f'"{columns[field]}" is empty once cleaned' for field in FIELDS if texts[field] == ""), None)
    if problem is None and texts["positive"] == texts["negative"]:
        problem = f'"{columns["negative"]}" is the same text as "{columns["positive"]}"'
    return {
        "place": row["place"],
        "problem": problem,
        "id": row_id(row),
        "key": row_id(texts),
        "changes": json.dumps(changes),
        **{f"{field}_key": text and hash_text(text) for field, text in texts.items()},
        **texts,
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
        elif row["key"] in kept:
            rejected[index] = f"exact duplicate of {kept[row['key']][1]['place']}"
        else:
            kept[row["key"]] = index, row
    contradictions = find_contradictions(
        {"id": row["id"], **{field: row[f"{field}_key"] for field in FIELDS}, "query": row["query"]} for _, row in kept.values()
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
            table.remove_columns(["changes", "anchor", "positive", "negative"]), params.clean.on_contradiction == "drop"
        )
        rejected = [
            {"file": str(path), "place": place, "reason": problems[index]}
            for index, place in enumerate(table["place"])
            if index in problems
        ]
        for record in rejected[:SHOWN_REJECTED]:
            log.info("rejected %s: %s", record["place"], record["reason"])
        if len(rejected) > SHOWN_REJECTED:
            log.info("%d rejected rows in all: see data/clean/rejected.jsonl", len(rejected))
        check_rejected_share(rejected, len(table), params.clean.max_rejected_share)
        out_dir = Path("data/clean")
        changed: Counter[str] = Counter()
        with_negative = 0
        with open_atomic(out_dir / "rows.jsonl") as rows, open_atomic(out_dir / "changes.jsonl") as changes:
            for index, row in enumerate(tqdm(table, desc="clean", unit="row", mininterval=2)):
                if index in problems:
                    continue
                texts = {field: row[field] for field in FIELDS}
                write_line(rows, {"id": row["id"], "place": row["place"], **texts, "contradicts": contradictions.get(row["id"])})
                with_negative += row["negative"] is not None
                for change in json.loads(row["changes"]):
                    write_line(changes, {"id": row["id"], **change})
                    changed[change["rule"]] += change["count"]
        write_jsonl(out_dir / "rejected.jsonl", rejected)
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
