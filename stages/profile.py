"""Describe the raw rows before any change: sizes, what is missing, what is shared, and which defects they hold.

Reads the file that `data.path` names. Writes metrics/profile.json and reports/profile.html.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.corpus.groups import group_rows, normalize, pair_rows
from stages.corpus.rows import FIELDS, RawRow, find_problem, read_raw, row_id, write_json, write_text
from stages.corpus.rules import RULES, count_defects
from stages.params import load_params
from stages.run import run_stage

log = logging.getLogger(__name__)


def describe_column(values: list[Any]) -> dict[str, float | int]:
    """Counts, and characters per text, of one column. Only non-empty strings enter the character statistics."""
    texts = pd.Series([value for value in values if isinstance(value, str) and value.strip()], dtype="str")
    lengths = texts.str.len()
    return {
        "missing": len(values) - len(texts),
        "distinct": int(texts.nunique()),
        "characters_min": int(lengths.min()) if len(texts) else 0,
        "characters_median": float(lengths.median()) if len(texts) else 0.0,
        "characters_mean": round(float(lengths.mean()), 1) if len(texts) else 0.0,
        "characters_max": int(lengths.max()) if len(texts) else 0,
    }


def describe_rows(rows: list[RawRow], columns: Mapping[str, str | None]) -> dict[str, Any]:
    """The numbers of metrics/profile.json."""
    complete = {row_id(row.fields): {"id": row_id(row.fields), **row.fields} for row in rows if find_problem(row, columns) is None}
    texts = {key: [row[name] for name in ("anchor", "positive", "negative") if row.get(name)] for key, row in complete.items()}
    sizes = Counter(group_rows(texts).values())
    anchors = Counter(normalize(row["anchor"]) for row in complete.values())
    positives = {normalize(row["positive"]) for row in complete.values()}
    negatives = {normalize(row["negative"]) for row in complete.values() if row.get("negative")}
    defects = {
        name: dict.fromkeys(RULES, 0)
        | sum((count_defects(row.fields[name]) for row in rows if isinstance(row.fields.get(name), str)), Counter())
        for name in FIELDS
    }
    return {
        "rows": len(rows),
        "complete": len(complete),
        "columns": {name: describe_column([row.fields.get(name) for row in rows]) for name in FIELDS},
        "groups": {"count": len(sizes), "largest": max(sizes.values(), default=0)},
        "shared_anchors": sum(count > 1 for count in anchors.values()),
        "positive_here_negative_there": len(positives & negatives),
        "swapped_pairs": len(pair_rows(list(complete.values()))) // 2,
        "defects": defects,
    }


def main() -> None:
    """Profile the rows of `data.path`."""
    params = load_params()
    path = Path(params.data.path)
    columns = params.data.columns.model_dump()
    profile = describe_rows(list(read_raw(path, params.data.columns)), columns)
    write_json(Path("metrics/profile.json"), profile)
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    page = pages.get_template("profile.html.jinja").render(path=path, profile=profile, columns=columns)
    write_text(Path("reports/profile.html"), page)
    log.info("%s: %d rows in %d groups", path, profile["rows"], profile["groups"]["count"])


if __name__ == "__main__":
    run_stage(main)
