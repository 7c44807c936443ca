"""The charts of all pages, as Vega-Lite specifications made from values.

https://vega.github.io/vega-lite/docs/. Colours are the page's CSS variables, so that charts follow
dark mode and print styles.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, pairwise
from statistics import mean
from typing import Any

import vl_convert
from markupsafe import Markup

from library.pages.rendering import render_page

Spec = dict[str, Any]
Dot = tuple[float, float]

LINE_CHARACTERS = 22  # in a label at the left: longer ones leave a phone no room for the chart
MOST_DOTS = 1000  # per series: more slow the page down and show nothing new
COLOURS = ("--bar", "--mark", "--third", "--fourth", "--fifth", "--quiet")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ([1, 0], [6, 4], [2, 3], [9, 3, 2, 3])
# names with the same look in every chart: their index into colours and shapes
FIXED = {"fine-tuned": 0, "zero-shot": 1, "neither": 5}
FIXED |= {"correct": 0, "partly": 5, "not correct": 1}
WITH_INTERVAL: Spec = {"transform": [{"filter": "isValid(datum.low)"}]}
CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "aria": False,  # screen readers get the table of values
    "view": {"stroke": None},
    "axis": {
        "domainColor": "var(--quiet)",
        "gridColor": "var(--line)",
        "labelColor": "var(--quiet)",
        "labelFontSize": 12,
        "labelLimit": 170,
        "labelOverlap": "greedy",
        "tickColor": "var(--quiet)",
        "titleColor": "var(--text)",
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "legend": {
        "labelColor": "var(--text)",
        "labelFontSize": 12,
        "labelLimit": 170,
        "orient": "top",
        "title": None,
        "titleColor": "var(--text)",
        "titleFontWeight": "normal",
    },
}


@dataclass(frozen=True)
class Chart:
    """A chart. `title` states its finding, `spec` draws it, `heads` and `rows` are its values as a
    table for those who can't see it, and `note` says how to read it.
    """

    title: str
    spec: Spec
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Mark:
    """A value of a series, at a label or a number, with its interval if it has one."""

    at: str | float
    series: str
    value: float
    low: float | None = None
    high: float | None = None

    def say(self, number: str) -> tuple[str, str]:
        """Value and interval as text, in a number format."""
        if self.low is None or self.high is None:
            return format(self.value, number), ""
        return format(self.value, number), f"{self.low:{number}} to {self.high:{number}}"


@cache
def chart_library() -> str:
    """Vega-Lite as JavaScript to inline in each page with charts: vegaEmbed only."""
    library: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assert "</script" not in library.lower()  # it is inlined without escaping
    return library


def render_chart_page(template: str, **context: Any) -> str:
    """Render a template with charts. The library that draws them is inlined once, so the page needs
    no network.
    """
    library = Markup(chart_library())
    return render_page(template, chart_library=library, chart_config=CONFIG, **context)


def plot_marks(
    title: str,
    marks: Sequence[Mark],
    label_title: str,
    value_title: str,
    number: str = ".3f",
    zero: float | None = None,
    note: str = "",
) -> Chart:
    """Values beside their labels, top to bottom, with intervals if they have any, and a line at
    `zero`. `number` is the format of a value.
    """
    labels = {str(mark.at): _wrap(str(mark.at)) for mark in marks}
    lines = max((label.count("\n") + 1 for label in labels.values()), default=1)
    names = _list_series(marks)
    y = {"field": "label", "type": "nominal", "sort": None, "axis": _label_axis(label_title)}
    x = _quantity("value", _break(value_title), {"zero": False, "padding": 10}, tickCount=5)
    common = {
        "y": y,
        "color": _colour(names),
        "tooltip": [
            {"field": "label", "title": label_title},
            *_series_tip(names),
            {"field": "said", "title": value_title},
        ],
    }
    layers = []
    if zero is not None:
        rule = _draw("rule", {"x": {"datum": zero, "type": "quantitative"}}, color="var(--quiet)")
        layers.append(rule | {"data": {"values": [{}]}})
    if any(mark.low is not None for mark in marks):
        ends = {"x": x | {"field": "low"}, "x2": {"field": "high"}}
        layers.append(_draw("rule", ends | common, strokeWidth=3) | WITH_INTERVAL)
    layers.append(_draw("point", {"x": x, "shape": _by_series(names, SHAPES), **common}, size=70))
    data = [_record(mark, number) | {"label": labels[str(mark.at)]} for mark in marks]
    table = _list_marks(marks, (label_title, value_title), number)
    return Chart(title, _spec(data, layers, len(labels) * (14 + 14 * lines)), *table, note)


def plot_growth(
    title: str,
    marks: Sequence[Mark],
    x_title: str,
    y_title: str,
    level: tuple[str, float],
    note: str = "",
) -> Chart:
    """Values with intervals over a logarithmic axis of base 2, a line through the first series, and
    a dashed line at `level`, a name and a value.
    """
    names = [*_list_series(marks), level[0]]
    ticks = sorted({mark.at for mark in marks})
    x = _quantity(
        "at", x_title, _logarithmic(2) | {"padding": 10}, values=ticks, format=",d", grid=False
    )
    y = _quantity("value", y_title, {"zero": False}, tickCount=5)
    colour = _colour(names)
    common = {
        "x": x,
        "color": colour,
        "tooltip": [
            {"field": "series", "title": "what"},
            {"field": "at", "title": x_title, "format": ","},
            {"field": "said", "title": y_title},
        ],
    }
    of_first = {"transform": [{"filter": {"field": "series", "equal": names[0]}}]}
    data = [_record(mark, ".3f") | {"at": mark.at} for mark in marks]
    ends = [{"at": at, "value": _round(level[1]), "series": level[0]} for at in ticks]
    layers = [
        _draw("line", {"x": x, "y": y, "color": colour}, strokeDash=[5, 4])
        | {"data": {"values": ends}},
        _draw("line", {"x": x, "y": y, "color": colour}, strokeWidth=2) | of_first,
        _draw("rule", {"y": y | {"field": "low"}, "y2": {"field": "high"}, **common}, strokeWidth=3)
        | WITH_INTERVAL,
        _draw("point", {"y": y, "shape": _by_series(names, SHAPES), **common}, size=70),
    ]
    heads, rows = _list_marks(marks, (x_title, y_title), ".3f")
    rows = [*rows, ["", level[0], f"{level[1]:.3f}", ""]]
    return Chart(title, _spec(data, layers, 260), heads, rows, note)


def plot_lines(
    title: str,
    lines: Mapping[str, Sequence[Dot]],
    x_title: str,
    y_title: str,
    number: str = ".3f",
    doubling: bool = False,
    zero: bool = True,
) -> Chart:
    """Lines by name, each of points from left to right. `number` is the format of y values. With
    `doubling`, the x axis is logarithmic and every x a tick; with `zero`, the y axis starts at 0.
    Of more than MOST_DOTS points, a part is drawn, and the note says so.
    """
    most = max(map(len, lines.values()))
    every = -(-most // MOST_DOTS)
    note = _note_part("", every, most)
    lines = {name: [*line[:-1][::every], line[-1]] for name, line in lines.items()}
    names = list(lines)
    places = sorted({x for line in lines.values() for x, _ in line})
    percent = number.endswith("%")
    axis: Spec = {"values": places} if doubling else {"tickCount": 6, "tickMinStep": 1}
    common = {
        "x": _quantity(
            "x",
            x_title,
            _logarithmic(2) if doubling else {"zero": False, "nice": False},
            format=",d",
            grid=False,
            **axis,
        ),
        "y": _quantity(
            "y",
            y_title,
            {"domain": [0, 1]} if percent else {"zero": zero},
            tickCount=5,
            **({"format": "%"} if percent else {}),
        ),
        "color": _colour(names, symbolType="stroke", symbolSize=400, symbolStrokeWidth=2),
    }
    tip = [
        *_series_tip(names, "line"),
        {"field": "x", "title": x_title, "format": ","},
        {"field": "said", "title": y_title},
    ]
    dash = _by_series(names, DASHES)
    few = max(map(len, lines.values())) <= 60
    layers = [
        _draw("line", common | {"strokeDash": dash}, strokeWidth=2),
        # many points are invisible, and only there for the tooltip
        _draw("point", common | {"tooltip": tip}, size=36 if few else 60, opacity=int(few)),
    ]
    data = [
        {"x": _round(x), "y": _round(y), "series": name, "said": format(y, number)}
        for name, line in lines.items()
        for x, y in line
    ]
    known = [dict(line) for line in lines.values()]
    rows = [
        [f"{x:,.0f}", *(format(line[x], number) if x in line else "" for line in known)]
        for x in places
    ]
    heads = [x_title, *([y_title] if len(names) == 1 else names)]
    return Chart(title, _spec(data, layers, 200), heads, rows, note)


def plot_dots(
    title: str,
    dots: Mapping[str, Sequence[Dot]],
    x_title: str,
    y_title: str,
    note: str = "",
) -> Chart:
    """Many dots by name. Of more than MOST_DOTS, a part is drawn, evenly spaced in order of x, and
    the note says so. The table has the means of four parts.
    """
    names, ordered = list(dots), {name: sorted(series) for name, series in dots.items()}
    most = max(map(len, dots.values()))
    every = -(-most // MOST_DOTS)
    note = _note_part(note, every, most)
    encoding = {
        "x": _quantity("x", x_title, format=",d", grid=False, tickCount=6),
        "y": _quantity("y", y_title, tickCount=5),
        "color": _colour(names),
        "shape": _by_series(names, SHAPES),
        "tooltip": [
            *_series_tip(names),
            {"field": "x", "title": x_title, "format": ","},
            {"field": "y", "title": y_title, "format": ".3f"},
        ],
    }
    data = [
        {"x": _round(x), "y": _round(y), "series": name}
        for name, series in ordered.items()
        for x, y in series[::every]
    ]
    edges = sorted({round(part * most / 4) for part in range(5)})
    rows = []
    for start, end in pairwise(edges):
        parts = [series[start:end] for series in ordered.values()]
        span = f"{parts[0][0][0]:,.0f} to {parts[0][-1][0]:,.0f}"
        means = [f"{mean(y for _, y in part):.3f}" for part in parts]
        rows.append([span, f"{end - start:,}", *means])
    heads = [x_title, "rows", *(f"{name}, mean" for name in names)]
    layers = [_draw("point", encoding, size=26, opacity=0.65)]
    return Chart(title, _spec(data, layers, 200), heads, rows, note)


def plot_bins(
    title: str, bins: Sequence[tuple[float, float, int]], x_title: str, y_title: str
) -> Chart:
    """A histogram of bins, each given as from, to and count."""
    data = [
        {
            "low": _round(low),
            "high": _round(high),
            "count": number,
            "said": f"{low:,.0f} to {high:,.0f}",
        }
        for low, high, number in bins
    ]
    encoding = {
        "x": _quantity("low", x_title, {"nice": False}, format=",d", tickCount=5, grid=False)
        | {"bin": {"binned": True}},
        "x2": {"field": "high"},
        "y": _quantity("count", y_title, tickCount=4, tickMinStep=1, format=",d"),
        "tooltip": [
            {"field": "said", "title": x_title},
            {"field": "count", "title": y_title, "format": ","},
        ],
    }
    rows = [[f"{low:,.0f} to {high:,.0f}", f"{number:,}"] for low, high, number in bins]
    layers = [_draw("bar", encoding, color="var(--bar)", opacity=1)]
    return Chart(title, _spec(data, layers, 150), [x_title, y_title], rows)


def plot_shares(
    title: str,
    shares: Mapping[str, Mapping[str, float]],
    label_title: str,
    value_title: str,
) -> Chart:
    """Shares of a whole by label, as stacked bars from 0% to 100%."""
    names = list(dict.fromkeys(part for parts in shares.values() for part in parts))
    data = [
        {"label": _wrap(label), "series": part, "order": at, "value": _round(share)}
        for label, parts in shares.items()
        for at, (part, share) in enumerate(parts.items())
    ]
    encoding = {
        "y": {"field": "label", "type": "nominal", "sort": None, "axis": _label_axis(label_title)},
        "x": _quantity("value", _break(value_title), {"domain": [0, 1]}, format="%", tickCount=5),
        "color": _colour(names),
        "order": {"field": "order", "type": "quantitative"},
        "tooltip": [
            {"field": "label", "title": label_title},
            {"field": "series", "title": "part"},
            {"field": "value", "title": value_title, "format": ".0%"},
        ],
    }
    rows = [[label, *(f"{parts[name]:.0%}" for name in names)] for label, parts in shares.items()]
    layers = [_draw("bar", encoding, stroke="var(--page)", opacity=1)]
    return Chart(title, _spec(data, layers, 36 * len(shares)), [label_title, *names], rows)


def plot_ranks(
    title: str,
    pairs: Mapping[tuple[int, int], int],
    before_title: str,
    after_title: str,
    count_title: str,
    note: str = "",
) -> Chart:
    """How often each pair of ranks occurs, as the area of a dot on logarithmic axes, with a dashed
    line for equal ranks. The table counts by bands of ranks.
    """
    last = max(10, *(rank for pair in pairs for rank in pair))
    steps = (1, 2, 5) if last <= 100 else (1,)
    ticks = [step * 10**power for power in range(len(str(last))) for step in steps]
    scale = _logarithmic(10) | {"domain": [0.75, last * 1.35]}
    common = {
        "x": _quantity("before", before_title, scale, values=ticks, format=",d"),
        "y": _quantity("after", after_title, scale, values=ticks, format=",d"),
    }
    dots = common | {
        "size": {
            "field": "count",
            "type": "quantitative",
            "scale": {"range": [0, 1400]},
            "legend": {"title": count_title, "columns": 4, "tickCount": 3},
        },
        "tooltip": [
            {"field": "before", "title": before_title, "format": ","},
            {"field": "after", "title": after_title, "format": ","},
            {"field": "count", "title": count_title, "format": ","},
        ],
    }
    diagonal = [{"before": end, "after": end} for end in scale["domain"]]
    layers = [
        _draw("line", common, color="var(--quiet)", strokeDash=[4, 4])
        | {"data": {"values": diagonal}},
        _draw("point", dots, color="var(--bar)", stroke="var(--bar)", opacity=0.5),
    ]
    data = [
        {"before": before, "after": after, "count": number}
        for (before, after), number in sorted(pairs.items())
    ]
    bands = [
        (low, min(high, last))
        for low, high in ((1, 1), (2, 3), (4, 10), (11, 100), (101, last))
        if low <= last
    ]
    said = [f"{low:,}" if low == high else f"{low:,} to {high:,}" for low, high in bands]

    def count_between(first: tuple[int, int], second: tuple[int, int]) -> int:
        return sum(
            number
            for (before, after), number in pairs.items()
            if first[0] <= before <= first[1] and second[0] <= after <= second[1]
        )

    rows = [
        [name, *(f"{count_between(band, other):,}" for other in bands)]
        for name, band in zip(said, bands, strict=True)
    ]
    heads = [before_title, *(f"{after_title} {name}" for name in said)]
    return Chart(title, _spec(data, layers, 340), heads, rows, note)


def _spec(data: Sequence[Spec], layers: Sequence[Spec], height: int) -> Spec:
    """A specification as wide as its container; `height` is in pixels, without axes."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": list(data)},
        "layer": list(layers),
    }


