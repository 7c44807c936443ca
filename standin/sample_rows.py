"""Rows from generated inventions: the default data, and short example rows.

Rows that share a description ask about different aspects of it, and two of them swap their answers
as negatives. All other negatives contradict their description in the facts, not in style. A few
rows of the default data are defective on purpose.
"""

import random
from collections import Counter
from typing import Any

from standin import inventions

# Descriptions with one, two and three rows: 398 descriptions, 499 rows. The reference has 332 under
# as many rows; here more stand alone, since on these it rests whether the context decides.
DESCRIPTIONS_BY_ROWS = {1: 299, 2: 97, 3: 2}
LONG_ANSWERS = (600, 900, 1_500, 3_000, 6_000, 12_000)

BROKEN: tuple[tuple[str, Any], ...] = (
    ("positive", ""),
    ("query", None),
    ("anchor", ...),
    ("negative", {"text": 17}),
)

CONTRADICTIONS = 2
Planted = dict[str, Counter[str]]


def make_rows(seed: int) -> tuple[list[dict[str, Any]], Planted]:
    """All rows in random order, and the number of planted defects of each kind by field.

    Deterministic in the seed.
    """
    rng = random.Random(seed)
    sizes = [
        size for size, descriptions in DESCRIPTIONS_BY_ROWS.items() for _ in range(descriptions)
    ]
    rng.shuffle(sizes)
    titles = rng.sample(inventions.titles("sample"), len(sizes))
    made: list[tuple[dict[str, Any], Planted]] = []
    single: list[tuple[dict[str, Any], Planted]] = []
    for title, size in zip(titles, sizes, strict=True):
        invention = inventions.invent(rng, title)
        text = "\n\n".join(inventions.describe(rng, invention, rng.randrange(15_000, 25_000)))
        anchor, in_anchor = inventions.plant_in_anchor(rng, text)
        asked = [
            rng.sample(invention.facts[aspect], inventions.ASKED_FACTS[aspect])
            for aspect in rng.sample(inventions.ASPECTS, size)
        ]
        answers = [inventions.answer(invention, facts) for facts in asked]
        negatives = [
            inventions.answer(invention, inventions.contradict(rng, invention, facts))
            for facts in asked
        ]
        if size > 1:
            negatives[:2] = answers[1], answers[0]
        for facts, positive, negative in zip(asked, answers, negatives, strict=True):
            query, in_query = inventions.plant_in_query(
                rng, inventions.question(rng, invention, facts)
            )
            row = {"anchor": anchor, "query": query, "positive": positive, "negative": negative}
            made.append((row, {"anchor": in_anchor, "query": in_query}))
        if size == 1:
            single.append(made[-1])
            # Answers far longer than the rest, all true to the description: they test the token
            # budget.
            if len(single) <= len(LONG_ANSWERS):
                characters = LONG_ANSWERS[len(single) - 1] - len(positive)
                made[-1][0]["positive"] += (
                    " " + " ".join(text.split("\n\n")[5:])[:characters].strip()
                )
    rest = single[len(LONG_ANSWERS) :]
    for (row, planted), (field, value) in zip(rest, BROKEN, strict=False):
        row[field] = value
        planted.pop(field, None)
        if value is ...:
            del row[field]
    # Two rows that ask the same and exchange their answers, in place of two that stand alone.
    opposed = rest[len(BROKEN) : len(BROKEN) + 2 * CONTRADICTIONS]
    for (row, planted), (other, other_planted) in zip(opposed[::2], opposed[1::2], strict=True):
        other |= {
            "anchor": row["anchor"],
            "query": row["query"],
            "positive": row["negative"],
            "negative": row["positive"],
        }
        other_planted |= planted
    rng.shuffle(made)
    made[-1] = made[0]  # an exact duplicate
    total = {
        field: sum((planted.get(field, Counter()) for _, planted in made), Counter())
        for field in ("anchor", "query")
    }
    return [dict(row) for row, _ in made], total


def short_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Generated rows with short contexts; every second description has two rows that swap
    answers.
    """
    rng = random.Random(seed)
    rows: list[dict[str, str]] = []
    for title in rng.sample(inventions.titles("sample"), count):
        invention = inventions.invent(rng, title)
        anchor = "\n\n".join(inventions.fact_paragraphs(rng, invention))
        asked = [
            rng.sample(invention.facts[aspect], 1) for aspect in rng.sample(inventions.ASPECTS, 2)
        ]
        answers = [inventions.answer(invention, facts) for facts in asked]
        if len(rows) % 3 == 0:
            for facts, positive, negative in zip(asked, answers, reversed(answers), strict=True):
                query = inventions.question(rng, invention, facts)
                rows.append(
                    {"anchor": anchor, "query": query, "positive": positive, "negative": negative}
                )
        else:
            wrong = inventions.answer(invention, inventions.contradict(rng, invention, asked[0]))
            query = inventions.question(rng, invention, asked[0])
            rows.append(
                {"anchor": anchor, "query": query, "positive": answers[0], "negative": wrong}
            )
    return rows[:count]
