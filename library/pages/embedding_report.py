"""The report on an embedding model: one data structure, rendered as HTML and as Markdown."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import pandas as pd

from library.errors import InputError
from library.pages.charts import Chart, plot_lines, plot_ranks, render_chart_page
from library.pages.embedding_statements import (
    BM25_HEADS,
    EXPLANATIONS,
    METRIC_HEADS,
    METRIC_TITLES,
    SYSTEM_TITLES,
    TASKS,
    bm25_rows,
    certainty_statement,
    claimed,
    fit_statement,
    markdown_tables,
    metric_rows,
    result_statements,
    tasks_with_numbers,
    unseen_sentences,
)
from library.pages.statements import TONES, Statement, escape
from library.paths import RANKED_TEXTS_PATH, rankings_path
from library.records import SFT, SYSTEMS, ZEROSHOT, CleanRow
from library.units import gib
from library.verdict.retrieval import BM25, CUT_OFF, PRIMARY_METRIC, score_found

SHOWN = 5  # questions that gained most, and that lost most
HOW_TO_READ = (
    "Intervals resample groups of rows that share a text, never single rows; p is from swapping "
    "the two systems group by group. p (Holm) is corrected over all claims but the primary one: "
    "each task's nDCG@10, and the share of right answers that are nearer, against zero-shot and "
    "against BM25. “Describes” marks a metric without a claim. “Detectable” is the smallest "
    "true difference that would have been found with a chance of 80%."
)


@dataclass(frozen=True)
class Question:
    """A test question at the primary task: by system, the rank of the first right text and nDCG@10.

    `among` is how many texts were ranked, `top` the first passages by system, each with whether it
    is right.
    """

    id: str
    text: str
    answer: str
    among: int
    first: Mapping[str, int]
    ndcg: Mapping[str, float]
    top: Mapping[str, Sequence[tuple[str, bool]]]

    @property
    def gain(self) -> float:
        """The change of its nDCG@10 by tuning."""
        return self.ndcg[SFT] - self.ndcg[ZEROSHOT]


@dataclass(frozen=True)
class EmbeddingReport:
    """All that the report shows.

    `metrics` is metrics/embedding.json, `facts` are texts by name, `ranked` has the test rows'
    rankings by system (data/rankings/), `questions` are those with the primary task, `history` is
    reports/embed_history.csv, `memory` is reports/embed_memory.json, `max_length` the model's
    longest input in tokens.
    """

    metrics: Mapping[str, Any]
    primary: str
    confidence: float
    facts: Mapping[str, str]
    ranked: Mapping[str, Sequence[Mapping[str, Any]]]
    questions: Sequence[Question]
    history: pd.DataFrame
    memory: Mapping[str, Any]
    max_length: int
    versions: Mapping[str, str]

    @property
    def statements(self) -> list[Statement]:
        """The statements at the top."""
        return result_statements(self.metrics, self.primary, self.confidence)


def make_questions(
    asked: Sequence[tuple[CleanRow, str]],
    ranked: Mapping[str, Sequence[Mapping[str, Any]]],
    passages: Mapping[str, Sequence[str]],
    primary: str,
) -> list[Question]:
    """The test questions that have the primary task. `asked` has the test rows with the text that
    was asked, `passages` are by context.

    Raises InputError if the rankings are of other rows or passages.
    """
    for system, rankings in ranked.items():
        if [ranking["id"] for ranking in rankings] != [row["id"] for row, _ in asked]:
            raise InputError(f"{rankings_path(system)}: of other test rows; run `make embed`")
    questions = []
    for at, (row, text) in enumerate(asked):
        found = {system: rankings[at] for system, rankings in ranked.items()}
        if primary not in found[SFT]["tasks"]:
            continue
        tasks = {system: one["tasks"][primary] for system, one in found.items()}
        try:
            top = {
                system: [(passages[key][n], key == row["context_id"]) for key, n in one["top"]]
                for system, one in found.items()
            }
        except (KeyError, IndexError) as error:
            raise InputError(
                f"{RANKED_TEXTS_PATH}: not the texts that were ranked; run `make embed`"
            ) from error
        questions.append(
            Question(
                id=row["id"],
                text=text,
                answer=row["positive"],
                among=tasks[SFT]["among"],
                first={system: task["first"] for system, task in tasks.items()},
                ndcg={system: score_found(task)[PRIMARY_METRIC] for system, task in tasks.items()},
                top=top,
            )
        )
    return questions


def pick_moved(questions: Iterable[Question]) -> tuple[list[Question], list[Question]]:
    """The questions that gained most nDCG@10, and those that lost most; ties by id."""
    ordered = sorted(questions, key=lambda question: (-question.gain, question.id))
    gained = [question for question in ordered if question.gain > 0]
    lost = [question for question in reversed(ordered) if question.gain < 0]
    return gained[:SHOWN], lost[:SHOWN]


def ceiling_sentence(ranked: Sequence[Mapping[str, Any]], task: str) -> str:
    """How many texts are right, if that keeps recall below 1; else empty."""
    found = [row["tasks"][task] for row in ranked if task in row["tasks"]]
    best = mean(min(CUT_OFF, one["right"]) / one["right"] for one in found) if found else 1
    if best == 1:
        return ""
    return (
        f"On average {mean(one['right'] for one in found):.0f} of {found[0]['among']:,} are right, "
        f"so recall@10 can be {best:.3f} at most; nDCG@10 is 1 if the first ten are all right."
    )


def moves_sentence(questions: Sequence[Question], thing: str) -> str:
    """For how many questions the first right text moved."""
    moves = [question.first[SFT] - question.first[ZEROSHOT] for question in questions]
    earlier, later = sum(move < 0 for move in moves), sum(move > 0 for move in moves)
    return (
        f"After tuning, the first right {thing} comes earlier for {earlier:,} of {len(moves):,} "
        f"test questions, later for {later:,}, and at the same rank for "
        f"{len(moves) - earlier - later:,}."
    )


def chart_ranks(questions: Sequence[Question], thing: str) -> Chart:
    """The rank of the first right text of each question before and after tuning."""
    return plot_ranks(
        moves_sentence(questions, thing),
        Counter((question.first[ZEROSHOT], question.first[SFT]) for question in questions),
        "rank before tuning",
        "rank after tuning",
        "questions",
        note="A dot stands for all questions with the same two ranks; its area is their number. 1 "
        "is best, and both axes are logarithmic. Below the dashed line, the text ranks higher "
        "after tuning; above it, lower.",
    )


def read_line(history: pd.DataFrame, column: str) -> list[tuple[float, float]]:
    """A column of the training log as pairs of step and value; empty if it has none."""
    if column not in history:
        return []
    known = history[["step", column]].dropna().to_numpy(dtype=float).tolist()
    return [(step, value) for step, value in known]


def chart_training(
    loss: Sequence[tuple[float, float]], ndcg: Sequence[tuple[float, float]]
) -> list[Chart]:
    """Training loss and validation nDCG@10 by optimizer step, each if it has a value."""
    charts = []
    step = "optimizer step"
    if loss:
        (first, before), (_, after) = loss[0], loss[-1]
        said = f"Training loss is {after:.3f} at the end, {before:.3f} at step {first:.0f}."
        charts.append(plot_lines(said, {"training": loss}, step, "training loss"))
    if ndcg:
        measure = "validation nDCG@10"
        charts.append(
            plot_lines(kept_sentence(ndcg), {"validation": ndcg}, step, measure, zero=False)
        )
    return charts


def kept_sentence(line: Sequence[tuple[float, float]]) -> str:
    """Which step's weights were kept, by validation nDCG@10 by step."""
    if not line:
        return "The training log has no evaluation."
    step, best = max(line, key=lambda point: point[1])
    return (
        f"The weights of step {step:.0f} were kept: validation nDCG@10 {best:.3f}, searching "
        "only the answers and passages of the validation rows."
    )


