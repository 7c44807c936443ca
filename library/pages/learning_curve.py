"""Would more rows help? The learning curve as HTML and as text."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from library.pages.charts import Chart, Mark, plot_growth, render_chart_page
from library.pages.rendering import plural
from library.pages.statements import Statement, format_p, title
from library.verdict.learning_curve import Forecast
from library.verdict.statistics import Comparison


@dataclass(frozen=True)
class Point:
    """A size of the training set. `gain` is over zero-shot, on the same test rows."""

    rows: int
    groups: int
    name: str
    gain: Comparison


@dataclass(frozen=True)
class Curve:
    """Points by size, the step from each to the next with its verdict, and two forecasts: `hidden`
    for the last point from those before, `more` for twice its rows. Both None if sizes are too few.

    Each size was trained with `seeds` seeds; with several, gains and steps cover these, too, and
    forecasts do not. `more_seeds` is the command that trains with more.
    """

    metric: str
    lower: bool
    confidence: float
    n: int
    test_groups: int
    zeroshot: float
    points: Sequence[Point]
    steps: Sequence[tuple[Comparison, int]]
    hidden: Forecast | None
    more: Forecast | None
    seeds: int
    more_seeds: str

    @property
    def fits(self) -> bool:
        """Whether the law passes the last point within the half width of its gain's interval."""
        gain = self.points[-1].gain
        return (
            self.more is not None
            and abs(self.more.fitted - gain.candidate) <= (gain.high - gain.low) / 2
        )

    @property
    def foreseen(self) -> bool:
        """Whether the law holds: it fits, and from the other sizes it predicts the last one."""
        last = self.points[-1].gain.candidate
        return self.hidden is not None and self.fits and self.hidden.low <= last <= self.hidden.high

    @property
    def verdict(self) -> int:
        """1 if twice the rows would likely help: the last step did, and the law predicts more."""
        if not (self.foreseen and self.more and self.steps):
            return 0
        sign = -1 if self.lower else 1
        surely = min(sign * self.more.change_low, sign * self.more.change_high) > 0
        return int(surely and self.steps[-1][1] == 1)


def span(low: float, high: float) -> str:
    """An interval of changes as text."""
    return f"{low:+.3f} to {high:+.3f}" if math.isfinite(low) else "no interval"


def say(curve: Curve) -> Iterator[Statement]:
    """Statements on twice the rows, on the last step, and on what the intervals do not cover."""
    name, last = title(curve.metric), curve.points[-1]
    if curve.more is None or curve.hidden is None:
        yield Statement(
            "Too few sizes for a forecast",
            ": three determine a power law, and a fourth is needed to test it.",
        )
    elif not curve.fits:
        yield Statement(
            "No forecast for more rows",
            f": no power law runs through these points. The nearest has {name} at "
            f"{curve.more.fitted:.3f} with {last.rows:,} rows, where it is "
            f"{last.gain.candidate:.3f}.",
        )
    elif not curve.foreseen:
        yield Statement(
            "No forecast for more rows",
            f": from the smaller sizes, {name} at {last.rows:,} rows was expected between "
            f"{curve.hidden.low:.3f} and {curve.hidden.high:.3f}, and is {last.gain.candidate:.3f}."
            " The curve follows no power law that could be extrapolated.",
        )
    else:
        more = curve.more
        claim = (
            "Twice the rows would likely help"
            if curve.verdict
            else "There is no evidence that twice the rows would help"
        )
        yield Statement(
            claim,
            f": with about {2 * last.rows:,} train rows, {name} is expected at {more.score:.3f} "
            f"({more.low:.3f} to {more.high:.3f}), a change of {more.change:+.3f} "
            f"({span(more.change_low, more.change_high)}). The curve fitted without the last point "
            f"predicted it: "
            f"{curve.hidden.low:.3f} to {curve.hidden.high:.3f} was expected, "
            f"{last.gain.candidate:.3f} measured.",
        )
    if curve.steps:
        step, verdict = curve.steps[-1]
        claims = {
            1: "The last doubling helped",
            -1: "The last doubling hurt",
            0: "There is no evidence that the last doubling helped",
        }
        before = curve.points[-2].rows
        yield Statement(
            claims[verdict].replace("doubling", f"step, {before:,} to {last.rows:,} rows,"),
            f": {name} went from {step.baseline:.3f} to {step.candidate:.3f} ({step.delta:+.3f}, "
            f"interval {span(step.low, step.high)}, Holm {format_p(step.p)}).",
        )
    steps = "Smaller sizes take fewer optimizer steps, since the number of epochs stays the same."
    if curve.seeds > 1:
        yield Statement(
            "Gains and steps cover test rows and training seeds",
            f": each size was trained with {curve.seeds}. Forecasts cover test rows only. {steps}",
        )
    else:
        yield Statement(
            "The intervals cover test rows only",
            ": each size was trained with one seed, and another may change or reverse a step. To "
            f"find out, run {curve.more_seeds} and then make learning-curve again. {steps}",
        )


