"""Charts: what they draw and say, by hand-worked values, and that no text breaks out of them."""

import json
import re

import pytest
import vl_convert
from test_pages import HOSTILE, needs_browser, open_page

from library.files import write_text
from library.pages import charts
from library.pages.charts import (
    Mark,
    plot_bins,
    plot_dots,
    plot_growth,
    plot_lines,
    plot_marks,
    plot_ranks,
    plot_shares,
    render_chart_page,
)
from library.pages.statements import Statement

MARKS = [
    Mark("a", "zero-shot", 0.25),
    Mark("a", "fine-tuned", 0.5, 0.4, 0.61),
    Mark("b", "few-shot", 0.3),
]
CHARTS = {
    "marks": plot_marks("Seen.", MARKS, "run", "score", zero=0),
    "growth": plot_growth(
        "Seen.",
        [Mark(50, "x", 0.2, 0.1, 0.3), Mark(100, "x", 0.3)],
        "rows",
        "score",
        ("level", 0.1),
    ),
    "lines": plot_lines("Seen.", {"a": [(1, 2.0), (2, 1.0)], "b": [(2, 3.0)]}, "step", "loss"),
    "windows": plot_lines("Seen.", {"a": [(512, 0.1), (1024, 1)]}, "x", "y", ".1%", doubling=True),
    "dots": plot_dots("Seen.", {"a": [(3, 0.5), (1, 0.25)]}, "length", "score"),
    "bins": plot_bins("Seen.", [(0, 10, 4), (10, 20, 1)], "tokens", "rows"),
    "shares": plot_shares("Seen.", {"x": {"yes": 0.75, "no": 0.25}}, "system", "share"),
    "ranks": plot_ranks("Seen.", {(1, 1): 7, (5, 120): 2}, "before", "after", "questions"),
}


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_is_a_specification_with_titled_axes_that_vega_lite_compiles(name):
    compiled = vl_convert.vegalite_to_vega(CHARTS[name].spec)
    titles = [axis["title"] for axis in compiled["axes"] if axis.get("title")]
    assert len(titles) == 2
    assert CHARTS[name].rows
    assert {len(row) for row in CHARTS[name].rows} == {len(CHARTS[name].heads)}


def test_the_table_of_a_chart_has_its_values():
    assert CHARTS["marks"].rows == [
        ["a", "zero-shot", "0.250", ""],
        ["a", "fine-tuned", "0.500", "0.400 to 0.610"],
        ["b", "few-shot", "0.300", ""],
    ]
    assert CHARTS["lines"].heads == ["step", "a", "b"]
    assert CHARTS["lines"].rows == [["1", "2.000", ""], ["2", "1.000", "3.000"]]
    assert CHARTS["windows"].rows == [["512", "10.0%"], ["1,024", "100.0%"]]
    assert CHARTS["growth"].rows[-1] == ["", "level", "0.100", ""]
    assert CHARTS["bins"].rows == [["0 to 10", "4"], ["10 to 20", "1"]]
    assert CHARTS["shares"].rows == [["x", "75%", "25%"]]
    # 1, 2 to 3, 4 to 10, 11 to 100, 101 to 120
    assert CHARTS["ranks"].rows[0] == ["1", "7", "0", "0", "0", "0"]
    assert CHARTS["ranks"].rows[2] == ["4 to 10", "0", "0", "0", "0", "2"]


def test_the_two_systems_look_the_same_wherever_they_stand():
    def colours(*names):
        marks = [Mark("x", name, 0.5) for name in names]
        scale = plot_marks("Seen.", marks, "run", "score").spec["layer"][-1]["encoding"]["color"]
        return dict(zip(scale["scale"]["domain"], scale["scale"]["range"], strict=True))

    both = colours("zero-shot", "fine-tuned")
    more = colours("few-shot", "fine-tuned", "zero-shot", "x", "y", "z", "w")
    assert both == {"zero-shot": "var(--mark)", "fine-tuned": "var(--bar)"}
    assert both.items() <= more.items()
    assert more["few-shot"] == "var(--third)"
    assert colours("train", "test") == {"train": "var(--bar)", "test": "var(--mark)"}


