"""The report: one data structure, rendered as Markdown, as HTML and for a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import markupsafe
import pandas as pd
from markupsafe import Markup
from rapidfuzz.distance import LCSseq

from library.corpus.words import locate_tokens
from library.pages.charts import render_chart_page
from library.pages.report_charts import (
    chart_differences,
    chart_lengths,
    chart_losses,
    chart_overfitting,
    chart_votes,
)
from library.pages.statements import (
    TONES,
    Statement,
    certainty_statement,
    contradiction_sentence,
    doubt_statements,
    escape,
    explanations_for,
    format_holm,
    format_interval,
    leading_metrics,
    overfitting_sentence,
    render_table,
    result_statements,
    room_statement,
    saw_passages,
    several_sentence,
    split_statement,
    system_name,
    title,
    titles_for,
)
from library.pages.vote_statements import (
    JUDGES_NOTE,
    judges_statements,
    votes_needed,
    votes_needed_sentence,
    votes_statement,
)
from library.params import FormatParams, Params
from library.records import SYSTEMS, Answerer, FormattedRow
from library.verdict.metrics import METRICS, OPTIONAL
from library.verdict.scoring import style_tells

STAND_IN, SAMPLE_DIR = "tiny", Path("data/sample")  # the built-in model, the rows it can read
SYSTEMS_HEADS = ("system", "{}", "against zero-shot", "Holm p", "fine-tuned against it", "Holm p")
BASELINE_NAMES = {
    "no_context": system_name("no_context"),
    "best_passage": "the best passage, copied",
    "longer": "the longer answer wins",
}
NEEDED = {  # what a row must have, by metric that not every row has
    "number_f1": "a number or sign in the reference",
    "pair_matching": "two rows that swap their answers",
    "contrastive": "a wrong answer, in a row that is no swapped pair",
    "contrastive_no_question": "the same",
    "answer_only": "a wrong answer",
    "naive_preference": "a wrong answer",
    "ngram_support": "three words in both answers",
    "number_support": "a number in both answers",
}
HOW_TO_READ = (
    "Intervals resample groups of rows that share a text, never single rows; p is from swapping "
    "the two systems group by group. The control of bare answers sees neither passages nor "
    "question: if it is far from 0.5, style or length gives the right answer away. Pair matching "
    "and contrastive judge given answers, not what the model writes: for that, read the answers "
    "below. The reference's own score is the ceiling. ROUGE-L and token F1 count words, as "
    "published ROUGE does: signs do not count (−x against +x, C++ against C#, 50% against 50), "
    "and 1,000 is two words. Numbers and signs have an F1 of their own, if the reference holds "
    "any. If a metric differs in few groups only, its interval is Student's, and can disagree with "
    "p."
)


@dataclass(frozen=True)
class Verdict:
    """The top of the report: statements, the table of all metrics, and notes on both.

    `caveat`, one of the statements, is to be read before any number.
    """

    statements: Sequence[Statement]
    table: str
    notes: Sequence[str]
    caveat: Statement | None


@dataclass(frozen=True)
class Case:
    """A test row to show: each system's answer with its score, and the passages that zero-shot and
    fine-tuned were given.
    """

    row: FormattedRow
    answers: Mapping[str, str]
    scores: Mapping[str, float]
    passages: Sequence[str]


@dataclass(frozen=True)
class Report:
    """All that the report shows.

    `metrics` is metrics/evaluation.json and `splits` metrics/format.json by split. `facts` and
    `versions` are texts by name, `largest` says why the largest group belongs together, and
    `history` has the losses by step. `points` has a tuple for each test row: the length of its
    reference and both systems' scores. `voted` are the systems that people vote on, `retriever`
    names what chose the passages, `params` is params.yaml as text.
    """

    metrics: Mapping[str, Any]
    primary: str
    confidence: float
    verdict: Verdict
    facts: Mapping[str, str]
    gained: Sequence[Case]
    lost: Sequence[Case]
    versions: Mapping[str, str]
    splits: Mapping[str, Mapping[str, Any]]
    largest: str
    history: pd.DataFrame
    points: Sequence[tuple[float, ...]]
    voted: Sequence[str]
    retriever: str
    params: str


def give_verdict(
    metrics: Mapping[str, Any],
    splits: Mapping[str, Mapping[str, Any]],
    params: Params,
) -> Verdict:
    """The verdict in words, from metrics/evaluation.json (`metrics`) and metrics/format.json by
    split (`splits`).
    """
    primary, confidence = params.evaluate.primary, params.evaluate.confidence
    notes = (
        left_out(metrics),
        contradiction_sentence(metrics, primary),
        several_sentence(metrics),
        given_away_sentence(splits["test"]),
    )
    caveat = stand_in_statement(params)
    statements = (
        caveat,
        split_statement(splits),
        room_statement(splits["test"], params.format),
        *result_statements(metrics, primary, confidence),
        votes_statement(metrics, params.review.systems),
    )
    return Verdict(
        statements=[statement for statement in statements if statement],
        table=render_table(metrics, primary),
        notes=[note for note in notes if note],
        caveat=caveat,
    )


def stand_in_statement(params: Params) -> Statement | None:
    """A warning if the built-in model was asked about rows that it can't read; None otherwise."""
    if params.model != STAND_IN or Path(params.data.path).parent == SAMPLE_DIR:
        return None
    return Statement(
        "The built-in model can't read these rows",
        ": it knows a few hundred words of generated patents. Nothing here says what a real model "
        "would learn; choose one with -S model=NAME (`make memory` lists them).",
    )


