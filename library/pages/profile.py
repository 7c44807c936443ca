"""The page about the raw rows: sixteen things to know before training, then the numbers."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from skrub import TableReport

from library.pages.charts import Chart, plot_bins, plot_lines, render_chart_page
from library.pages.rendering import plural

BINS = 24


@dataclass(frozen=True)
class Insight:
    """One thing to know: what was counted, whether it calls for a decision, what it means, and
    examples of it.
    """

    title: str
    value: str
    attention: bool
    consequence: str
    examples: Sequence[str] = ()


def list_insights(
    profile: Mapping[str, Any],
    examples: Mapping[str, Sequence[str]],
    format: Mapping[str, Any],
    rules: Sequence[str],
    defects: Sequence[str],
) -> list[Insight]:
    """The sixteen things, those that call for a decision first.

    `rules` are the cleaning rules that are on.
    """
    max_length, max_new_tokens = format["max_length"], format["max_new_tokens"]
    window = profile["forecast"][str(max_length)]
    largest, groups = profile["groups"]["largest"], profile["groups"]["count"]
    longer = profile["longer_positive_share"]
    given_away = sum(
        split["negatives_given_away"]
        for name, split in profile["splits"].items()
        if name != "train"
    )
    disagreeing = profile.get("disagreeing", {"questions": 0, "rows": 0})
    several_wrong = profile.get("several_wrong", 0)
    found = sum(counts[rule] for counts in profile["defects"].values() for rule in rules)
    things = [
        Insight(
            "Contexts in more than one row",
            plural(profile["shared_contexts"], "context"),
            profile["shared_contexts"] > 0,
            f"They occur in {plural(profile['rows_of_shared_contexts'], 'row')}. A split row by "
            "row would train on the contexts of test questions. The split here goes by group.",
            examples["shared_contexts"],
        ),
        Insight(
            "Independent groups",
            plural(groups, "group"),
            groups < 100,
            "Rows that share a context, or an answer long enough to be remembered, form one group, "
            "which every interval draws as a whole. Below a hundred groups only large differences "
            "can be shown.",
            examples["largest_group"] if largest > 1 else (),
        ),
        Insight(
            "Shares of the split",
            " / ".join(f"{split['share']:.0%}" for split in profile["splits"].values()),
            bool(examples["shares"]),
            "Whole groups are drawn for training, validation and test; "
            + " / ".join(f"{split['asked_share']:.0%}" for split in profile["splits"].values())
            + " were asked for. If a split misses its share by more than a quarter, or test has "
            "too few groups for a verdict, format stops and says what to change.",
            examples["shares"],
        ),
        Insight(
            "Right in one row, wrong in another",
            plural(profile["positive_here_negative_there"], "text"),
            profile["positive_here_negative_there"] > 0,
            "The same text is the right answer of one row and the wrong one of another. "
            f"{plural(given_away, 'row')} outside training would have a wrong answer that is right "
            "in training, or a right one that is wrong there: they are judged without their wrong "
            "answer.",
            examples["positive_here_negative_there"],
        ),
        Insight(
            "Pairs that swap their answers",
            plural(profile["swapped_pairs"], "pair"),
            False,
            "Two rows share a context, and each one's wrong answer is the other's right one: only "
            "the question decides. They are judged as pairs.",
            examples["swapped_pairs"],
        ),
        Insight(
            "Contradictory labels",
            plural(profile["contradictory"], "row"),
            profile["contradictory"] > 0,
            "Two rows ask the same question about the same context, with right and wrong answer "
            "swapped: one of the two must be mislabelled. They are flagged, never repaired; "
            "clean.on_contradiction: drop leaves them out.",
            examples["contradictory"],
        ),
        Insight(
            "Same question, different right answers",
            plural(disagreeing["questions"], "question"),
            disagreeing["questions"] > 0,
            f"{plural(disagreeing['rows'], 'row')} ask what another row asks of the same context, "
            "and no right answer is common to them. If all of these are right, put them into one "
            "row as a list: an answer is then scored against the one it is most like. If only one "
            "is, delete the others. Clean keeps every row, and each is trained on or scored with "
            "its own answer alone.",
            examples["disagreeing"],
        ),
        Insight(
            "Several wrong answers in a row",
            plural(several_wrong, "row"),
            several_wrong > 0,
            "The first wrong answer of a list is used, the others are not. Put the hardest first.",
            examples["several_wrong"],
        ),
        Insight(
            "Contexts that are nearly the same",
            plural(profile["near_duplicate_contexts"], "pair"),
            profile["near_duplicate_contexts"] > 0,
            "They share four fifths of their word sequences, but are not identical. Their rows "
            "form one group, unless split.near_duplicate_contexts is false.",
            examples["near_duplicate_contexts"],
        ),
        Insight(
            "Exact duplicates",
            plural(profile["duplicates"], "row"),
            profile["duplicates"] > 0,
            "The first of each is kept, the others are rejected.",
            examples["duplicates"],
        ),
        Insight(
            "Texts that say nothing",
            plural(profile["nothing"], "row"),
            profile["nothing"] > 0,
            "Their context, question or answer is a placeholder such as N/A (clean.nothing). In "
            "training, it would be learned as an answer.",
            examples["nothing"],
        ),
        Insight(
            "Rows that can't be used",
            plural(profile["unusable"], "row"),
            profile["unusable"] > 0,
            "They are rejected; data/clean/rejected.jsonl has the reason of each.",
            examples["unusable"],
        ),
        Insight(
            f"Contexts in a window of {max_length:,} tokens",
            f"{window['context_kept']:.0%} of a context",
            window["context_kept"] < 1,
            f"Question, answer and whole context fit in {window['whole']:.0%} of the rows. In the "
            "others, BM25 keeps the passages that match the question. Cutting the end off instead "
            "would lose the question and the answer.",
        ),
        Insight(
            "Answers beyond max_new_tokens",
            plural(profile["answers_beyond_max_new_tokens"], "answer"),
            profile["answers_beyond_max_new_tokens"] > 0,
            f"The reserve is {max_new_tokens:,} tokens, the end of the turn included. In training, "
            "longer answers leave less room for passages; in test, a model's answer is cut there, "
            "and counted as cut.",
        ),
        Insight(
            "The longer answer is the right one",
            f"{longer:.0%}" if profile["with_negative"] else "no negatives",
            profile["with_negative"] > 0 and abs(longer - 0.5) > 0.1,
            "If this is far from one half, length alone gives the right answer away. The "
            "evaluation's controls show how much.",
        ),
        Insight(
            "Defects in the text",
            plural(found, "place"),
            found > 0,
            "What the active cleaning rules find in all fields. params.yaml turns each rule on or "
            "off; every change is in data/clean/changes.jsonl.",
            defects,
        ),
    ]
    return sorted(things, key=lambda thing: not thing.attention)


def show_marks(text: str) -> str:
    """The text on one line, with invisible and combining characters written as escapes."""

    def seen(character: str) -> bool:
        return character.isprintable() and not unicodedata.combining(character)

    return "".join(
        character if seen(character) else f"\\u{ord(character):04x}"
        for character in text.replace("\n", "↵")
    )


def histogram(lengths: "pd.Series[float]") -> list[tuple[float, float, int]]:
    """Up to 24 bins of equal width, each as from, to and count."""
    if lengths.empty:
        return []
    counts, edges = np.histogram(
        lengths, bins=min(BINS, max(1, int(lengths.max() - lengths.min())))
    )
    return [
        (float(low), float(high), int(number))
        for low, high, number in zip(edges, edges[1:], counts, strict=False)
    ]


def chart_length(name: str, tokens: "pd.Series[float]") -> Chart:
    """A histogram of a field's lengths; there must be at least one."""
    said = (
        f"{name}: half of the texts have {tokens.median():,.0f} tokens or more, the longest "
        f"{tokens.max():,.0f}."
    )
    return plot_bins(said, histogram(tokens), "tokens", "rows")


