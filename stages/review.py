"""Make the page on which people vote without knowing whose answer is which.

Reads data/formatted/test.jsonl, data/clean/rows.jsonl and data/predictions/{zeroshot,sft}.jsonl. Writes reports/review.html, in
which no system is named, and reports/review_key.json, which tells. Votes come back as files in data/votes/, for `evaluate`.
"""

import hashlib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.corpus.passages import passages_given
from stages.corpus.rows import read_jsonl, write_json, write_text
from stages.params import ReviewParams, load_params
from stages.run import run_stage
from stages.verdict.pages import render_page

log = logging.getLogger(__name__)

SYSTEMS = ("zeroshot", "sft")


def _draw(seed: int, *names: str) -> bytes:
    return hashlib.sha256(":".join((str(seed), *names)).encode()).digest()


def choose_rows(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Mapping[str, Any]]:
    """Up to `count` rows, one of each group, spread over the lengths of their references: one from each of `count` strata."""
    if not rows or not count:
        return []
    by_group: dict[str, Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: _draw(seed, row["id"])):
        by_group.setdefault(row["group"], row)
    ordered = sorted(by_group.values(), key=lambda row: (len(row["positive"]), row["id"]))
    strata = np.array_split(np.arange(len(ordered)), min(count, len(ordered)))
    return [min((ordered[i] for i in stratum), key=lambda row: _draw(seed, "stratum", row["id"])) for stratum in strata]


def make_items(
    rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Mapping[str, str]], params: ReviewParams
) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """What is voted on, in order, and the key to it: by item the row, its kind, and whose answers `x` and `y` are.

    `answers` maps system and row id to the answer. Rows whose two answers are the same text are not asked about; some rows come
    again at the end with sides swapped (`repeat`), and some stand between with the same answer on both sides (`catch`). `reference`
    says whether the reference is shown after the vote: of a pair that comes again, only then.
    """
    rng = random.Random(params.seed)
    differing = [row for row in rows if answers["zeroshot"][row["id"]] != answers["sft"][row["id"]]]
    chosen = choose_rows(differing, params.pairs, params.seed)
    rng.shuffle(chosen)
    groups = {row["group"] for row in chosen}
    others = choose_rows([row for row in rows if row["group"] not in groups], params.catch_trials, params.seed) if chosen else []
    order: list[tuple[str, Mapping[str, Any]]] = [("pair", row) for row in chosen]
    for row in others:
        order.insert(rng.randint(1, len(order)), ("catch", row))
    order += [("repeat", row) for row in chosen[: params.repeats]]
    items: list[dict[str, Any]] = []
    key: dict[str, dict[str, str]] = {}
    seen: dict[str, str] = {}
    for number, (kind, row) in enumerate(order, 1):
        x, y = rng.sample(SYSTEMS, 2)
        if kind == "repeat":
            x, y = (key[seen[row["id"]]][name] for name in ("x", "y"))
        elif kind == "catch":
            y = x
        item = str(number)
        key[item] = {"row": row["id"], "kind": kind, "x": x, "y": y, **({"of": seen[row["id"]]} if kind == "repeat" else {})}
        seen.setdefault(row["id"], item)
        texts = {name: answers[system][row["id"]] for name, system in (("x", x), ("y", y))}
        items.append({"item": item, "row": row["id"], "swap": kind == "repeat", **texts})
    again = {entry["of"] for entry in key.values() if "of" in entry}
    for made in items:  # who has seen the reference would not judge the same pair again as at first
        made["reference"] = made["item"] not in again
    return items, key


def main() -> None:
    """Draw the pairs and write page and key."""
    params = load_params()
    rows = list(read_jsonl(Path("data/formatted/test.jsonl")))
    answers = {
        system: {record["id"]: record["prediction"] for record in read_jsonl(Path(f"data/predictions/{system}.jsonl"))}
        for system in SYSTEMS
    }
    items, key = make_items(rows, answers, params.review)
    asked = {item["row"] for item in items}
    contexts = {row["id"]: row["anchor"] for row in read_jsonl(Path("data/clean/rows.jsonl")) if row["id"] in asked}
    shown = {}
    for row in rows:
        if row["id"] in asked:
            context = contexts[row["id"]]
            shown[row["id"]] = {
                "question": row["question"],
                "passages": passages_given(row, context, params.format.passage_characters),
                "context": context,
                "reference": row["positive"],
            }
    review: dict[str, Any] = {"items": items, "rows": shown}
    content = json.dumps([params.review.seed, review], sort_keys=True)
    review["id"] = hashlib.sha256(content.encode()).hexdigest()[:16]  # the seed itself would give the key away
    write_text(Path("reports/review.html"), render_page("review.html.jinja", review=review, asked=len(items)))
    write_json(Path("reports/review_key.json"), {"review": review["id"], "items": key})
    log.info("reports/review.html: %d pairs to vote on; votes go to data/votes/", len(items))


if __name__ == "__main__":
    run_stage(main)
