import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from conftest import make_rows
from hypothesis import given
from hypothesis import strategies as st
from test_pages import (
    check_charts,
    fits,
    needs_browser,
    open_page,
    text_of_page,
)

from library.corpus.cleaning_rules import RULES, find_defects
from library.corpus.near_duplicates import find_near_duplicates, sketch
from library.corpus.profiling import describe_lengths, forecast_window
from library.files import read_jsonl
from library.pages.profile import histogram, show_marks
from library.pages.rendering import plural
from stages import base, clean, profile
from standin import sample_rows


def run_profile(rows):
    Path("rows.json").write_text(json.dumps(rows))
    base.main()
    profile.main()
    return json.loads(Path("metrics/profile.json").read_text()), Path(
        "reports/profile.html"
    ).read_text()


def things(page):
    """Title and value of each thing to know."""
    return dict(re.findall(r"<h3>(.*?)</h3>\n<p class=\"value\">(.*?)</p>", page))


def test_every_defect_that_the_sample_plants_is_found_and_none_that_it_does_not():
    rows, planted = sample_rows.make_rows(7)
    for field in ("anchor", "query", "positive", "negative"):
        found = Counter()
        for row in rows:
            if isinstance(row.get(field), str):
                found.update(
                    {rule: finding.count for rule, finding in find_defects(row[field]).items()}
                )
        assert found == planted.get(field, Counter()), field
    assert set(planted["anchor"]) | set(planted["query"]) == set(RULES)


def test_what_rows_share_and_contradict_is_counted_with_their_places(project):
    rows = make_rows(12)
    # were a swapped pair
    rows[1] |= {
        "query": rows[0]["query"],
        "positive": rows[0]["negative"],
        "negative": rows[0]["positive"],
    }
    rows += [
        rows[2],
        {**rows[3], "query": {"a": 3}},
        {**rows[4], "anchor": rows[4]["anchor"] + " One more sentence."},
    ]
    metrics, page = run_profile(rows)
    assert (metrics["rows"], metrics["unusable"], metrics["duplicates"]) == (15, 1, 1)
    assert (metrics["contradictory"], metrics["near_duplicate_contexts"]) == (2, 1)
    anchors = Counter(row["anchor"] for row in rows[:12] + rows[14:])
    shared = [number for number in anchors.values() if number > 1]
    assert (metrics["shared_contexts"], metrics["rows_of_shared_contexts"]) == (
        len(shared),
        sum(shared),
    )
    assert metrics["swapped_pairs"] == len(shared) - 1
    assert sum(int(size) * groups for size, groups in metrics["group_sizes"].items()) == 13
    assert metrics["columns"]["query"]["missing"] == 1
    assert len(things(page)) == 16
    assert things(page)["Contradictory labels"] == "2 rows"
    assert "index 12 is index 2 again" in page
    assert re.search(r"index [345] and index 14", page)
    assert "index 13: &#34;query&#34; is an object with a, expected a text" in page


def test_different_right_answers_to_one_question_are_shown_and_no_row_is_lost(project):
    rows = [{name: row[name] for name in ("anchor", "query", "positive")} for row in make_rows(12)]
    first, second, third = rows[0], rows[2], rows[4]
    assert len({row["anchor"] for row in (first, second, third)}) == 3
    rows += [
        first | {"query": f" {first['query'].upper()}", "positive": "It is <b>blue</b>."},
        first | {"positive": "It is red."},
        second | {"positive": [second["positive"], "It is green."]},  # the same, and one more
        third | {"anchor": "Another context.", "positive": "It is grey."},
        third | {"query": third["query"] + " And why?", "positive": "It is old."},
    ]
    metrics, page = run_profile(rows)
    assert metrics["disagreeing"] == {"questions": 1, "rows": 3}
    assert metrics["contradictory"] == 0
    assert things(page)["Same question, different right answers"] == "1 question"
    assert "index 12: “It is &lt;b&gt;blue&lt;/b&gt;.”; index 13: “It is red.”" in page
    clean.main()
    assert json.loads(Path("metrics/clean.json").read_text())["kept"] == len(rows)


def test_what_came_before_a_question_is_a_part_of_it(project):
    def talk(before, answer):
        said = [("user", before), ("assistant", "Yes."), ("user", "Why?"), ("assistant", answer)]
        return {"messages": [{"role": role, "content": text} for role, text in said]}

    rows = [talk(f"Is {name} heavy?", f"Since {name} is steel.") for name in "abcdefgh"]
    assert "disagreeing" not in run_profile(rows)[0]
    metrics, _ = run_profile([*rows, talk("Is a heavy?", "It is solid.")])
    assert metrics["disagreeing"] == {"questions": 1, "rows": 2}