def _draw(mark: str, encoding: Spec, **properties: Any) -> Spec:
    """A layer; points are filled."""
    filled = {"filled": True, "opacity": 1} if mark == "point" else {}
    return {"mark": {"type": mark, **filled, **properties}, "encoding": encoding}


def _quantity(field: str, title: str | list[str], scale: Spec | None = None, **axis: Any) -> Spec:
    encoding = {"field": field, "type": "quantitative", "axis": {"title": title, **axis}}
    return encoding | ({"scale": scale} if scale else {})


def _logarithmic(base: int) -> Spec:
    return {"type": "log", "base": base, "nice": False}


def _label_axis(title: str) -> Spec:
    """An axis of labels that `_wrap` has broken into lines."""
    lines = "split(datum.label, '\\n')"
    return {
        "title": title,
        "labelExpr": lines,
        "labelOverlap": False,
        "ticks": False,
        "domain": False,
        "grid": True,
    }


def _wrap(label: str) -> str:
    """A label on at most two lines."""
    return "\n".join(textwrap.wrap(label, LINE_CHARACTERS, max_lines=2, placeholder=" …"))


def _break(title: str) -> list[str]:
    """An axis title, broken into lines because labels take part of the width."""
    return textwrap.wrap(title, LINE_CHARACTERS)


