"""Write the embedded default data: 499 generated questions over 332 invented patents, in the reference data set's shape.

Rows that share a description ask about different aspects of it, and two of them swap their answers as negatives. Every other
negative contradicts its description in the facts, not in its style. A few rows are defective on purpose.
"""

import json
import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

from stages.corpus import inventions
from stages.corpus.rows import write_text
from stages.params import load_params
from stages.run import run_stage

log = logging.getLogger(__name__)

# Descriptions with one, two and three rows: 332 descriptions, 499 rows, like the reference.
DESCRIPTIONS_BY_ROWS = {1: 172, 2: 153, 3: 7}
LONG_ANSWERS = (600, 900, 1_500, 3_000, 6_000, 12_000)


def make_rows(seed: int) -> tuple[list[dict[str, Any]], Counter[str]]:
    """All rows in random order, and how many defects of each kind were planted. Deterministic in the seed."""
    rng = random.Random(seed)
    sizes = [size for size, descriptions in DESCRIPTIONS_BY_ROWS.items() for _ in range(descriptions)]
    rng.shuffle(sizes)
    titles = rng.sample(inventions.titles("sample"), len(sizes))
    planted: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    single: list[dict[str, Any]] = []
    for title, size in zip(titles, sizes, strict=True):
        invention = inventions.invent(rng, title)
        paragraphs = inventions.describe(rng, invention, rng.randrange(15_000, 25_000))
        anchor = inventions.plant_defects(rng, "\n\n".join(paragraphs), planted)
        asked = [
            rng.sample(invention.facts[aspect], inventions.ASKED_FACTS[aspect]) for aspect in rng.sample(inventions.ASPECTS, size)
        ]
        answers = [inventions.answer(invention, facts) for facts in asked]
        negatives = [inventions.answer(invention, inventions.contradict(rng, invention, facts)) for facts in asked]
        if size > 1:
            negatives[:2] = answers[1], answers[0]
        for facts, positive, negative in zip(asked, answers, negatives, strict=True):
            query = inventions.question(rng, invention, facts)
            if rng.random() < 0.1:
                query += ","
                planted["stray_comma"] += 1
            if rng.random() < 0.2:
                query += "\n"
                planted["outer_whitespace"] += 1
            rows.append({"anchor": anchor, "query": query, "positive": positive, "negative": negative})
        if size == 1:
            single.append(rows[-1])
    # Answers far longer than the rest, all true to the description: they test the token budget.
    for row, characters in zip(single, LONG_ANSWERS, strict=False):
        row["positive"] += " " + " ".join(row["anchor"].split("\n\n")[5:])[: characters - len(row["positive"])].strip()
    for row, (field, value) in zip(
        single[len(LONG_ANSWERS) :], [("positive", ""), ("query", None), ("anchor", ...), ("negative", 17)], strict=False
    ):
        if value is ...:
            del row[field]
        else:
            row[field] = value
    rng.shuffle(rows)
    rows[-1] = dict(rows[0])  # an exact duplicate
    return rows, planted


def main(out_path: Path = Path("data/sample/patents.json")) -> None:
    """Write the rows as a JSON array."""
    rows, planted = make_rows(load_params().sample.seed)
    write_text(out_path, json.dumps(rows, indent=1) + "\n")
    log.info("%s: %d rows; planted %s", out_path, len(rows), ", ".join(f"{n} {kind}" for kind, n in sorted(planted.items())))


if __name__ == "__main__":
    run_stage(main)