def test_several_wrong_answers_are_counted_and_the_first_is_used(project, caplog):
    rows = make_rows(12)
    wrong = rows[3]["negative"]
    rows[3]["negative"] = ["", wrong, "Another."]
    rows[4]["negative"] = [rows[4]["negative"]]
    caplog.set_level("INFO")
    metrics, page = run_profile(rows)
    assert metrics["several_wrong"] == 1
    assert things(page)["Several wrong answers in a row"] == "1 row"
    assert "index 3: 2" in page
    clean.main()
    assert caplog.text.count("1 row has several wrong answers; the first of each is used") == 2
    made = {row["place"]: row for row in read_jsonl(Path("data/clean/rows.jsonl"))}
    assert made["index 3"]["negative"] == wrong


def test_the_same_rows_give_the_same_page(project):
    assert run_profile(make_rows(12)) == run_profile(make_rows(12))


def test_lengths_and_forecast_are_those_worked_by_hand():
    lengths = pd.Series([1.0, 2.0, 3.0, 10.0])
    expected = {
        "mean": 4.0,
        "min": 1.0,
        "max": 10.0,
        "q05": 1.1,
        "q25": 1.8,
        "median": 2.5,
        "q75": 4.8,
        "q95": 8.9,
    }
    assert describe_lengths(lengths) == pytest.approx(expected, abs=0.06)
    tokens = pd.DataFrame(
        {"anchor": [100.0, 1000.0], "query": [10.0, 10.0], "positive": [20.0, 20.0]}
    )
    # 200 - 40 of the template - 10 of the question - 50 of the reserve leave 100 for a context
    assert forecast_window(tokens, 40, 50, 200) == {
        "whole": 0.5,
        "context_kept": pytest.approx((1 + 0.1) / 2),
    }
    assert forecast_window(tokens, 40, 50, 60) == {"whole": 0.0, "context_kept": 0.0}
    assert forecast_window(tokens[:0], 40, 50, 60) == {"whole": 0.0, "context_kept": 0.0}


def test_nearly_the_same_texts_are_found_and_others_are_not():
    words = [f"word{index}" for index in range(400)]
    texts = {
        "a": " ".join(words),
        "b": " ".join([*words[:390], "other"]).upper(),
        "c": " ".join(reversed(words)),
        "d": "short",
    }
    assert find_near_duplicates({name: sketch(text) for name, text in texts.items()}) == [
        ("a", "b")
    ]


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_a_histogram_counts_every_length_once(lengths):
    assert sum(number for _, _, number in histogram(pd.Series(lengths, dtype="float64"))) == len(
        lengths
    )


def test_what_can_not_be_seen_is_shown():
    assert show_marks("a\u2062b e\u0301 µ\n") == "a\\u2062b e\\u0301 µ↵"
    assert (plural(1, "row"), plural(1200, "row")) == ("1 row", "1,200 rows")


HOSTILE = {
    "anchor": "<script>document.title = 'harmed'</script> \"'`&lt;img "
    "src=https://example.com/x.png onerror=alert(1)> {{ 7 * 7 }} ",
    "query": "\u202eright to left? <img src=x onerror=alert(1)> " + "e" + "\u0301\u0323" * 50_000,
    "positive": "</template></details><script>document.title = 'harmed'</script>",
    "negative": "<style>* { display: none }</style>",
}


def test_a_hostile_row_harms_neither_page_nor_stage(project):
    page = text_of_page(run_profile([HOSTILE, *make_rows(12)])[1])
    assert "document.title = 'harmed'</script>" not in page
    assert "<img src" not in page
    assert "<style>* {" not in page


@needs_browser
def test_the_page_opens_without_requests_or_errors_and_fits(project, context):
    run_profile([HOSTILE, *make_rows(12)])
    page, errors = open_page(context, project / "reports/profile.html")
    titles = check_charts(page, project / "reports/profile.html")
    assert titles == [["context window, tokens (log scale)", "share"], *[["tokens", "rows"]] * 4]
    assert page.title() == "Profile of rows.json"
    assert page.locator("skrub-table-report").count() == 1
    for width in (1300, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert fits(page)
    assert errors == []
