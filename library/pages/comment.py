"""The comment on a pull request, as Markdown: what was changed, what that did, and whether it can
be compared.

Text from data, parameters and file names goes into code spans, where GitHub renders no Markdown,
HTML, mentions or links. Tables hold only our own words and numbers, since a `|` ends a cell even
inside a code span.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from library.pages.embedding_statements import TASKS
from library.pages.statements import TITLES, Statement, format_interval, format_p, title
from library.records import SYSTEMS, ScoredRow
from library.verdict.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER
from library.verdict.retrieval import BM25
from library.verdict.scoring import comparison_record, pick_examples
from library.verdict.statistics import Comparison, SeedsComparison, decide

# .github/workflows/comment.yml finds its comment by this
MARKER = "<!-- does-fine-tuning-help: pull request -->"
COMMENT_CHARACTERS = 60_000  # GitHub takes 65,536
SHOWN_CHARACTERS = 300
LINES_SHOWN = 20
EXAMPLES_SHOWN = 3
NAMES_SHOWN = 4
CURVE_WIDTH = 40
BARS = "▁▂▃▄▅▆▇█"
Change = Mapping[str, Any]


def code(text: str) -> str:
    """Text on one line as a code span, shortened, between more backticks than it has in a row.

    Invisible characters, such as those that change the text's direction, are shown as �.
    """
    line = " ".join(text.split())
    if len(line) > SHOWN_CHARACTERS:
        line = line[:SHOWN_CHARACTERS] + " …"
    line = "".join("�" if unicodedata.category(sign)[0] == "C" else sign for sign in line)
    if not line:
        return "(empty)"
    marks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    blank = " " if line[0] == "`" or line[-1] == "`" else ""
    return f"{marks}{blank}{line}{blank}{marks}"


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(map(code, names[:NAMES_SHOWN])) + (f" and {more} more" if more > 0 else "")


def format_number(value: Any) -> str:
    """A number of a metrics file: four significant digits, or all of a whole number."""
    if not isinstance(value, int | float):
        return "none" if value is None else code(str(value))
    return f"{value:,}" if float(value).is_integer() else f"{value:.4g}"


def format_change(before: float | None, after: float | None, form: str = "{:.3f}") -> str:
    """A number on the base and here; written once if both read the same."""
    first, second = ("none" if value is None else form.format(value) for value in (before, after))
    return second if first == second else f"{first} → {second}"


def alert(kind: str, paragraph: str) -> str:
    """A paragraph as a GitHub alert; other renderers show a quotation."""
    return f"> [!{kind}]\n> {paragraph}"


def shortened(lines: Sequence[str], rest: str) -> list[str]:
    """The first lines, and how many more there are."""
    more = len(lines) - LINES_SHOWN
    return [*lines[:LINES_SHOWN], f"- … and {more} more: {rest}"] if more > 0 else list(lines)


def draw_curve(losses: Sequence[float]) -> str:
    """Losses as a row of bars on a logarithmic scale: on a linear one, the first losses dwarf the
    rest.

    If there are more losses than bars, neighbours are averaged.
    """
    values = [math.log(max(loss, 1e-6)) for loss in losses]
    count = min(CURVE_WIDTH, len(values))
    bounds = [index * len(values) // count for index in range(count + 1)]
    means = [sum(values[start:stop]) / (stop - start) for start, stop in pairwise(bounds)]
    low, high = min(means), max(means)
    return "".join(
        BARS[round((value - low) / (high - low) * (len(BARS) - 1)) if high > low else 0]
        for value in means
    )


def render_curves(history: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Loss curves as text. `history` has pairs of step and loss by name of the loss."""
    lines = []
    for name, points in history.items():
        losses = [loss for _, loss in points]
        step, least = min(points, key=lambda point: point[1])
        lines.append(
            f"{name:>10} {losses[0]:7.3f} {draw_curve(losses)} {losses[-1]:.3f}, least {least:.3f} "
            f"at step {step:,}"
        )
    return "\n".join(["```text", *lines, "```"])


