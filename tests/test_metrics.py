import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from stages.verdict.metrics import (
    answer_only,
    bits_per_byte,
    contrastive,
    length_ratio,
    pair_matching,
    rouge_l,
    score_row,
    token_f1,
)

WORDS = st.lists(st.sampled_from(["the", "pump", "Valve-seat", "is", "made", "of", "steel.", "12", ""]), max_size=20)


def likelihood(question, no_question=0.0, bare=0.0, size=10):
    ways = {"question": question, "no_question": no_question, "bare": bare}
    return {way: {"sum": value, "tokens": 5, "bytes": size} for way, value in ways.items()}


def test_rouge_l_by_hand():
    # longest common subsequence "the cat the mat", 4 of 6 and 4 of 5 tokens: F1 = 2·4/11
    assert rouge_l("The cat sat on the mat", "the cat is the mat!") == pytest.approx(8 / 11)
    assert rouge_l("", "a") == rouge_l("a", "b") == 0


@given(WORDS, WORDS)
def test_rouge_l_of_ascii_text_is_that_of_rouge_score(prediction, reference):
    texts = " ".join(prediction), " ".join(reference)
    expected = RougeScorer(["rougeL"], use_stemmer=False).score(texts[1], texts[0])["rougeL"].fmeasure
    assert rouge_l(*texts) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("насос из стали", "Насос из СТАЛИ", 1),
        ("für", "f r", 0),
        ("答案是钢", "答案是铁", 3 / 4),
        ("ポンプ", "ポンプ", 1),
        ("a_b", "a b", 1),
    ],
)
def test_words_of_any_script_count(prediction, reference, expected):
    assert rouge_l(prediction, reference) == pytest.approx(expected)
    assert token_f1(prediction, reference) == pytest.approx(expected)


def test_token_f1_by_hand():
    # bags {the: 2, cat, sat} and {the, cat, ran}: 2 shared, precision 2/4, recall 2/3
    assert token_f1("the cat the sat", "The cat ran") == pytest.approx(4 / 7)
    assert token_f1("x", "y") == token_f1("", "y") == 0


def test_bits_per_byte_and_length_by_hand():
    assert bits_per_byte({"sum": -8 * math.log(2), "bytes": 4}) == pytest.approx(2)
    assert length_ratio("ab", "abcd") == 0.5


def test_a_pair_is_matched_by_both_questions_together_and_a_texts_own_likelihood_cancels():
    # row 1: log p(A|q1) = −10, log p(B|q1) = −14; row 2: log p(B|q2) = −20, log p(A|q2) = −15. −30 against −29: wrong
    first = {"positive": likelihood(-10), "negative": likelihood(-14)}
    second = {"positive": likelihood(-20), "negative": likelihood(-15)}
    assert pair_matching(first, second) == 0
    # B becomes likelier by 100 everywhere: nothing changes
    first["negative"], second["positive"] = likelihood(86), likelihood(80)
    assert pair_matching(first, second) == 0
    assert pair_matching(first, {"positive": likelihood(82), "negative": likelihood(-15)}) == 1
    same = {"positive": likelihood(-1), "negative": likelihood(-1)}
    assert pair_matching(same, same) == 0.5


def test_contrastive_compares_what_the_prompt_adds():
    # the negative is likelier throughout, but the prompt adds 6 to the positive and 5 to the negative
    row = {"positive": likelihood(-14, -21, bare=-20), "negative": likelihood(-5, -4, bare=-10)}
    assert contrastive(row) == 1
    assert contrastive(row, "no_question") == 0


def test_answer_only_compares_per_byte():
    # 20 nats over 10 bytes, 30 nats over 20 bytes: the longer is likelier per byte
    assert answer_only({"positive": likelihood(0, bare=-20), "negative": likelihood(0, bare=-30, size=20)}) == 0


@pytest.mark.parametrize(
    ("negative", "pair", "names"),
    [
        (None, None, set()),
        (likelihood(-2), None, {"answer_only", "contrastive", "contrastive_no_question"}),
        (likelihood(-2), "other", {"answer_only"}),
    ],
)
def test_metrics_that_need_a_negative_are_left_out_without_one(negative, pair, names):
    prediction = {
        "prediction": "Steel.",
        "finish_reason": "length",
        "likelihood": {"positive": likelihood(-1), "negative": negative},
    }
    scores = score_row({"positive": "Steel.", "pair": pair}, prediction)
    assert scores.keys() == {"rouge_l", "token_f1", "bits_per_byte", "length_ratio", "truncated"} | names
    assert (scores["rouge_l"], scores["truncated"], scores["length_ratio"]) == (1, 1, 1)
