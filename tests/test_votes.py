import json

import pytest
from conftest import EVALUATE

from library.errors import InputError
from library.pages.vote_statements import votes_needed, votes_statement
from library.params import ReviewParams
from library.records import ScoredRow
from library.verdict.ballot import choose_rows, make_items
from library.verdict.votes import (
    VoteFile,
    count_votes,
    krippendorff_alpha,
    read_votes,
    tally_votes,
)

ITEMS = {
    "1": {"row": "r1", "kind": "pair", "x": "sft", "y": "zeroshot"},
    "2": {"row": "r2", "kind": "pair", "x": "zeroshot", "y": "sft"},
    "3": {"row": "r4", "kind": "catch", "x": "sft", "y": "sft"},
    "4": {"row": "r3", "kind": "pair", "x": "sft", "y": "zeroshot"},
    "5": {"row": "r1", "kind": "repeat", "of": "1", "x": "sft", "y": "zeroshot"},
}
KEY = {"review": "abc", "systems": ["zeroshot", "sft"], "items": ITEMS}
SCORED = {
    f"r{i}": ScoredRow(
        f"r{i}",
        f"g{i}",
        None,
        {"zeroshot": {"rouge_l": 0.2, "empty": 0.0}, "sft": {"rouge_l": after, "empty": 0.0}},
    )
    for i, after in ((1, 0.5), (2, 0.5), (3, 0.1), (4, 0.3))
}


def vote(item, choice, left="x", **changes):
    marks = {"correct": {"x": "yes", "y": "no"}, "unsupported": {"x": False, "y": True}}
    return {"item": item, "left": left, "choice": choice, **marks, "comment": "", **changes}


def saved(rater, *votes, review="abc"):
    return {"review": review, "rater": rater, "votes": list(votes), "revised": []}


def count(*files):
    return count_all(files, KEY, SCORED, {"empty": -1, "rouge_l": 1})


def count_all(files, key, scored, better):
    tally = tally_votes([VoteFile.model_validate(file) for file in files], key)
    return count_votes(tally, key["systems"], scored, better, EVALUATE)


def test_one_raters_votes_by_hand():
    # r1: sft; r2: zeroshot; r3: tie; the catch is called equal; r1 again: sft, as before
    numbers = count(
        saved(
            "ann",
            vote("1", "x"),
            vote("2", "x"),
            vote("3", "both bad"),
            vote("4", "both good"),
            vote("5", "x", "y"),
        )
    )
    assert (
        numbers["raters"],
        numbers["rows"],
        numbers["wins"],
        numbers["losses"],
        numbers["ties"],
    ) == (1, 3, 1, 1, 1)
    assert numbers["win_rate"] == 0.5
    # Wilson's interval for 1 of 2, z = 1.96: (1 + z²/2 ± z·sqrt(1/2 + z²/4)) / (2 + z²)
    assert (numbers["wins_share_low"], numbers["wins_share_high"]) == pytest.approx(
        (0.0945, 0.9055), abs=1e-4
    )
    assert numbers["p"] == 1
    # of the three decided votes the last one took the right
    assert numbers["left_pick"] == pytest.approx(2 / 3)
    assert (numbers["self_agreement"], numbers["identical_called_equal"]) == (1, 1)
    # x is called correct: sft in r1 and r3, zeroshot in r2
    assert numbers["correct_sft"] == pytest.approx({"yes": 2 / 3, "partly": 0, "no": 1 / 3})
    assert numbers["unsupported_zeroshot"] == pytest.approx(2 / 3)
    # ROUGE-L rose in r1, which was won, and in r2, which was lost; no row differs in empty answers
    assert numbers["agreement"] == {
        "empty": {"share": 0.5, "n": 2},
        "rouge_l": {"share": 0.5, "n": 2},
    }
    assert "alpha" not in numbers


def test_a_row_with_several_raters_counts_once():
    numbers = count(
        saved("ann", vote("1", "x")),
        saved("bob", vote("1", "x"), vote("4", "y")),
        saved("cy", vote("1", "y")),
    )
    assert (
        numbers["raters"],
        numbers["rows"],
        numbers["votes"],
        numbers["wins"],
        numbers["losses"],
    ) == (3, 2, 4, 1, 1)
    assert numbers["win_rate"] == pytest.approx((2 / 3 + 0) / 2)
    # two of three alike: observed disagreement 2/3, expected 4/6 (labels 2 and 1 of 3)
    assert numbers["alpha"] == pytest.approx(1 - (2 / 3) / (2 / 3))


