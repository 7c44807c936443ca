import json
from pathlib import Path

import pytest
from conftest import edit_yaml, make_rows

from stages import clean, profile
from stages.corpus.rows import read_jsonl
from stages.run import InputError


def run_clean(rows):
    Path("rows.json").write_text(json.dumps(rows))
    clean.main()
    return [list(read_jsonl(Path(f"data/clean/{name}.jsonl"))) for name in ("rows", "rejected", "changes")]


def test_every_row_is_kept_or_rejected_with_its_reason(project):
    rows = make_rows(12)
    edit_yaml(Path("params.yaml"), clean__max_rejected_share=0.5)
    rows[1]["query"] = None
    rows[2]["positive"] = " "
    del rows[3]["anchor"]
    rows[4] = rows[0]
    rows[5]["negative"] = rows[5]["positive"]
    rows[6]["query"] = "\u200b"
    kept, rejected, _ = run_clean(rows)
    assert [row["place"] for row in kept] == ["index 0", *(f"index {index}" for index in range(7, 12))]
    assert rejected == [
        {"file": "rows.json", "place": "index 1", "reason": '"query" is null'},
        {"file": "rows.json", "place": "index 2", "reason": '"positive" is empty'},
        {"file": "rows.json", "place": "index 3", "reason": '"anchor" is missing'},
        {"file": "rows.json", "place": "index 4", "reason": "exact duplicate of index 0"},
        {"file": "rows.json", "place": "index 5", "reason": '"negative" is the same text as "positive"'},
        {"file": "rows.json", "place": "index 6", "reason": '"query" is empty once cleaned'},
    ]
    metrics = json.loads(Path("metrics/clean.json").read_text())
    assert (metrics["rows"], metrics["kept"], metrics["rejected"]) == (12, 6, 6)


def test_too_many_rejected_rows_fail_with_examples_and_write_nothing(project):
    rows = make_rows(12)
    for row in rows[:3]:
        row["query"] = ""
    with pytest.raises(InputError, match=r"(?s)3 of 12 rows .*\(0\.1\) allows.*rows\.json: index 0: \"query\" is empty"):
        run_clean(rows)
    assert not Path("data").exists()
    assert not Path("metrics").exists()


def test_a_change_is_on_record_with_an_example(project):
    rows = make_rows(12)
    rows[0]["query"] = "Is  it\u200b so?,\n"
    kept, _, changes = run_clean(rows)
    assert kept[0]["query"] == "Is it so?"
    assert changes == [
        {
            "id": kept[0]["id"],
            "field": "query",
            "rules": {"odd_spaces": 1, "invisible_characters": 1, "stray_comma": 1, "outer_whitespace": 1},
            "before": "Is  it\u200b so?,\n",
            "after": "Is it so?",
        }
    ]


def test_ids_do_not_depend_on_order_or_rules(project):
    rows = make_rows(12)
    rows[0]["query"] += ","
    first = {row["id"] for row in run_clean(rows)[0]}
    edit_yaml(Path("params.yaml"), clean__rules__stray_comma=False)
    assert {row["id"] for row in run_clean(rows[::-1])[0]} == first


def test_without_negatives_rows_are_kept(project):
    rows = [{key: row[key] for key in ("anchor", "query", "positive")} for row in make_rows(12)]
    edit_yaml(Path("params.yaml"), data__columns__negative=None)
    assert all(row["negative"] is None for row in run_clean(rows)[0])
    profile.main()


def test_profile_counts_what_the_study_did_not_see_and_escapes_its_page(project):
    rows = make_rows(12)
    rows[0]["query"] = "<script>alert(1)</script>"
    rows[1]["query"] = 3
    Path("rows <b>.json").write_text(json.dumps(rows))
    edit_yaml(Path("params.yaml"), data__path="rows <b>.json")
    profile.main()
    metrics = json.loads(Path("metrics/profile.json").read_text())
    assert (metrics["rows"], metrics["complete"]) == (12, 11)
    assert metrics["columns"]["query"]["missing"] == 1
    anchors = [row["anchor"] for row in rows if isinstance(row["query"], str)]
    assert metrics["shared_anchors"] == sum(anchors.count(anchor) > 1 for anchor in set(anchors)) > 0
    assert metrics["swapped_pairs"] == metrics["shared_anchors"]
    page = Path("reports/profile.html").read_text()
    assert "<script>" not in page
    assert "rows &lt;b&gt;.json" in page