def _scale(names: Sequence[str], looks: Sequence[Any]) -> Spec:
    """A scale that gives each name a look; with more names than looks, they repeat."""
    free = count(2 if set(names) & FIXED.keys() else 0)
    places = [FIXED[name] if name in FIXED else next(free) for name in names]
    return {"domain": list(names), "range": [looks[at % len(looks)] for at in places]}


def _by_series(names: Sequence[str], looks: Sequence[Any], **legend: Any) -> Spec:
    """The encoding that tells series apart, with a legend if there are several."""
    encoding = {"field": "series", "type": "nominal", "scale": _scale(names, looks)}
    if len(names) == 1:
        return encoding | {"legend": None}
    in_one_line = sum(map(len, names)) <= 2 * LINE_CHARACTERS
    return encoding | {"legend": {"columns": len(names) if in_one_line else 2, **legend}}


def _colour(names: Sequence[str], **legend: Any) -> Spec:
    return _by_series(names, [f"var({name})" for name in COLOURS], **legend)


def _series_tip(names: Sequence[str], what: str = "system") -> list[Spec]:
    return [{"field": "series", "title": what}] if len(names) > 1 else []


def _list_series(marks: Sequence[Mark]) -> list[str]:
    return list(dict.fromkeys(mark.series for mark in marks))


def _record(mark: Mark, number: str) -> Spec:
    value, interval = mark.say(number)
    said = f"{value} ({interval})" if interval else value
    record = {"series": mark.series, "value": _round(mark.value), "said": said}
    if mark.low is not None and mark.high is not None:
        record |= {"low": _round(mark.low), "high": _round(mark.high)}
    return record


def _list_marks(
    marks: Sequence[Mark], titles: tuple[str, str], number: str
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of values: label, series, value, interval."""
    rows = []
    for mark in marks:
        at = mark.at if isinstance(mark.at, str) else f"{mark.at:,.0f}"
        rows.append([at, mark.series, *mark.say(number)])
    return [titles[0], "series", titles[1], "interval"], rows


def _note_part(note: str, every: int, most: int) -> str:
    """The note, and whether only one point in `every` is drawn."""
    return f"{note} One in {every} of {most:,} is drawn.".strip() if every > 1 else note


def _round(value: float) -> float:
    """A value with six significant digits: more would be invisible and make the page larger."""
    return float(f"{value:.6g}")
