"""The charts of the report, drawn from metrics/evaluation.json, each titled by its finding."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import pandas as pd

from library.pages.charts import Chart, Mark, plot_dots, plot_lines, plot_marks, plot_shares
from library.pages.statements import system_name, title
from library.records import SFT, SYSTEMS, ZEROSHOT
from library.verdict.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER, METRICS, UNBOUNDED

# metrics from 0 to 1 that have a better direction: they can share an axis
DRAWN = [
    name for name in METRICS if name in (HIGHER_IS_BETTER | LOWER_IS_BETTER) - {"bits_per_byte"}
]
LOSSES = {"loss": "training", "eval_loss": "validation"}
GRADES = {"yes": "correct", "partly": "partly", "no": "not correct"}


def chart_differences(metrics: Mapping[str, Any], confidence: float) -> Chart:
    """The change of each metric that is a share, with its interval."""
    marks = []
    for name in DRAWN:
        result = metrics.get(name, {})
        if "low" in result:
            numbers = [_turn(name) * result[key] for key in ("delta", "low", "high")]
            value, low, high = numbers[0], min(numbers[1:]), max(numbers[1:])
            marks.append(Mark(title(name), "change", value, low, high))
    better = sum(mark.low is not None and mark.low > 0 for mark in marks)
    worse = sum(mark.high is not None and mark.high < 0 for mark in marks)
    return plot_marks(
        f"By their intervals alone, not corrected for their number, {better} of {len(marks)} "
        f"metrics changed for the better and {worse} for the worse.",
        marks,
        "metric",
        "change by fine-tuning (right is better)",
        number="+.3f",
        zero=0,
        note=f"Dots are changes, bars their {confidence:.0%} intervals. Only metrics from 0 to 1 "
        "that have a better direction, turned so that right is better; the table has the others.",
    )


def chart_losses(history: pd.DataFrame) -> Chart | None:
    """Training and validation loss by step; None if there are too few to draw."""
    lines = {}
    for column, name in LOSSES.items():
        if column in history:
            known = history[["step", column]].dropna().to_numpy(dtype=float)
            lines[name] = [(float(step), float(loss)) for step, loss in known]
    lines = {name: line for name, line in lines.items() if line}
    if sum(map(len, lines.values())) < 2:
        return None
    name = "validation" if "validation" in lines else "training"
    best = min(lines[name], key=lambda point: point[1])
    last = lines[name][-1]
    said = f"{name.capitalize()} loss is lowest at step {best[0]:,.0f}: {best[1]:.3f}"
    if best != last:
        said += f"; at the last step, {last[0]:,.0f}, it is {last[1]:.3f}"
    return plot_lines(f"{said}.", lines, "optimizer step", "loss, nats per answer token")


def chart_lengths(points: Sequence[tuple[float, ...]], primary: str) -> Chart:
    """The primary metric of both systems for each test row, by the length of its reference."""
    name = title(primary)
    ordered = sorted(points)
    half = len(ordered) // 2
    said = f"{name} of each test row by the length of its reference."
    if half:
        short, long = (
            mean(after - before for _, before, after in part)
            for part in (ordered[:half], ordered[half:])
        )
        said = (
            f"{name} changes by {short:+.3f} for short references and by {long:+.3f} for long ones."
        )
    dots = {
        system_name(system): [(point[0], point[1 + at]) for point in points]
        for at, system in enumerate(SYSTEMS)
    }
    note = "Short and long: the shorter and the longer half of the references."
    return plot_dots(said, dots, "characters of the reference", name, note if half else "")


def chart_overfitting(metrics: Mapping[str, Any], primary: str) -> Chart | None:
    """How much better train rows are answered than test rows; None if no metric has both."""
    gap = metrics["overfitting"]["gap"]
    marks = [
        Mark(title(name), system_name(system), _turn(name) * gap[name][system])
        for name in DRAWN
        if name in gap and name not in UNBOUNDED
        for system in SYSTEMS
    ]
    if not marks:
        return None
    said = "How much better train rows are answered than test rows."
    if primary in gap:
        before, after = (_say_lead(primary, gap[primary][system]) for system in (ZEROSHOT, SFT))
        said = (
            f"{title(primary)} is {after} on train rows than on test rows after tuning, {before} "
            "before."
        )
    return plot_marks(
        said,
        marks,
        "metric",
        "lead of train rows over test rows",
        number="+.3f",
        zero=0,
        note="If dots are far to the right after tuning, but not before, the rows were learned by "
        "heart.",
    )


def chart_votes(votes: Mapping[str, Any], systems: Sequence[str]) -> list[Chart]:
    """Whose answers people preferred, and how they graded them; empty if nobody voted."""
    if not votes["rows"]:
        return []
    baseline, candidate = map(system_name, systems)
    rows = votes["rows"]
    chosen = {candidate: votes["wins"], "neither": votes["ties"], baseline: votes["losses"]}
    graded = {
        system_name(system): {
            said: votes[f"correct_{system}"][grade] for grade, said in GRADES.items()
        }
        for system in systems
    }
    return [
        plot_shares(
            f"People preferred {candidate} in {votes['wins']} of {rows} pairs, {baseline} in "
            f"{votes['losses']}.",
            {"preferred answer": {name: count / rows for name, count in chosen.items()}},
            "vote",
            "share of pairs",
        ),
        plot_shares(
            f"Called correct: {graded[candidate]['correct']:.0%} of the {candidate} answers, "
            f"{graded[baseline]['correct']:.0%} of the {baseline} ones.",
            graded,
            "system",
            "share of answers",
        ),
    ]


def _say_lead(metric: str, gap: float) -> str:
    """How much better train rows are answered."""
    lead = f"{_turn(metric) * gap:.3f}"
    if float(lead) == 0:
        return "no better"
    return f"{lead} better" if float(lead) > 0 else f"{lead.removeprefix('-')} worse"


def _turn(metric: str) -> int:
    """The sign that turns a metric so that more is better."""
    return -1 if metric in LOWER_IS_BETTER else 1