def table(curve: Curve) -> list[list[str]]:
    """The heads, then a row for each size: the metric, the gain over zero-shot, and the step from
    the size before.
    """
    heads = ["train rows", "groups", title(curve.metric), "gain over zero-shot", "interval"]
    rows = [[*heads, "step", "interval", "p (Holm)"]]
    for at, point in enumerate(curve.points):
        gain = point.gain
        cells = [f"{point.rows:,}", f"{point.groups:,}", f"{gain.candidate:.3f}"]
        cells += [f"{gain.delta:+.3f}", span(gain.low, gain.high)]
        if at:
            step, _ = curve.steps[at - 1]
            cells += [f"{step.delta:+.3f}", span(step.low, step.high), f"{step.p:.4f}"]
        rows.append(cells + [""] * (len(rows[0]) - len(cells)))
    return rows


def render_text(curve: Curve) -> str:
    """The table and the statements, for a terminal."""
    rows = table(curve)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in rows
    ]
    said = [f"{statement.claim}{statement.detail}" for statement in say(curve)]
    return "\n".join([*lines, "", *said])


def chart_curve(curve: Curve) -> Chart:
    """The metric by size with the interval of its gain, the level of zero-shot, and the forecast if
    there is one.
    """
    marks = []
    for point in curve.points:
        gain = point.gain
        interval = (curve.zeroshot + gain.low, curve.zeroshot + gain.high)
        known = interval if math.isfinite(gain.low) else (None, None)
        marks.append(Mark(point.rows, "fine-tuned", gain.candidate, *known))
    ahead = curve.more if curve.foreseen else None
    forecast = ""
    if ahead is not None:
        marks.append(Mark(int(ahead.rows), "forecast", ahead.score, ahead.low, ahead.high))
        forecast = " The last one is the forecast for twice the rows, with its interval."
    first, last = curve.points[0], curve.points[-1]
    about = f"{plural(curve.n, 'test row')} in {plural(curve.test_groups, 'group')}"
    name = title(curve.metric)
    return plot_growth(
        f"{name} goes from {first.gain.candidate:.3f} with {plural(first.rows, 'train row')} to "
        f"{last.gain.candidate:.3f} with {last.rows:,}.",
        marks,
        "train rows (log scale)",
        f"{name}{' (lower is better)' if curve.lower else ''}",
        ("zero-shot", curve.zeroshot),
        note=f"Bars: the {curve.confidence:.0%} interval of the gain over zero-shot, added to "
        f"zero-shot, on {about}.{forecast} All sizes share their test rows: whether two differ is "
        "in the table, paired. Overlapping bars do not tell.",
    )


def render_curve(curve: Curve) -> str:
    """The learning curve as HTML."""
    return render_chart_page(
        "learning_curve.html.jinja",
        statements=list(say(curve)),
        rows=table(curve),
        chart=chart_curve(curve),
        seeds=curve.seeds,
    )