def chart_windows(forecast: Mapping[str, Mapping[str, float]], max_length: int) -> Chart:
    """What a context window holds, by its length in tokens."""
    kept = forecast[str(max_length)]["context_kept"]
    lines = {
        said: [(float(window), share[name]) for window, share in forecast.items()]
        for name, said in (
            ("context_kept", "context kept"),
            ("whole", "rows that fit whole"),
        )
    }
    return plot_lines(
        f"A window of {max_length:,} tokens keeps {kept:.0%} of a context.",
        lines,
        "context window, tokens (log scale)",
        "share",
        ".1%",
        doubling=True,
    )


def render_rows(rows: pd.DataFrame) -> Markup:
    """The rows as skrub's interactive table, which escapes what it shows. Deterministic: the same
    rows give the same HTML.
    """
    report = TableReport(
        rows, title="rows", verbose=0, plot_distributions=False, compute_associations=False
    )
    snippet = str(report.html_snippet())
    for number, drawn in enumerate(
        dict.fromkeys(re.findall(r'id="(?:report_)?([0-9a-f]{8})[-"]', snippet))
    ):
        # skrub gives its elements random ids
        snippet = snippet.replace(drawn, f"{number:08x}")
    return Markup(snippet)


@dataclass(frozen=True)
class ProfileData:
    """What the page shows.

    `columns` has the file's column by field, `advice` says which lengths take how many rows,
    `format` has format's parameters, `rules` are the cleaning rules that are on, `profile` is
    metrics/profile.json, `examples` has places by what was counted, `defects` one example by rule,
    `tokens` a column of lengths by field, `rows` the table's rows.
    """

    path: Path
    columns: Mapping[str, str | None]
    advice: Sequence[Mapping[str, Any]]
    format: Mapping[str, Any]
    rules: Sequence[str]
    profile: Mapping[str, Any]
    examples: Mapping[str, Sequence[str]]
    defects: Mapping[str, Mapping[str, str]]
    tokens: pd.DataFrame
    rows: pd.DataFrame


def render_profile(data: ProfileData) -> str:
    """The page, self-contained."""
    by_field = data.profile["defects"]
    kinds = {}
    for rule in by_field["anchor"]:
        counts = [by_field[field][rule] for field in data.columns]
        if any(counts):
            kinds[rule] = counts
    ordered = sorted(kinds.items(), key=lambda kind: -sum(kind[1]))
    most = [
        f"{sum(counts):,} {rule.replace('_', ' ')}"
        for rule, counts in ordered
        if rule in data.rules
    ]
    defects = {
        rule: {name: show_marks(str(value)) for name, value in example.items()}
        for rule, example in data.defects.items()
    }
    lengths = {
        field if column in (None, field) else f"{field} ({column})": data.tokens[field].dropna()
        for field, column in data.columns.items()
    }
    return render_chart_page(
        "profile.html.jinja",
        path=data.path,
        columns=data.columns,
        asked=data.format,
        profile=data.profile,
        advice=data.advice,
        things=list_insights(data.profile, data.examples, data.format, data.rules, most[:3]),
        kinds=kinds,
        rules=data.rules,
        defects=defects,
        lengths=[chart_length(name, found) for name, found in lengths.items() if len(found)],
        windows=chart_windows(data.profile["forecast"], data.format["max_length"]),
        table=render_rows(data.rows),
    )
