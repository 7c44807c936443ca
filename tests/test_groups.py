import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.corpus.groups import (
    SPLITS,
    check_overlap,
    group_rows,
    normalize,
    pair_rows,
    split_groups,
)
from library.errors import InputError
from library.params import Shares

SHARES = Shares(train=0.7, validation=0.1, test=0.2)
TEXTS = st.lists(
    st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=1, max_size=3),
    min_size=1,
    max_size=40,
)


def test_rows_are_one_group_where_any_text_is_shared_even_over_others():
    texts = {"1": ["A", "x"], "2": ["B", " X "], "3": ["b", "y"], "4": ["C", "z"]}
    assert group_rows(texts) == {"1": "1", "2": "1", "3": "1", "4": "4"}


@given(TEXTS, st.integers(0, 99))
def test_no_text_crosses_over_and_no_row_is_lost_whatever_the_order(rows, seed):
    texts = {f"{index:03}": row for index, row in enumerate(rows)}
    groups = group_rows(texts)
    backwards = dict(reversed(texts.items()))
    assert group_rows(backwards) == groups
    if len(set(groups.values())) < 3:
        with pytest.raises(InputError, match="need at least 3 groups"):
            split_groups(groups, SHARES, seed)
        return
    splits = split_groups(groups, SHARES, seed)
    assert splits == split_groups(dict(reversed(groups.items())), SHARES, seed)
    assert splits.keys() == texts.keys()
    assert set(splits.values()) == set(SPLITS)
    check_overlap(
        {
            split: [text for row in texts if splits[row] == split for text in texts[row]]
            for split in SPLITS
        }
    )


def test_shares_are_met_by_row_count_and_group_size():
    texts = {
        f"{index:03}": [f"anchor {index // 2 if index < 200 else index}"] for index in range(400)
    }
    splits = split_groups(group_rows(texts), SHARES, 7)
    counts = {split: list(splits.values()).count(split) for split in SPLITS}
    assert counts == {"train": 280, "validation": 40, "test": 80}
    paired = [split for row, split in splits.items() if int(row) < 200]
    assert [paired.count(split) for split in SPLITS] == [140, 20, 40]


def test_another_seed_is_another_split():
    groups = {f"{index:02}": f"{index:02}" for index in range(40)}
    assert split_groups(groups, SHARES, 1) != split_groups(groups, SHARES, 2)


def test_an_overlap_is_found_and_quoted():
    with pytest.raises(InputError, match=r"the same text is in train and test: 'one\\n text'"):
        check_overlap({"train": ["One text"], "test": ["one\n text"]})


def test_a_pair_swaps_both_answers_under_one_anchor():
    rows = [
        {"id": "1", "anchor": "A", "positive": "x", "negative": "y"},
        {"id": "2", "anchor": "a", "positive": "Y", "negative": "x"},
        {"id": "3", "anchor": "A", "positive": "y", "negative": "x"},  # its partner is taken
        {"id": "4", "anchor": "B", "positive": "y", "negative": "x"},  # another anchor
        {"id": "5", "anchor": "A", "positive": "x", "negative": None},
    ]
    assert pair_rows(rows) == {"1": "2", "2": "1"}


@given(st.text())
def test_normalizing_twice_is_normalizing_once_for_white_space(text):
    assert normalize(f"  {text}\n") == normalize(text)