def render_inputs(params: Mapping[str, Mapping[str, Change]], files: Mapping[str, str]) -> str:
    """List the changed parameters and files among the pipeline's dependencies.

    `params` has `old` and `new` values by file and name, `files` says by path what happened to it.
    """
    lines = [
        f"- {code(name)}{'' if path == 'params.yaml' else f' of {code(path)}'}: "
        f"{code(str(value.get('old')))} → {code(str(value.get('new')))}"
        for path, changes in params.items()
        for name, value in sorted(changes.items())
    ]
    lines += [f"- {code(path)}: {what}" for path, what in files.items()]
    return (
        "\n".join(shortened(lines, "`dvc params diff`, `git diff`"))
        or "No parameter, and no file that the pipeline depends on."
    )


def change_cells(
    before: Mapping[str, Any], after: Mapping[str, Any], systems: Sequence[str] = SYSTEMS
) -> str:
    """Table cells for a metric, base and here: each system's mean, the gain and its interval."""
    cells = [format_change(before.get(system), after.get(system)) for system in systems]
    cells.append(format_change(before.get("delta"), after.get("delta"), "{:+.3f}"))
    intervals = [format_interval(result) if result else "none" for result in (before, after)]
    cells.append(intervals[1] if intervals[0] == intervals[1] else " → ".join(intervals))
    return " | ".join(cells)