def test_three_raters_agree_as_computed_by_hand():
    # outcomes for sft of ann, bob and cy: r1: 1 1 1; r2: 1 1 0; r3: ½ ½ 0; r4 has ann alone.
    # Observed: of the ordered pairs of a row's labels r1 has none that differ, r2 and r3 four each;
    # over raters less one, and over labels: (4/2 + 4/2)/9 = 4/9. Expected: five 1, two 0 and two ½
    # make (81 − 25 − 4 − 4)/(9·8) = 2/3. Alpha = 1 − (4/9)/(2/3) = 1/3.
    pair = {"kind": "pair", "x": "sft", "y": "zeroshot"}
    key = {**KEY, "items": {str(i): {"row": f"r{i}", **pair} for i in range(1, 5)}}
    ann = saved("ann", vote("1", "x"), vote("2", "x"), vote("3", "both bad"), vote("4", "y"))
    bob = saved("bob", vote("1", "x"), vote("2", "x"), vote("3", "both good"))
    cy = saved("cy", vote("1", "x"), vote("2", "y"), vote("3", "y"))
    numbers = count_all((ann, bob, cy), key, SCORED, {"rouge_l": 1})
    assert numbers["alpha"] == pytest.approx(1 / 3)
    # r2 is two to one, and r3 below one half
    assert (numbers["wins"], numbers["losses"], numbers["ties"]) == (2, 2, 0)
    assert numbers["win_rate"] == pytest.approx((1 + 2 / 3 + 1 / 3 + 0) / 4)
    # the lowest draws are r2 three times and r3 three times: observed 6/9, expected
    # (81 − 36 − 9)/72 = 1/2, alpha −1/3
    assert numbers["alpha_low"] == pytest.approx(-1 / 3)
    assert numbers["alpha_low"] < numbers["alpha"] < numbers["alpha_high"] < 1


def test_votes_on_two_other_systems_are_about_the_second_of_the_key():
    items = {"1": {"row": "r1", "kind": "pair", "x": "few_shot", "y": "rival"}}
    scored = {
        "r1": ScoredRow(
            "r1", "g1", None, {"rival": {"rouge_l": 0.1}, "few_shot": {"rouge_l": 0.2}, "sft": {}}
        )
    }
    file = saved("ann", vote("1", "x"))
    for systems, won in ((["rival", "few_shot"], 1), (["few_shot", "rival"], 0)):
        key = {"review": "abc", "systems": systems, "items": items}
        numbers = count_all([file], key, scored, {"rouge_l": 1})
        assert (numbers["wins"], numbers["losses"]) == (won, 1 - won)
        assert numbers["correct_few_shot"]["yes"] == numbers["correct_rival"]["no"] == 1
        assert numbers["agreement"] == {"rouge_l": {"share": 1, "n": 1}}
    metrics = {"votes": {**numbers, "files_of_other_reviews": 0}}
    said = str(votes_statement(metrics, ["few_shot", "rival"]))
    assert said.startswith("**People chose rival, zero-shot in 0 of 1 pairs**, few-shot in 1, ")


def test_pairs_still_to_vote_on_count_ties_as_so_far():
    # 75% takes 35 decisions; of 20 pairs 15 were decided: ceil(35 · 20/15) = 47 pairs, 27 more
    votes = {"rows": 20, "wins": 11, "losses": 4, "ties": 5}
    assert votes_needed(votes, 0.95)[3] == (0.75, 35, 47, 27)
    assert votes_needed({"rows": 0}, 0.95)[3] == (0.75, 35, 35, 35)
    assert votes_needed({"rows": 80, "wins": 40, "losses": 0}, 0.95)[3] == (0.75, 35, 70, 0)


def test_no_votes_are_said_to_be_none():
    assert count() == {"raters": 0, "rows": 0, "revised": 0}


def test_revised_votes_are_not_counted_and_one_vote_has_no_interval():
    file = saved("ann", vote("1", "x"), vote("2", "y"), vote("5", "x"))
    numbers = count({**file, "revised": ["1"]})
    assert (numbers["rows"], numbers["wins"], numbers["revised"], numbers["win_rate"]) == (
        1,
        1,
        1,
        1,
    )
    assert "win_rate_low" not in numbers
    assert "self_agreement" not in numbers