def describe_model(source: Mapping[str, str]) -> str:
    """The base model by the source in its manifest."""
    if "quantized" in source:
        return f"{source['path']}, which was quantized to {source['quantized']} before"
    return f"{source['id']} at {source['revision']}" if "id" in source else source["path"]


def describe_weights(answerers: Mapping[str, Answerer], quantization: str) -> str:
    """Which weights answered and on what device, for each system if they differ."""
    tuned, untuned = (
        f"{answerers[system]['dtype']} on {answerers[system]['device']}"
        for system in ("sft", "zeroshot")
    )
    differ = (
        f"; the zero-shot answers in {untuned}, so part of a difference can be rounding"
        if tuned != untuned
        else ""
    )
    if len({answerers[system].get("dequantized") for system in ("sft", "zeroshot")}) > 1:
        differ += "; 4-bit weights were dequantized once for one of the two, with the same caveat"
    base = answerers["sft"]["base"][:12]
    return f"{quantization}, computed in {tuned}{differ}; SHA-256 of the base's files begins {base}"


def describe_prompt(
    params: FormatParams, metrics: Mapping[str, Any], test: Mapping[str, Any]
) -> str:
    """The template, why no test prompt held a passage if none did, and the budget of tokens.

    `test` is metrics/format.json for the test split.
    """
    passages = ""
    if not saw_passages(metrics) and test.get("without_passages", 0):
        passages = ", without passages, for which there is no room"
    elif not saw_passages(metrics) and test["trimmed_share"]:  # the rows have contexts
        passages = ", which leaves the passages out"
    return (
        f"prompts/{params.prompt}.jinja{passages}, {params.max_length} tokens, "
        f"{params.max_new_tokens} of them for the answer"
    )


def describe_data(path: str, splits: Mapping[str, Mapping[str, Any]], train_fraction: float) -> str:
    """The data's file, how its rows are split, and what part of the train rows was trained on."""
    counts = [f"{split['rows']} {name}" for name, split in splits.items()]
    part = f"; trained on {train_fraction:.1%} of the train groups" if train_fraction < 1 else ""
    return f"{path}: {', '.join(counts)} rows{part}"


