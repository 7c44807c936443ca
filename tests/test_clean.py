import json
from pathlib import Path

import pytest
from conftest import edit_yaml, make_rows

from library.corpus import table
from library.errors import InputError
from library.files import read_jsonl
from stages import clean


def run_clean(rows):
    Path("rows.json").write_text(json.dumps(rows))
    clean.main()
    return [
        list(read_jsonl(Path(f"data/clean/{name}.jsonl")))
        for name in ("rows", "rejected", "changes")
    ]


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
    assert [row["place"] for row in kept] == [
        "index 0",
        *(f"index {index}" for index in range(7, 12)),
    ]
    assert all(len(record.pop("id")) == 12 for record in rejected)
    assert rejected == [
        {"file": "rows.json", "place": "index 1", "reason": '"query" is null'},
        {"file": "rows.json", "place": "index 2", "reason": '"positive" is empty'},
        {"file": "rows.json", "place": "index 3", "reason": '"anchor" is missing'},
        {"file": "rows.json", "place": "index 4", "reason": "exact duplicate of index 0"},
        {
            "file": "rows.json",
            "place": "index 5",
            "reason": '"negative" is the same text as "positive"',
        },
        {"file": "rows.json", "place": "index 6", "reason": '"query" is empty once cleaned'},
    ]
    metrics = json.loads(Path("metrics/clean.json").read_text())
    assert (metrics["rows"], metrics["kept"], metrics["rejected"]) == (12, 6, 6)


def test_too_many_rejected_rows_fail_with_examples_and_write_nothing(project):
    rows = make_rows(12)
    for row in rows[:3]:
        row["query"] = ""
    with pytest.raises(
        InputError,
        match=r"(?s)3 of 12 rows .*\(0\.1\) allows.*rows\.json: index 0: \"query\" is empty",
    ):
        run_clean(rows)
    # the list that is needed now
    assert [path.name for path in Path("data/clean").iterdir()] == ["rejected.jsonl"]
    assert len(list(read_jsonl(Path("data/clean/rejected.jsonl")))) == 3
    assert not Path("metrics").exists()


def test_a_change_is_on_record_by_row_field_and_rule_with_an_example(project):
    rows = make_rows(12)
    rows[0]["query"] = "Is  it\u200b so?,\n"
    kept, _, changes = run_clean(rows)
    assert kept[0]["query"] == "Is it so?"
    expected = [
        ("invisible_characters", "Is  it\u200b so?,\n", "Is  it so?,\n"),
        ("odd_spaces", "Is  it so?,\n", "Is it so?,\n"),
        ("stray_comma", "Is it so?,\n", "Is it so?\n"),
        ("outer_whitespace", "Is it so?\n", "Is it so?"),
    ]
    assert changes == [
        {
            "id": kept[0]["id"],
            "field": "query",
            "rule": rule,
            "count": 1,
            "before": before,
            "after": after,
        }
        for rule, before, after in expected
    ]


def contradict(rows):
    """Two rows of one context that ask the same in other words and exchange their answers."""
    first = rows[0]
    second = {
        "anchor": first["anchor"] + " ",
        "query": first["query"].replace("?", " ?"),
        "positive": first["negative"],
    }
    return [*rows, {**second, "negative": first["positive"].upper()}]


def test_contradictory_rows_are_flagged_and_never_repaired(project):
    kept, rejected, _ = run_clean(contradict(make_rows(12)))
    assert not rejected
    flagged = {row["id"]: row["contradicts"] for row in kept if row["contradicts"] is not None}
    assert flagged == {kept[0]["id"]: kept[12]["id"], kept[12]["id"]: kept[0]["id"]}
    assert kept[12]["positive"] == make_rows(12)[0]["negative"]
    assert json.loads(Path("metrics/clean.json").read_text())["contradictory"] == 2


def test_contradictory_rows_are_dropped_where_that_is_asked_for(project):
    edit_yaml(Path("params.yaml"), clean__on_contradiction="drop", clean__max_rejected_share=0.5)
    kept, rejected, _ = run_clean(contradict(make_rows(12)))
    assert [row["place"] for row in kept] == [f"index {index}" for index in range(1, 12)]
    reasons = [(record["place"], record["reason"]) for record in rejected]
    said = "the same context and question, the answers exchanged"
    assert reasons == [
        ("index 0", f"contradicts index 12: {said}"),
        ("index 12", f"contradicts index 0: {said}"),
    ]


def test_swapped_answers_to_different_questions_are_no_contradiction(project):
    kept, _, _ = run_clean(make_rows(12))
    assert all(row["contradicts"] is None for row in kept)


def test_many_rows_are_cleaned_by_several_processes_in_order(project, monkeypatch):
    monkeypatch.setattr(table, "ROWS_PER_PROCESS", 5)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    rows = make_rows(12)
    spread = run_clean(rows)
    monkeypatch.setattr(table, "ROWS_PER_PROCESS", 1000)
    assert run_clean(rows) == spread


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