def test_alpha_is_that_of_krippendorffs_own_example():
    # Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section C: 0.743 for nominal
    # data
    ratings = {
        "A": "1 2 3 3 2 1 4 1 2 . . .",
        "B": "1 2 3 3 2 2 4 1 2 5 . 3",
        "C": ". 3 3 3 2 3 4 2 2 5 1 .",
        "D": "1 2 3 3 2 4 4 1 2 5 1 .",
    }
    labels = [
        (rater, str(unit), label)
        for rater, given in ratings.items()
        for unit, label in enumerate(given.split())
        if label != "."
    ]
    assert krippendorff_alpha(labels) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(labels[:9]) is None
    assert krippendorff_alpha([("A", "1", "x"), ("B", "1", "x")]) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"votes-ann\.json: not a file that the review page saved: Invalid JSON"),
        ('{"review": "abc"}', r"votes-ann\.json: .*rater: missing, expected a text"),
        (
            json.dumps(saved("ann", vote("9", "x"))),
            r"votes-ann\.json: votes on item '9', which the review does not have",
        ),
        (
            json.dumps(saved("ann", vote("1", "x"), vote("1", "y"))),
            r"votes-ann\.json: votes 2 times on item '1'",
        ),
        (
            json.dumps(saved("ann", vote("1", "A"))),
            r"votes-ann\.json: .*votes\.0\.choice: expected one of x, y, both good",
        ),
        (
            json.dumps(saved("ann", vote("1", "x", correct={"x": "yes"}))),
            r"item '1': expected a mark for x and for y",
        ),
        (json.dumps(saved("ann/..", vote("1", "x"))), r"expected letters, digits"),
        (
            json.dumps({**saved("ann", vote("1", "x")), "revised": ["zzz"]}),
            r"revised item 'zzz', which the review does not have",
        ),
    ],
)
def test_a_file_that_is_not_what_the_page_saved_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "votes-ann.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_votes(tmp_path, KEY)


def test_a_file_of_another_review_is_named_and_not_counted_and_a_rater_has_one_file(tmp_path):
    (tmp_path / "votes-ann.json").write_text(json.dumps(saved("ann", vote("1", "x"))))
    (tmp_path / "votes-old.json").write_text('{"review": "other", "in": "an older form"}')
    files, refused = read_votes(tmp_path, KEY)
    assert [file.rater for file in files] == ["ann"]
    assert refused == [
        f"{tmp_path}/votes-old.json: of another review (other, this one is abc); not counted"
    ]
    (tmp_path / "votes-ann2.json").write_text(json.dumps(saved("ann")))
    with pytest.raises(InputError, match="a second file of the rater 'ann'"):
        read_votes(tmp_path, KEY)


def make_test_rows(count):
    return [
        {"id": f"r{i:03}", "group": f"g{i // 2:03}", "positive": "word " * (i + 1)}
        for i in range(count)
    ]


def test_rows_are_drawn_one_a_group_from_every_length():
    rows = make_test_rows(80)
    chosen = choose_rows(rows, 10, 7)
    assert len({row["group"] for row in chosen}) == 10
    # forty groups in ten strata of four: the i-th row chosen is of the i-th tenth of the lengths
    assert [int(row["group"][1:]) // 4 for row in chosen] == list(range(10))
    assert choose_rows(rows[::-1], 10, 7) == chosen != choose_rows(rows, 10, 8)
    assert len(choose_rows(rows[:4], 10, 7)) == 2


def test_items_hide_who_wrote_what_and_the_key_tells():
    rows = make_test_rows(80)
    answers = {
        "zeroshot": {row["id"]: f"old {row['id']}" for row in rows},
        "sft": {row["id"]: f"new {row['id']}" for row in rows},
    }
    for row in rows[:20]:
        answers["sft"][row["id"]] = answers["zeroshot"][row["id"]]
    items, key = make_items(
        rows,
        answers,
        ReviewParams(seed=7, systems=["zeroshot", "sft"], pairs=12, repeats=3, catch_trials=2),
    )
    kinds = [key[item["item"]]["kind"] for item in items]
    assert (kinds.count("pair"), kinds.count("repeat"), kinds.count("catch"), len(items)) == (
        12,
        3,
        2,
        17,
    )
    assert kinds[-3:] == ["repeat"] * 3
    assert kinds[0] == "pair"
    assert {key[item["item"]]["x"] for item in items} == {"zeroshot", "sft"}
    for item in items:
        entry = key[item["item"]]
        assert item["row"] == entry["row"]
        assert (item["x"], item["y"]) == (
            answers[entry["x"]][item["row"]],
            answers[entry["y"]][item["row"]],
        )
        assert item["swap"] == (entry["kind"] == "repeat")
        assert item["reference"] == (
            item["item"] not in {other.get("of") for other in key.values()}
        )
        assert (item["x"] == item["y"]) == (entry["kind"] == "catch")
        if entry["kind"] == "repeat":
            first = key[entry["of"]]
            assert (first["row"], first["kind"], first["x"]) == (entry["row"], "pair", entry["x"])


def test_without_a_difference_there_is_nothing_to_ask():
    rows = make_test_rows(8)
    same = {row["id"]: "same" for row in rows}
    assert make_items(
        rows,
        {"zeroshot": same, "sft": same},
        ReviewParams(seed=7, systems=["zeroshot", "sft"], pairs=4, repeats=1, catch_trials=1),
    ) == ([], {})
