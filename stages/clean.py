"""Clean the raw rows: usable ones in one form, every other with its reason, every change with an example.

Reads the file that `data.path` names. Writes data/clean/: rows.jsonl, rejected.jsonl, changes.jsonl; and metrics/clean.json.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.corpus.rows import FIELDS, RawRow, check_rejected_share, find_problem, read_raw, row_id, write_json, write_jsonl
from stages.corpus.rules import clean_text
from stages.params import load_params
from stages.run import run_stage

log = logging.getLogger(__name__)

EXAMPLE_CHARACTERS = 60


@dataclass
class Cleaned:
    """What became of the raw rows: three lists of records that are written as they are."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)


def first_difference(before: str, after: str) -> tuple[str, str]:
    """The surroundings of the first place where two texts differ, in both."""
    start = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    start = max(0, start - EXAMPLE_CHARACTERS // 3)
    return before[start : start + EXAMPLE_CHARACTERS], after[start : start + EXAMPLE_CHARACTERS]


def clean_rows(raw: Iterable[RawRow], columns: Mapping[str, str | None], rules: Collection[str]) -> Cleaned:
    """Sort raw rows into usable and rejected, cleaning every field of the usable ones by the same rules."""
    result = Cleaned()
    places: dict[str, str] = {}
    for row in raw:
        problem = find_problem(row, columns)
        if problem is None:
            fields: dict[str, str | None] = {}
            changes = []
            for name in FIELDS:
                before = row.fields.get(name)
                if before is None:
                    fields[name] = None
                    continue
                after, counts = clean_text(before, rules)
                fields[name] = after
                if counts:
                    old, new = first_difference(before, after)
                    changes.append({"field": name, "rules": dict(counts), "before": old, "after": new})
            problem = next((f'"{columns[name]}" is empty once cleaned' for name in FIELDS if fields[name] == ""), None)
            if problem is None and fields["positive"] == fields["negative"]:
                problem = f'"{columns["negative"]}" is the same text as "{columns["positive"]}"'
            key = row_id(fields)
            if problem is None and key in places:
                problem = f"exact duplicate of {places[key]}"
            if problem is None:
                places[key] = row.place
                identity = row_id(row.fields)
                result.rows.append({"id": identity, "place": row.place, **fields})
                result.changes += [{"id": identity, **change} for change in changes]
        if problem is not None:
            log.info("rejected %s: %s", row.place, problem)
            result.rejected.append({"place": row.place, "reason": problem})
    return result


def main() -> None:
    """Clean the rows of `data.path`. Fails where more than `clean.max_rejected_share` of them can't be used."""
    params = load_params()
    path = Path(params.data.path)
    columns = params.data.columns.model_dump()
    result = clean_rows(read_raw(path, params.data.columns), columns, [name for name, on in params.clean.rules if on])
    total = len(result.rows) + len(result.rejected)
    rejected = [{"file": str(path), **record} for record in result.rejected]
    check_rejected_share(rejected, total, params.clean.max_rejected_share)
    out_dir = Path("data/clean")
    write_jsonl(out_dir / "rows.jsonl", result.rows)
    write_jsonl(out_dir / "rejected.jsonl", rejected)
    write_jsonl(out_dir / "changes.jsonl", result.changes)
    changes: Counter[str] = Counter()
    for change in result.changes:
        changes.update(change["rules"])
    metrics = {
        "rows": total,
        "kept": len(result.rows),
        "rejected": len(rejected),
        "rejected_share": round(len(rejected) / total, 6),
        "with_negative": sum(row["negative"] is not None for row in result.rows),
        "changes": {name: changes[name] for name, on in params.clean.rules if on},
    }
    write_json(Path("metrics/clean.json"), metrics)
    log.info("%s: kept %d of %d rows, %d changes", path, len(result.rows), total, changes.total())


if __name__ == "__main__":
    run_stage(main)