def test_of_many_dots_a_part_is_drawn_and_all_are_averaged(monkeypatch):
    monkeypatch.setattr(charts, "MOST_DOTS", 3)
    chart = plot_dots("Seen.", {"a": [(at, at / 2) for at in range(8)]}, "length", "score", "Note.")
    assert [row["x"] for row in chart.spec["data"]["values"]] == [0, 3, 6]
    assert chart.note == "Note. One in 3 of 8 is drawn."
    assert chart.rows == [
        ["0 to 1", "2", "0.250"],
        ["2 to 3", "2", "1.250"],
        ["4 to 5", "2", "2.250"],
        ["6 to 7", "2", "3.250"],
    ]


def test_of_a_long_line_a_part_and_its_end_are_drawn(monkeypatch):
    monkeypatch.setattr(charts, "MOST_DOTS", 3)
    chart = plot_lines("Seen.", {"a": [(at, 1.0) for at in range(8)], "b": [(5, 2.0)]}, "x", "y")
    assert [row[0] for row in chart.rows] == ["0", "3", "5", "6", "7"]
    assert chart.note == "One in 3 of 8 is drawn."


def test_the_library_is_inlined_once_and_is_the_same_each_time():
    page = make_page("name")
    assert page.count(charts.chart_library()) == 1
    assert page == make_page("name")
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=", page.split("<main>")[0])


def make_page(name, rows=(("head",),)):
    marks = [Mark(name, name, 0.5, 0.4, 0.6), Mark("other", "other", 0.1)]
    return render_chart_page(
        "learning_curve.html.jinja",
        statements=[Statement("Said", ".")],
        rows=rows,
        seeds=1,
        chart=plot_marks(f"{name} is best.", marks, f"run {name}", f"score {name}"),
    )


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_wide_table_keeps_its_first_column_and_shows_where_it_goes_on(tmp_path, context, scheme):
    rows = [[f"head {number}" for number in range(20)], ["name " * 20, *["1.234"] * 19]]
    write_text(tmp_path / "page.html", make_page("name", rows))
    page, _ = open_page(context, tmp_path / "page.html")
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme=scheme)
    table = page.locator("main > .scroll")
    table.scroll_into_view_if_needed()
    first, second = table.locator("td").all()[:2]
    box = table.bounding_box()

    def edge(x):
        """A picture of two pixels beside the table's side, below the numbers."""
        clip = {"x": x, "y": box["y"] + box["height"] - 4, "width": 2, "height": 2}
        return page.screenshot(clip=clip)

    def places():
        return [cell.bounding_box()["x"] for cell in (first, second)]

    plain, right = edge(1), box["x"] + box["width"] - 2
    assert first.bounding_box()["width"] < 190  # half a phone is left for the numbers
    before = places()
    assert edge(right) != plain
    table.evaluate("(one) => { one.scrollLeft = 100; }")
    assert places() == [before[0], before[1] - 100]
    assert edge(right) != plain
    table.evaluate("(one) => { one.scrollLeft = one.scrollWidth; }")
    assert edge(right) == plain
    page.emulate_media(media="print")
    assert table.evaluate("(one) => getComputedStyle(one).backgroundImage") == "none"
    assert first.evaluate("(one) => getComputedStyle(one).position") == "static"


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_from_data_stays_text_in_a_chart_and_colours_are_the_pages(tmp_path, context, scheme):
    write_text(tmp_path / "page.html", make_page(HOSTILE))
    page, errors = open_page(context, tmp_path / "page.html")
    page.emulate_media(color_scheme=scheme)
    assert page.locator(".plot .drawing svg").count() == 1
    spec = json.loads(page.locator(".plot script").inner_text())
    assert spec["data"]["values"][0]["series"] == HOSTILE.replace("\u202e", "�")
    marks = page.locator(".mark-symbol.role-mark path")
    marks.first.hover()
    tip = page.locator("#vg-tooltip-element")
    assert "<script>" in tip.inner_text()
    assert page.title() == "Would more rows help?"
    assert page.locator("main img, main .drawing script, #vg-tooltip-element img").count() == 0
    fill = marks.first.evaluate("(mark) => getComputedStyle(mark).fill")
    assert fill == {"light": "rgb(58, 110, 165)", "dark": "rgb(121, 169, 220)"}[scheme]
    assert errors == []
