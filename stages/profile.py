"""Describe the raw rows before any change: what is shared, what contradicts, which defects they hold, what fits.

Reads the file that `data.path` names, the base model's tokenizer and the prompt template. Writes metrics/profile.json and
reports/profile.html.
"""

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from cachetools import LRUCache, cached
from datasets import List, Value

from stages.corpus.groups import find_contradictions, group_rows, hash_text, pair_rows
from stages.corpus.neighbours import find_near_duplicates, sketch
from stages.corpus.rows import FIELDS, row_id, write_json, write_text
from stages.corpus.rules import RULES, find_defects
from stages.corpus.table import map_table, read_table
from stages.llm.prompts import BASE_DIR, build_messages, load_prompt, load_tokenizer, prompt_ids
from stages.params import load_params
from stages.run import run_stage
from stages.verdict.profile_page import render_profile

log = logging.getLogger(__name__)

WINDOWS = (384, 1024, 2048, 4096, 8192)  # tokens
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
EXAMPLES = 3  # places that stand for all
CACHED_CHARACTERS = 20_000_000  # of texts that a process has just measured: rows share their contexts and answers
SHOWN_ROWS, SHOWN_CHARACTERS = 1000, 30_000  # in the page's table, of each text: a browser and this stage's memory hold no more
FEATURES = {
    "place": Value("string"),
    "problem": Value("string"),
    "id": Value("string"),
    "query": Value("large_string"),
    "sketch": List(Value("uint32")),
    "defects": Value("string"),  # a JSON object
    **{f"{field}_key": Value("string") for field in FIELDS},
    **{f"{field}_{unit}": Value("int64") for field in FIELDS for unit in ("characters", "tokens")},
}

_tokenizer = cache(load_tokenizer)


@cached(LRUCache(CACHED_CHARACTERS, getsizeof=lambda measured: measured["characters"]))
def _measure(text: str, base_dir: Path, sketched: bool) -> dict[str, Any]:
    tokens = _tokenizer(base_dir).backend_tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
    return {
        "key": hash_text(text),
        "characters": len(text),
        "tokens": len(tokens),
        "sketch": sketch(text) if sketched else [],
        "defects": {rule: vars(finding) for rule, finding in find_defects(text).items()},
    }


def measure_row(row: Mapping[str, Any], base_dir: Path) -> dict[str, Any]:
    """What the profile needs of a row in place of its texts. FEATURES are its columns; null where a field holds no text."""
    measured = {field: _measure(row[field], base_dir, field == "anchor") for field in FIELDS if row[field]}
    present = {field: numbers for field, numbers in measured.items() if not row[field].isspace()}
    return {
        "place": row["place"],
        "problem": row["problem"],
        "id": row_id(row),
        "query": row["query"],
        "sketch": present["anchor"]["sketch"] if "anchor" in present else [],
        "defects": json.dumps({field: numbers["defects"] for field, numbers in measured.items()}),
        **{f"{field}_{name}": present.get(field, {}).get(name) for field in FIELDS for name in ("key", "characters", "tokens")},
    }


def describe_lengths(lengths: "pd.Series[float]") -> dict[str, float]:
    """Mean, extremes and quantiles of lengths; zeros where there is none."""
    if lengths.empty:
        lengths = pd.Series([0.0])
    numbers: dict[str, Any] = {"mean": lengths.mean(), "min": lengths.min(), "max": lengths.max()}
    numbers |= {name: lengths.quantile(share) for name, share in QUANTILES.items()}
    return {name: round(float(number), 1) for name, number in numbers.items()}


def forecast(tokens: pd.DataFrame, overhead: int, max_new_tokens: int, window: int) -> dict[str, float]:
    """What a window of so many tokens would hold, of rows whose query, positive and anchor tokens are given.

    `whole`: the share of rows whose question, answer and context fit. `context_kept`: the mean share of a context that is left once
    `overhead` (the template and its markup), the question and a reserve of `max_new_tokens` have taken their part.
    """
    if tokens.empty:
        return {"whole": 0.0, "context_kept": 0.0}
    left = window - overhead - tokens["query"] - max_new_tokens
    kept = (left / tokens["anchor"]).clip(0, 1)
    return {
        "whole": round(float((tokens.sum(axis=1) + overhead <= window).mean()), 6),
        "context_kept": round(float(kept.mean()), 6),
    }


def count_defects(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, Any]]]:
    """How often each rule finds something, by field; and by rule one example: place, field, before and after."""
    counts = {field: dict.fromkeys(RULES, 0) for field in FIELDS}
    examples: dict[str, dict[str, Any]] = {}
    for row in rows:
        for field, found in json.loads(row["defects"]).items():
            for rule, finding in found.items():
                counts[field][rule] += finding["count"]
                examples.setdefault(rule, {"place": row["place"], "field": field, **finding})
    return counts, examples


