import hashlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.corpus.groups import (
    Tie,
    Ties,
    check_overlap,
    context_id,
    find_given_away,
    group_rows,
    hash_text,
    list_ties,
    normalize,
    pair_rows,
)
from library.corpus.splitting import (
    OTHER_SHARES,
    check_split,
    count_least_groups,
    find_faults,
    find_seed,
    find_ties,
    make_split,
    split_groups,
)
from library.errors import InputError
from library.params import Shares, load_params
from library.records import SPLITS

SHARES = Shares(train=0.7, validation=0.1, test=0.2)
PARAMS = load_params(Path(__file__).parent.parent / "params.yaml").split
LETTERS = st.sampled_from("abcdefghijklmnopqrstuvwxyz")
ROWS = st.lists(st.tuples(LETTERS, LETTERS, st.one_of(st.none(), LETTERS)), min_size=1, max_size=40)


def long(text):
    """An answer that is long enough to tie rows."""
    return f"{text} answers the question in a sentence of its own"


def row(key, anchor, positive, negative=None, **others):
    """A clean row."""
    return {
        "id": key,
        "place": key,
        "context_id": context_id(anchor, others.get("query", f"which {key}")),
        "anchor": anchor,
        "query": f"which {key}",
        "positive": positive,
        "also_right": [],
        "negative": negative,
        "turns": [],
        "contradicts": None,
    } | others


def split(rows, **changes):
    params = PARAMS.model_copy(update={"shares": SHARES, **changes})
    ties = find_ties(rows, params)
    return make_split(ties, params), ties, params


def tie(*texts):
    return [Tie("context", hash_text(text)) for text in texts]


def members(groups):
    """The ids of each group's rows, whatever the groups are called."""
    found = {}
    for key, group in groups.items():
        found.setdefault(group, []).append(key)
    return sorted("".join(sorted(keys)) for keys in found.values())


def test_rows_are_one_group_where_any_text_is_shared_even_over_others():
    ties = {"1": tie("A", "x"), "2": tie("B", " X "), "3": tie("b", "y"), "4": tie("C", "z")}
    names = {"1": "d", "2": "c", "3": "b", "4": "a"}
    assert group_rows(Ties(ties, names)) == {"1": "b", "2": "b", "3": "b", "4": "a"}
    same = [(hash_text("a"), hash_text("c"))]
    assert group_rows(Ties(ties, names, same)) == dict.fromkeys("1234", "a")


def test_a_context_and_a_long_answer_tie_and_nothing_else_does():
    rows = [
        row("1", "one", long("first"), "no"),
        row("2", "One ", "2019", long("third")),  # the context of 1
        row("3", "three", long("third"), "2019"),  # the negative of 2: no tie
        row("4", "four", "2019", long("first")),  # the short answer of 2: no tie
        row("5", "five", "May", None, also_right=[long("THIRD")]),  # right beside: the answer of 3
        row("6", "", "May"),
        row("7", "", "May", query="Which 6"),  # without a context, the question
    ]
    assert members(split(rows)[0].groups) == ["12", "35", "4", "67"]


def test_of_a_conversation_what_was_said_before_ties_too():
    def said(*texts):
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]

    system = {"role": "system", "content": long("You are a helpful assistant who")}
    rows = [
        row("1", "", long("one"), query="first?", turns=[system]),
        # the answer of 1 stands in its prompt
        row("2", "", "two", query="second?", turns=[system, *said("first?", long("one"))]),
        row("3", "", "three", query="third?", turns=[system, *said("hello", "hello")]),
        row("4", "", "four", query="fourth?", turns=[system, *said("hello", "hello")]),
    ]
    assert members(split(rows)[0].groups) == ["12", "3", "4"]


def test_a_document_in_the_system_message_ties_and_an_instruction_does_not():
    document, instruction = " ".join(WORDS * 3), " ".join(["answer as briefly as you can"] * 9)
    rows = [
        row(f"{at:02}", "", f"{at}", turns=[{"role": "system", "content": text}])
        for at, text in enumerate([document] * 3 + [instruction] * 40)
    ]
    sizes = Counter(split(rows)[0].groups.values())
    assert sorted(sizes.values()) == [1] * 40 + [3]


DOCUMENT = (
    "The pump stands in the cellar. It is made of steel and weighs twelve kilograms with both"
)


@pytest.mark.parametrize(
    "asked",
    [
        "Context: {0} of its valves.\n\nQuestion: {1}",
        "{1}\n{0} of its valves.",
        "Answer as briefly as you can, in one sentence of plain English that everybody knows, with "
        "no word that the text below does not have.\n{0} of its valves.\n{1}",
    ],
)
def test_a_document_in_the_question_ties_the_rows_that_ask_about_it(asked):
    rows = [
        row(f"{at:02}", "", f"{at}", query=asked.format(f"{DOCUMENT} {at // 2}", f"What is {at}?"))
        for at in range(20)
    ]
    params = {"near_duplicate_contexts": False}
    assert len(set(split(rows, **params)[0].groups.values())) == 10