def left_out(metrics: Mapping[str, Any]) -> str:
    """Which metrics are left out because no test row has what they need; empty if none."""
    missing = [
        f"{title(name)} ({NEEDED[name]})" for name in METRICS if name not in {*metrics, *OPTIONAL}
    ]
    if not missing:
        return ""
    return f"Left out, since no test row has what they need: {'; '.join(missing)}."


def given_away_sentence(test: Mapping[str, Any]) -> str:
    """How many test rows are judged without their wrong answer, since training has seen it."""
    count = test["negatives_given_away"]
    if not count:
        return ""
    return (
        f"{count} of {test['rows']} test rows are judged without their wrong answer: it is "
        "right in training, or their right one is wrong there."
    )


def mark_common(text: str, other: str) -> Markup:
    """A text, escaped, in which the words are marked that it shares with the other in order.

    These are the words that ROUGE-L counts.
    """
    places, words = locate_tokens(text), [word for _, _, word in locate_tokens(other)]
    made, end = [Markup()], 0
    for operation in LCSseq.opcodes([word for _, _, word in places], words):
        if operation.tag == "equal" and operation.src_start < operation.src_end:
            start, stop = places[operation.src_start][0], places[operation.src_end - 1][1]
            made += [
                markupsafe.escape(text[end:start]),
                Markup("<mark>"),
                markupsafe.escape(text[start:stop]),
                Markup("</mark>"),
            ]
            end = stop
    return Markup().join([*made, markupsafe.escape(text[end:])])


def baseline_heads(metrics: Mapping[str, Any]) -> list[str]:
    """The column heads of `baselines_table`."""
    return [*map(system_name, (*SYSTEMS, *metrics.get("others", {}))), *BASELINE_NAMES.values()]


def baselines_table(metrics: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Scores of all systems and baselines by metric; None if a system has no such score."""
    baselines = metrics["baselines"]
    others = metrics.get("others", {})
    names = [name for name in METRICS if any(name in scores for scores in baselines.values())]
    return {
        name: [
            *(metrics.get(name, {}).get(system) for system in SYSTEMS),
            *(judged.get(name, {}).get(system) for system, judged in others.items()),
            *(baselines[key].get(name) for key in BASELINE_NAMES),
        ]
        for name in names
    }


def systems_table(metrics: Mapping[str, Any], primary: str) -> list[list[str]]:
    """A row for each other system: its primary metric, compared with zero-shot and with
    fine-tuned. Empty if there is none.
    """
    rows = []
    for system, judged in metrics.get("others", {}).items():
        cells = [system_name(system), f"{judged[primary][system]:.3f}"]
        for result in (judged[primary], judged["tuned"][primary]):
            cells += [
                f"{result['delta']:+.3f} ({format_interval(result)})",
                f"{result['p_holm']:.4f}",
            ]
        rows.append(cells)
    return rows


def render_systems(metrics: Mapping[str, Any], primary: str) -> str:
    """`systems_table` as Markdown; empty if it has no rows."""
    rows = systems_table(metrics, primary)
    if not rows:
        return ""
    return _markdown_table([head.format(title(primary)) for head in SYSTEMS_HEADS], rows)


def _markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column left-aligned, the others right-aligned for numbers."""
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])


def render_baselines(metrics: Mapping[str, Any]) -> str:
    """`baselines_table` as Markdown."""
    return _markdown_table(
        ["metric", *baseline_heads(metrics)],
        (
            [title(name), *("" if value is None else f"{value:.3f}" for value in values)]
            for name, values in baselines_table(metrics).items()
        ),
    )


def render_case(case: Case, primary: str) -> str:
    """One test row as Markdown: its question, the reference and the answers."""
    row = case.row
    scores = ", ".join(f"{system} {score:.3f}" for system, score in case.scores.items())
    answers = [
        f"- {system_name(system)}: {escape(answer) or '(empty)'}"
        for system, answer in case.answers.items()
    ]
    return "\n".join(
        [
            f"**{escape(row['question'])}** ({row['id']}; {title(primary)}: {scores})",
            "",
            f"- reference: {escape(row['positive'])}",
            *answers,
            "",
        ]
    )