def describe_rows(table: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """What rows share and contradict, as numbers; and by each number's name up to three examples, as places.

    Rows are mappings with the columns of FEATURES. Only usable ones are compared, and of duplicates the first.
    """
    complete = [row for row in table if row["problem"] is None]
    rows: dict[str, dict[str, Any]] = {}
    examples: dict[str, list[str]] = {name: [] for name in ("unusable", "duplicates")}
    examples["unusable"] = [f"{row['place']}: {row['problem']}" for row in table if row["problem"] is not None]
    for row in complete:
        if row["id"] in rows:
            examples["duplicates"].append(f"{row['place']} is {rows[row['id']]['place']} again")
        else:
            keys = {field: row[f"{field}_key"] for field in ("anchor", "positive", "negative")}
            rows[row["id"]] = {**row, **keys}
    texts = {key: [row[field] for field in ("anchor", "positive", "negative") if row[field]] for key, row in rows.items()}
    sizes = Counter(group_rows(texts).values())
    by_anchor: dict[str, list[str]] = {}
    positives: dict[str, str] = {}
    negatives: dict[str, str] = {}
    for row in rows.values():
        by_anchor.setdefault(row["anchor"], []).append(row["place"])
        positives.setdefault(row["positive"], row["place"])
        if row["negative"]:
            negatives.setdefault(row["negative"], row["place"])
    shared = [standing for standing in by_anchor.values() if len(standing) > 1]
    both = [f"right in {positives[key]}, wrong in {negatives[key]}" for key in positives if key in negatives]
    contradictions = find_contradictions(rows.values())
    pairs = pair_rows([row for row in rows.values() if row["id"] not in contradictions])
    near = find_near_duplicates({row["anchor"]: row["sketch"] for row in rows.values()})
    compared = [row for row in rows.values() if row["negative_characters"]]
    longer = sum(row["positive_characters"] > row["negative_characters"] for row in compared)

    def places(pairs: Mapping[str, str]) -> list[str]:
        return [f"{rows[one]['place']} and {rows[other]['place']}" for one, other in pairs.items() if one < other]

    examples |= {
        "shared_contexts": [", ".join(standing[:EXAMPLES]) for standing in shared],
        "positive_here_negative_there": both,
        "swapped_pairs": places(pairs),
        "contradictory": places(contradictions),
        "near_duplicate_contexts": [f"{by_anchor[one][0]} and {by_anchor[other][0]}" for one, other in near],
    }
    numbers = {
        "rows": len(table),
        "unusable": len(table) - len(complete),
        "duplicates": len(complete) - len(rows),
        "with_negative": len(compared),
        "groups": {"count": len(sizes), "largest": max(sizes.values(), default=0)},
        "group_sizes": {str(size): count for size, count in sorted(Counter(sizes.values()).items())},
        "shared_contexts": len(shared),
        "rows_of_shared_contexts": sum(map(len, shared)),
        "positive_here_negative_there": len(both),
        "swapped_pairs": len(pairs) // 2,
        "contradictory": len(contradictions),
        "near_duplicate_contexts": len(near),
        "longer_positive_share": round(longer / len(compared), 6) if compared else 0.0,
    }
    return numbers, {name: found[:EXAMPLES] for name, found in examples.items()}


def main() -> None:
    """Profile the rows of `data.path`."""
    params = load_params()
    path = Path(params.data.path)
    columns = params.data.columns.model_dump()
    with tempfile.TemporaryDirectory(prefix="profile-", ignore_cleanup_errors=True) as cache_dir:
        raw = read_table(path, params.data.columns, Path(cache_dir))
        measured = map_table(raw, measure_row, FEATURES, base_dir=BASE_DIR)
        table = list(measured)
        shown = raw.select(range(min(len(raw), SHOWN_ROWS))).remove_columns(["place", "problem"]).to_pandas()
        shown = shown.apply(lambda column: column.str.slice(stop=SHOWN_CHARACTERS))
    profile, examples = describe_rows(table)
    lengths = {
        unit: pd.DataFrame({field: [row[f"{field}_{unit}"] for row in table] for field in FIELDS}, dtype="float64")
        for unit in ("characters", "tokens")
    }
    profile["columns"] = {
        field: {
            "missing": int(lengths["characters"][field].isna().sum()),
            "distinct": len({row[f"{field}_key"] for row in table} - {None}),
            **{unit: describe_lengths(frame[field].dropna()) for unit, frame in lengths.items()},
        }
        for field in FIELDS
    }
    profile["defects"], defects = count_defects(table)
    template = load_prompt(Path("prompts") / f"{params.format.prompt}.jinja")
    overhead = len(prompt_ids(load_tokenizer(BASE_DIR), build_messages(template, [], "")))
    usable = [row["problem"] is None for row in table]
    asked = lengths["tokens"].loc[usable, ["anchor", "query", "positive"]].dropna()
    windows = sorted({*WINDOWS, params.format.max_length})
    profile["forecast"] = {str(window): forecast(asked, overhead, params.format.max_new_tokens, window) for window in windows}
    profile["answers_beyond_max_new_tokens"] = int((asked["positive"] >= params.format.max_new_tokens).sum())
    write_json(Path("metrics/profile.json"), profile)
    rules = [name for name, on in params.clean.rules if on]
    page = render_profile(path, columns, params.format.model_dump(), rules, profile, examples, defects, lengths["tokens"], shown)
    write_text(Path("reports/profile.html"), page)
    log.info("%s: %d rows in %d groups", path, profile["rows"], profile["groups"]["count"])


if __name__ == "__main__":
    run_stage(main)