def test_a_remedy_says_that_documents_would_stand_in_several_splits():
    rows = [
        row(
            f"{at:03}",
            "",
            f"{at}",
            turns=[{"role": "system", "content": f"{DOCUMENT} of its valves {at % 4}"}],
        )
        for at in range(80)
    ]
    made, ties, params = split(rows, near_duplicate_contexts=False)
    assert len(set(made.groups.values())) == 4
    with pytest.raises(InputError) as error:
        check_split(made, ties, params)
    assert (
        "let the same document stand in several splits, so that training sees what test rows are "
        "asked about: dvc exp run -S split.same_answer_words="
    ) in str(error.value)


def test_a_full_stop_makes_no_other_text():
    rows = [row("1", "One", long("a")), row("2", "two", f"{long('a')}."), row("3", "one。", "c")]
    assert members(split(rows)[0].groups) == ["123"]
    assert normalize("...") == "..."


def test_long_questions_that_are_nearly_the_same_tie_as_contexts_do():
    many = " ".join(WORDS * 6)
    rows = [row(str(at), "", f"{at}", query=f"{many}. Question {at}?") for at in range(3)]
    assert members(split(rows)[0].groups) == ["012"]


@pytest.mark.parametrize(("words", "tied"), [(8, 1), (9, 0)])
def test_how_long_an_answer_must_be_to_tie_is_a_parameter(words, tied):
    answers = {"one two three four five six seven eight": 8}
    params = PARAMS.model_copy(update={"same_answer_words": words})
    assert len(list_ties("context", "question", answers, params)) == 1 + tied


WORDS = "the pump is made of steel and weighs twelve kilograms with its two valves of brass".split()


@pytest.mark.parametrize(
    "words", [WORDS, list("水泵由钢制成带两个黄铜阀门重十二公斤位于壳体内侧")], ids=["en", "zh"]
)
def test_contexts_that_are_nearly_the_same_tie_unless_they_are_not_to(words):
    blank = " " if words is WORDS else ""
    many = blank.join(words * 12)
    rows = [row("1", many, "a"), row("2", f"{many}{blank}{words[0]}", "b"), row("3", "x", "c")]
    assert members(split(rows)[0].groups) == ["12", "3"]
    assert len(set(split(rows, near_duplicate_contexts=False)[0].groups.values())) == 3


@given(ROWS, st.integers(0, 99), st.booleans())
def test_no_text_that_ties_crosses_over_and_no_row_is_lost_whatever_the_order(drawn, seed, words):
    rows = [
        row(f"{index:03}", anchor, long(positive) if words else positive, negative)
        for index, (anchor, positive, negative) in enumerate(drawn)
    ]
    made, ties, _ = split(rows, seed=seed)
    backwards = split(rows[::-1], seed=seed)[0]
    assert (backwards.groups, backwards.splits) == (made.groups, made.splits)
    assert made.splits.keys() == {row["id"] for row in rows}
    check_overlap(made.splits, ties)
    for field in ("anchor", "positive") if words else ("anchor",):
        places = {}
        for each in rows:
            places.setdefault(each[field], set()).add(made.splits[each["id"]])
        assert all(len(found) == 1 for found in places.values())


@given(ROWS, st.integers(0, 99), st.integers(0, 2**40))
def test_a_row_of_new_texts_moves_no_other(drawn, seed, number):
    rows = [row(f"{index:03}", *texts) for index, texts in enumerate(drawn)]
    before = split(rows, seed=seed)[0].splits
    key = hashlib.sha256(str(number).encode()).hexdigest()[:12]  # before or after the others
    added = split([*rows, row(key, "new context", long("new"))], seed=seed)[0].splits
    assert {name: added[name] for name in before} == before


@given(ROWS, st.integers(0, 99), st.integers(0, 2**40))
def test_nor_does_another_question_on_a_context_that_is_there(drawn, seed, number):
    rows = [row(f"{index:03}", *texts) for index, texts in enumerate(drawn)]
    before = split(rows, seed=seed)[0].splits
    key = hashlib.sha256(str(number).encode()).hexdigest()[:12]
    added = split([*rows, row(key, drawn[0][0], "new")], seed=seed)[0].splits
    assert added == before | {key: before["000"]}


