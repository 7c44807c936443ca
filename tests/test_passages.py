import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.corpus.passages import count_sentences, rank_passages, split_passages


@given(st.text(alphabet="ab. A\n", max_size=300), st.integers(1, 40))
def test_nothing_but_white_space_is_lost_and_no_passage_is_too_long(text, characters):
    passages = split_passages(text, characters)
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert all(0 < len(passage) <= characters for passage in passages)


def test_passages_are_whole_sentences_and_stay_in_their_paragraph():
    text = "One is here. Two is there.\n\nThree. Four is a longer one. Five."
    assert split_passages(text, 27) == [
        "One is here. Two is there.",
        "Three.",
        "Four is a longer one. Five.",
    ]


@pytest.mark.parametrize(
    ("text", "characters", "passages"),
    [
        # Chinese: 7, 7, 3, 5 and 3 characters, without a blank between them
        (
            "水泵由钢制成。它重十二公斤！是吗？“是的。”他说。",
            17,
            ["水泵由钢制成。它重十二公斤！是吗？", "“是的。”他说。"],
        ),
        ("पंप स्टील का है। वजन 12 किलो है।", 20, ["पंप स्टील का है।", "वजन 12 किलो है।"]),
        ("المضخة من الفولاذ. وزنها ١٢ كغ؟ نعم.", 20, ["المضخة من الفولاذ.", "وزنها ١٢ كغ؟ نعم."]),
        (
            "Où ? Là. Élan vital, env. 3 kg. «Oui.»",
            12,
            ["Où ? Là.", "Élan vital,", "env. 3 kg.", "«Oui.»"],
        ),
    ],
)
def test_sentences_end_as_each_script_ends_them(text, characters, passages):
    assert split_passages(text, characters) == passages


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It is.", 1),
        ("", 1),
        ("It is. It was! Was it?\n\nIt will be", 4),
        ("水泵由钢制成。它重十二公斤。", 2),
        ("It weighs 4.5 kg, i.e. little. No more.", 2),
    ],
)
def test_sentences_are_counted(text, sentences):
    assert count_sentences(text) == sentences


@given(st.text(alphabet="水。！？”a. A\n।", max_size=300), st.integers(1, 40))
def test_nothing_is_lost_or_added_where_no_blank_tells_sentences_apart(text, characters):
    passages = split_passages(text, characters)
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert all(0 < len(passage) <= characters for passage in passages)
    blanks = "".join(passages).count(" ")
    assert blanks <= sum(character.isspace() for character in text)


def test_a_sentence_that_is_too_long_is_cut_at_white_space():
    assert split_passages("aaa bbb ccc ddddddddd", 7) == ["aaa bbb", "ccc", "ddddddd", "dd"]


def test_five_megabytes_without_a_sentence_end_are_cut_in_seconds():
    assert len(split_passages("word " * 1_000_000, 600)) == pytest.approx(5_000_000 / 600, rel=0.01)


def test_bm25_gives_lucenes_numbers():
    # N = 2; "cat" is in one passage: idf = ln(1 + 1.5/1.5) = ln 2. Lengths 2 and 4, mean 3.
    # score("cat dog") = ln 2 · 1/(1 + 1.2·(0.25 + 0.75·2/3)) = ln 2 / 1.9; "sat" decides for the
    # other: ln 2 / 2.5, twice 1/…
    passages = ["cat dog", "sat on the mat"]
    assert rank_passages(passages, "cat") == [0, 1]
    assert rank_passages(passages, "sat") == [1, 0]
    assert math.log(2) / 1.9 > math.log(2) / 2.5
    assert rank_passages(passages, "cat sat") == [0, 1]  # the shorter passage weighs more
    assert rank_passages(passages, "sat the cat") == [1, 0]  # two words weigh more than one


@pytest.mark.parametrize(
    ("passages", "question", "order"),
    [
        # 钢 is in the second alone, 泵 in both: idf ln(1 + 1.5/1.5) against ln(1 + 0.5/2.5)
        (["水泵在壳体内", "水泵由钢制成"], "钢泵？", [1, 0]),
        # case and accents tell words apart in French, as its words are folded by case alone
        (["La pompe est à côté.", "La cote est fausse."], "COTE ?", [1, 0]),
        # with or without harakat it is the same word
        (["الصمام مغلق", "المِضَخّة من الفولاذ"], "المضخة", [1, 0]),
        # दिन is not दान
        (["दान दिया गया", "दिन बीत गया"], "दिन", [1, 0]),
    ],
)
def test_bm25_knows_the_words_of_other_scripts(passages, question, order):
    assert rank_passages(passages, question) == order


def test_ties_and_questions_without_a_known_word_keep_document_order():
    assert rank_passages(["b", "a", "c"], "zebra?") == [0, 1, 2]
    assert rank_passages([], "zebra") == []