def render_markdown(report: EmbeddingReport) -> str:
    """The short report: verdict, table and facts. Text from data is escaped."""
    metrics, primary = report.metrics, report.primary
    titles = (f"- {task.title}: {task.about}" for _, task in tasks_with_numbers(metrics))
    paragraphs = [
        "# Does tuning the embedding model help retrieval?",
        *map(str, report.statements),
        markdown_tables(metrics, primary),
        "\n".join(titles),
        HOW_TO_READ,
        unseen_sentences(metrics, report.max_length),
        "\n".join(f"- {name}: {escape(value)}" for name, value in report.facts.items()),
    ]
    return "\n\n".join(paragraphs) + "\n"


def render_html(report: EmbeddingReport) -> str:
    """The report as a page."""
    metrics, primary = report.metrics, report.primary
    gained, lost = pick_moved(report.questions)
    validation = read_line(report.history, "ndcg_at_10")
    tasks = [
        {
            "title": task.title,
            "about": task.about,
            "note": "" if name == "nearer" else ceiling_sentence(report.ranked[SFT], name),
            "rows": metric_rows(metrics, name, primary),
            "primary": name == primary,
        }
        for name, task in tasks_with_numbers(metrics)
    ]
    return render_chart_page(
        "embedding.html.jinja",
        report=report,
        task=TASKS[primary],
        measure=METRIC_TITLES[TASKS[primary].metric],
        result=claimed(metrics, primary),
        bm25=BM25,
        tone=TONES[metrics["verdict"]],
        certainty=certainty_statement(metrics, primary, report.confidence),
        fit=fit_statement(report.memory),
        memory=gib(report.memory["measured"] * 1e6),
        tasks=sorted(tasks, key=lambda task: not task["primary"]),
        explanations={title: EXPLANATIONS[name] for name, title in METRIC_TITLES.items()},
        metric_heads=METRIC_HEADS,
        bm25_heads=BM25_HEADS,
        bm25_rows=bm25_rows(metrics),
        how_to_read=HOW_TO_READ,
        unseen=unseen_sentences(metrics, report.max_length),
        ranks=chart_ranks(report.questions, TASKS[primary].thing),
        training=chart_training(read_line(report.history, "loss"), validation),
        kept=kept_sentence(validation),
        systems=SYSTEMS,
        system_titles=SYSTEM_TITLES,
        gained=gained,
        lost=lost,
    )