def test_shares_are_met_by_chance_and_test_does_not_move_with_the_others():
    groups = {f"{index:05}": f"{index // 2:05}" for index in range(20_000)}
    counts = Counter(split_groups(groups, SHARES, 7).values())
    # five standard deviations of 10,000 groups of two rows
    for name, share in SHARES.model_dump().items():
        assert abs(counts[name] - 20_000 * share) < 5 * 2 * (10_000 * share * (1 - share)) ** 0.5
    other = Shares(train=0.5, validation=0.3, test=0.2)
    moved = split_groups(groups, other, 7)
    assert all(
        (moved[key] == "test") == (name == "test")
        for key, name in split_groups(groups, SHARES, 7).items()
    )


def test_another_seed_is_another_split():
    groups = {f"{index:02}": f"{index:02}" for index in range(40)}
    assert split_groups(groups, SHARES, 1) != split_groups(groups, SHARES, 2)


def test_an_overlap_is_found_and_quoted():
    with pytest.raises(InputError, match=r"the same text is in train and test: 'one\\n text'"):
        check_overlap(
            {"1": "train", "2": "test"},
            Ties(
                {"1": tie("One text"), "2": tie("one\n text")},
                {},
                texts={hash_text("one text"): "one\n text"},
            ),
        )


@pytest.mark.parametrize(
    ("counts", "faults"),
    [
        (((70, 70), (10, 10), (20, 20)), []),
        (((75, 75), (7, 7), (18, 18)), ["validation has 7.0% of the rows where 10% are asked"]),
        (((71, 71), (8, 8), (21, 6)), []),
        (((71, 71), (8, 8), (21, 5)), ["test has 5 groups where a verdict needs 6"]),
        (
            ((204, 204), (92, 1), (2, 1)),
            [
                "validation has 30.9% of the rows where 10% are asked",
                "test has 0.7% of the rows where 20% are asked",
                "test has 1 group where a verdict needs 6",
            ],
        ),
    ],
)
def test_a_share_that_is_missed_by_more_than_a_quarter_is_a_fault(counts, faults):
    assert find_faults(dict(zip(SPLITS, counts, strict=True)), SHARES.model_dump()) == faults


def test_a_stop_says_which_text_ties_most_and_what_mends_it():
    boilerplate = long("See the terms of use:")
    rows = [row(f"{index:03}", f"context {index}", f"answer {index}") for index in range(100)]
    rows += [row(f"9{index:02}", f"other {index}", boilerplate) for index in range(150)]
    made, ties, params = split(rows)
    with pytest.raises(InputError) as error:
        check_split(made, ties, params)
    said = str(error.value)
    assert "where 20% are asked" in said
    assert (
        "the largest group has 150 of 250 rows: the answer 'See the terms of use: answers" in said
    )
    assert "ties 150" in said
    (line,) = (line for line in said.splitlines() if "same_answer_words" in line)
    # what is advised does it
    words, seed = (int(part.split("=")[1].split()[0]) for part in line.split("-S split.")[1:])
    again = split(rows, same_answer_words=words, seed=seed)
    assert check_split(*again) == []
    assert "-S split.on_missed_shares=continue" in said
    go_on = split(rows, on_missed_shares="continue")
    assert check_split(*go_on) != []


def test_another_seed_is_advised_where_that_is_enough():
    rows = [row(f"{index:03}", f"context {index}", f"answer {index}") for index in range(30)]
    for seed in range(100):
        made = split(rows, seed=seed)
        if find_faults(made[0].count(), SHARES.model_dump()):
            with pytest.raises(InputError) as error:
                check_split(*made)
            advised = find_seed(made[0].groups, SHARES)
            assert f"another seed: dvc exp run -S split.seed={advised}\n" in f"{error.value}\n"
            assert check_split(*split(rows, seed=advised)) == []


def grouped(*sizes, answer="answer"):
    """Rows in groups of these sizes, by their contexts."""
    return [
        row(f"{at:03}-{number}", f"context {at}", f"{answer} {at} {number}")
        for at, size in enumerate(sizes)
        for number in range(size)
    ]


def stop(rows, **changes):
    """The error that stops the split of these rows, by lines."""
    with pytest.raises(InputError) as error:
        check_split(*split(rows, **changes))
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("sizes", "train", "validation", "test"),
    [
        ([3] * 18, 0.55, 0.1, 0.35),
        ([3] * 14, 0.5, 0.15, 0.35),
        ([3] * 13, 0.45, 0.15, 0.4),
        ([20, *[3] * 10], 0.55, 0.1, 0.35),  # the large one in train
    ],
)
def test_other_shares_are_advised_where_no_seed_works_with_the_wanted_ones(
    sizes, train, validation, test
):
    rows = grouped(*sizes)
    assert find_seed(split(rows)[0].groups, PARAMS.shares) is None
    _, advised, go_on = stop(rows, shares=PARAMS.shares)
    assert go_on.endswith("-S split.on_missed_shares=continue")
    what, _, command = advised.partition(": dvc exp run -S ")
    assert what == "  draw groups by another seed, with other shares"
    changes = dict(part.removeprefix("split.").split("=") for part in command.split(" -S "))
    seed = int(changes.pop("seed"))
    wanted = {"train": train, "validation": validation, "test": test}
    before = PARAMS.shares.model_dump()
    assert changes == {
        f"shares.{name}": str(share) for name, share in wanted.items() if share != before[name]
    }
    # the first seed that does it, with enough test groups for a verdict
    assert check_split(*split(rows, shares=Shares(**wanted), seed=seed)) == []
    assert split(rows, shares=Shares(**wanted), seed=seed)[0].count()["test"][1] >= 6
    for earlier in range(seed):
        counts = split(rows, shares=Shares(**wanted), seed=earlier)[0].count()
        assert find_faults(counts, wanted)
    # the answers do not decide it
    assert stop(grouped(*sizes, answer="another"), shares=PARAMS.shares)[1] == advised