def render_judges(report: Report) -> list[str]:
    """What language models judged, as Markdown paragraphs; empty if none did."""
    said = [str(statement) for statement in judges_statements(report.metrics, report.voted)]
    return ["## What language models judged", JUDGES_NOTE, *said] if said else []


def render_summary(verdict: Verdict, facts: Mapping[str, str]) -> str:
    """The verdict and the given facts as Markdown, for a terminal."""
    listed = "\n".join(f"- {name}: {escape(value)}" for name, value in facts.items())
    statements = map(str, verdict.statements)
    return "\n\n".join(
        ["# Does fine-tuning help?", *statements, verdict.table, *verdict.notes, listed]
    )


def render_markdown(report: Report) -> str:
    """The report as Markdown: the verdict first. Text from data is escaped."""
    gained, lost = (
        "\n".join(render_case(case, report.primary) for case in cases)
        for cases in (report.gained, report.lost)
    )
    paragraphs = [
        "# Does fine-tuning help?",
        *map(str, report.verdict.statements),
        report.verdict.table,
        *report.verdict.notes,
        HOW_TO_READ,
        "\n".join(f"- {name}: {escape(value)}" for name, value in report.facts.items()),
        "## Compared with other systems and simple baselines",
        render_systems(report.metrics, report.primary),
        render_baselines(report.metrics),
        "## Learned by heart?",
        overfitting_sentence(report.metrics, report.primary),
        *render_judges(report),
        "## Rows that gained most",
        gained or "None gained.",
        "## Rows that gained least, or lost",
        lost,
    ]
    return "\n\n".join(paragraph.strip() for paragraph in paragraphs if paragraph) + "\n"


def render_html(report: Report) -> str:
    """The report as a page."""
    metrics, primary, confidence = report.metrics, report.primary, report.confidence

    def shown(cases: Sequence[Case]) -> list[dict[str, Any]]:
        return [
            {
                "row": case.row,
                "passages": case.passages,
                "answers": [
                    (
                        system_name(system),
                        case.scores[system],
                        mark_common(answer, case.row["positive"]),
                    )
                    for system, answer in case.answers.items()
                ],
            }
            for case in cases
        ]

    names = [name for name in METRICS if name in metrics]
    leading, baselines = leading_metrics(names, primary), baselines_table(metrics)
    leading = [name for name in METRICS if name in leading]
    return render_chart_page(
        "report.html.jinja",
        report=report,
        metrics=metrics,
        primary=primary,
        titles=titles_for(metrics),
        explanations=explanations_for(metrics),
        title=title,
        tone=TONES[metrics["verdict"]],
        results=result_statements(metrics, primary, confidence),
        certainty=certainty_statement(metrics, primary, confidence),
        doubts=doubt_statements(metrics, primary, report.voted, confidence),
        leading=leading,
        rest=[name for name in names if name not in leading],
        format_interval=format_interval,
        format_holm=format_holm,
        overfitting=overfitting_sentence(metrics, primary),
        style_tells=style_tells(metrics),
        system_name=system_name,
        systems_heads=[head.format(title(primary)) for head in SYSTEMS_HEADS],
        systems=systems_table(metrics, primary),
        judges=judges_statements(metrics, report.voted),
        judges_note=JUDGES_NOTE,
        votes_needed=votes_needed(metrics["votes"], report.confidence),
        votes_needed_sentence=votes_needed_sentence(report.confidence),
        baseline_heads=baseline_heads(metrics),
        baselines=baselines,
        differences=chart_differences(metrics, confidence),
        losses=chart_losses(report.history),
        lengths=chart_lengths(report.points, primary),
        heart=chart_overfitting(metrics, primary),
        votes=chart_votes(metrics["votes"], report.voted),
        gained=shown(report.gained),
        lost=shown(report.lost),
    )