def render_effect(
    head: Mapping[str, Any], base: Mapping[str, Any], changes: Mapping[str, Change], primary: str
) -> str:
    """A table of the claims that changed, the primary metric first, then the names of the other
    metrics that changed.

    `changes` are the changes in metrics/evaluation.json by dotted name.
    """
    moved = [
        name
        for name in TITLES
        if name != primary and any(key.startswith(f"{name}.") for key in changes)
    ]
    claims = [name for name in moved if name in HIGHER_IS_BETTER | LOWER_IS_BETTER]
    lines = [
        "| metric | zero-shot | fine-tuned | gain | interval of the gain |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in [primary, *claims]:
        cells = change_cells(base.get(name, {}), head.get(name, {}))
        lower = ", lower is better" if name in LOWER_IS_BETTER else ""
        lines.append(f"| {title(name)}{' (primary)' if name == primary else ''}{lower} | {cells} |")
    others = "; ".join(title(name) for name in moved if name not in claims)
    also = f" Also changed, as descriptions or controls: {others}." if others else ""
    return "\n".join(lines) + f"\n\nBase → here, on each side's own test rows.{also}"


def render_counts(changes: Mapping[str, Mapping[str, Change]]) -> str:
    """List the counts of rows, rejects and splits that changed, by file and dotted name."""
    lines = [
        f"- {code(path)}: {code(name)} {format_number(value.get('old'))} → "
        f"{format_number(value.get('new'))}"
        for path in ("metrics/clean.json", "metrics/format.json")
        for name, value in sorted(changes.get(path, {}).items())
    ]
    if number := len(changes.get("metrics/profile.json", {})):
        lines.append(
            f"- `metrics/profile.json`: {number} number{'s' * (number != 1)}; "
            "`reports/profile.html` shows them"
        )
    return "\n".join(shortened(lines, "`dvc metrics diff`"))


def render_rejects(rejected: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """List the rows that are rejected here but not on the base, or the other way round, each with
    its place and, if it has one, its id.
    """
    lines = []
    for said, records in rejected.items():
        for record in records:
            named = [code(str(record[key])) for key in ("id", "place") if key in record]
            lines.append(f"- {said}: {', '.join(named)}: {code(str(record.get('reason', '')))}")
    return "\n".join(
        shortened(lines, "`data/clean/rejected.jsonl` and `data/formatted/rejected.jsonl`")
    )


def tuned_statement(
    comparison: Comparison, seeds: tuple[int, int], primary: str, confidence: float
) -> Statement:
    """The fine-tuned answers here against those on the base, row by row; `seeds` are the numbers of
    training seeds on the base and here.
    """
    words = {
        1: "better here than on the base",
        -1: "worse here than on the base",
        0: "no evidence of a difference",
    }
    verdict = decide(comparison, primary in LOWER_IS_BETTER, confidence)
    units = "pairs" if primary == "pair_matching" else "rows"
    interval = format_interval(comparison_record(comparison))
    trained = ""
    if isinstance(comparison, SeedsComparison):
        trained = (
            f", over {seeds[0]} training seeds on the base and {seeds[1]} here: interval and p "
            "cover other rows and other seeds"
        )
    return Statement(
        f"The fine-tuned answers, here against the base: {words[verdict]}.",
        f" {title(primary)} went from {comparison.baseline:.3f} to {comparison.candidate:.3f} "
        f"({comparison.delta:+.3f}, interval {interval}, {format_p(comparison.p)}), compared on "
        f"the {comparison.n} {units} that both test{trained}.",
    )


def warn_of_seeds(seeds: tuple[int, int], command: str) -> str:
    """What the comparison leaves out if the base or this side was trained with one seed, and the
    command that finds out; empty if both have several.
    """
    where = [
        name for name, count in zip(("the base", "this branch"), seeds, strict=True) if count == 1
    ]
    if not where:
        return ""
    return alert(
        "NOTE",
        f"**This comparison covers test rows only**, since {' and '.join(where)} "
        f"{'were' if len(where) > 1 else 'was'} trained with one seed: another may change or "
        f"reverse the difference. To find out, run `{command}` on {' and on '.join(where)}, and "
        "commit the results.",
    )


def render_examples(
    scored: Sequence[ScoredRow],
    rows: Mapping[str, Mapping[str, Any]],
    answers: Mapping[str, Mapping[str, str]],
    names: Mapping[str, str],
    primary: str,
    summary: str,
) -> str:
    """The rows that gained and that lost most from one system to another, folded away.

    Empty if no row changed. `names` has the two systems' names, in order; `answers` are by system
    and row id.
    """
    before, after = names
    gained, lost = (
        [row for row in chosen if row.systems[after][primary] != row.systems[before][primary]]
        for chosen in pick_examples(scored, primary, (before, after))
    )
    if not gained and not lost:
        return ""
    lines = []
    for heading, chosen in (("Gained most", gained), ("Gained least, or lost", lost)):
        lines.append(f"**{heading}**{'' if chosen else ': none'}\n")
        for scores in chosen[:EXAMPLES_SHOWN]:
            row = rows[scores.id]
            lines.append(f"- {code(row['question'])} ({code(row['id'])})")
            lines.append(f"  - reference: {code(row['positive'])}")
            for system, name in names.items():
                score = f"{scores.systems[system][primary]:.3f}"
                lines.append(f"  - {name}, {score}: {code(answers[system][scores.id])}")
        lines.append("")
    body = "\n".join(lines).strip()
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def render_comment(
    headline: str, sections: Sequence[tuple[str, Sequence[str]]], examples: Sequence[str]
) -> str:
    """The comment: headline and sections, each a heading (or none) with paragraphs.

    Empty sections are left out. Examples go before the last section, if there is room.
    """

    def joined(parts: Sequence[tuple[str, Sequence[str]]]) -> str:
        made = [MARKER, f"## {headline}"]
        for heading, paragraphs in parts:
            if said := [paragraph for paragraph in paragraphs if paragraph]:
                made += [f"### {heading}"] * bool(heading) + said
        return "\n\n".join(made) + "\n"

    comment = joined([*sections[:-1], ("Examples", examples), sections[-1]])
    if len(comment) > COMMENT_CHARACTERS:
        comment = joined(
            [
                *sections[:-1],
                ("Examples", ["Too long for a comment; `reports/report.html` has them."]),
                sections[-1],
            ]
        )
    return comment


def render_retrieval(head: Mapping[str, Any], base: Mapping[str, Any], primary: str) -> str:
    """A table of every task of an embedding model, base and here, the primary one first."""
    lines = [
        "| task | BM25 | zero-shot | fine-tuned | gain | interval of the gain |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in sorted(TASKS, key=lambda name: name != primary):
        task = TASKS[name]
        before, after = (side.get(name, {}).get(task.metric, {}) for side in (base, head))
        if before or after:
            cells = change_cells(before, after, (BM25, *SYSTEMS))
            lines.append(f"| {task.name}{' (primary)' if name == primary else ''} | {cells} |")
    return "\n".join(lines)