def test_no_other_shares_are_advised_where_a_seed_is_enough():
    said = stop(grouped(*[3] * 24), shares=PARAMS.shares, seed=1)
    assert [line.split(": dvc")[0] for line in said[1:]] == [
        "  draw groups by another seed",
        "  go on all the same, and the report says so",
    ]


@pytest.mark.parametrize(
    ("sizes", "has"),
    [
        ([3] * 9, "there are 9"),
        ([3] * 12, "there are 12"),
        ([150, *[1] * 20], "the 21 groups here are too unequal"),
    ],
)
def test_where_nothing_works_the_stop_says_how_many_groups_are_needed(sizes, has):
    _, need, go_on = stop(grouped(*sizes), shares=PARAMS.shares)
    assert need == (
        "  More rows, of other contexts and answers, would mend it: at least 13 groups of equal "
        f"size are needed, and {has}."
    )
    assert go_on.endswith("-S split.on_missed_shares=continue")


@pytest.mark.parametrize(
    ("shares", "least"),
    [
        ((0.65, 0.1, 0.25), 20),  # 12, 2 and 6: of 19, six are 31.6% and 31.25% the most
        ((0.55, 0.1, 0.35), 16),  # 8, 2 and 6: of 14 or 15, no number is 7.5% to 12.5%
        ((0.5, 0.15, 0.35), 14),  # 6, 2 and 6: of 13, six are 46.2% and 43.75% the most
        ((0.45, 0.15, 0.4), 13),  # 5, 2 and 6: of 12, four are 33.3% and 33.75% the least
    ],
)
def test_the_fewest_groups_of_equal_size_are_computed(shares, least):
    wanted = Shares(**dict(zip(SPLITS, shares, strict=True)))
    assert count_least_groups([wanted]) == least
    assert count_least_groups([wanted, *OTHER_SHARES]) == 13


def test_an_empty_split_stops_whatever_was_said():
    with pytest.raises(
        InputError, match="at least 13 groups of equal size are needed, and there is 1"
    ):
        check_split(*split([row("1", "a", "b")], on_missed_shares="continue"))


def test_mined_hard_negatives_tie_nothing_and_those_that_training_holds_as_right_are_withheld():
    # each row's negative is the next one's positive
    rows = [
        row(f"{index:03}", f"context {index}", long(index), long((index + 1) % 300))
        for index in range(300)
    ]
    made, ties, params = split(rows)
    assert len(set(made.groups.values())) == 300
    assert check_split(made, ties, params) == []
    trained = [each for each in rows if made.splits[each["id"]] == "train"]
    test = [each for each in rows if made.splits[each["id"]] == "test"]
    lost = find_given_away(trained, test, {})
    right, wrong = ({each[field] for each in trained} for field in ("positive", "negative"))
    assert lost == {e["id"] for e in test if e["negative"] in right or e["positive"] in wrong}
    assert 0 < len(lost) < len(test)


def test_answers_of_one_word_are_as_many_groups_as_contexts():
    answers = ("yes", "no", "maybe")
    rows = [row(f"{index:03}", f"context {index}", answers[index % 3]) for index in range(200)]
    made, ties, params = split(rows, seed=1)
    assert len(set(made.groups.values())) == 200
    assert check_split(made, ties, params) == []


def test_the_two_rows_of_a_swapped_pair_keep_their_wrong_answers():
    rows = [row("1", "A", "x", "y"), row("2", "A", "y", "x")]
    assert find_given_away(rows, rows, {}) == {"1", "2"}
    assert find_given_away(rows, rows, pair_rows(rows)) == set()


def test_any_right_answer_of_a_trained_row_gives_a_wrong_one_away():
    trained = [row("1", "A", "x", "z", also_right=["y"])]
    asked = [
        row("2", "B", "v", "Y"),
        row("3", "C", "v", "w", also_right=["z"]),
        row("4", "D", "v", "w"),
    ]
    assert find_given_away(trained, asked, {}) == {"2", "3"}


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
