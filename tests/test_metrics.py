import math
import unicodedata
from difflib import SequenceMatcher

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_chrf

from library.corpus.words import locate_tokens, tokenize
from library.verdict.metrics import (
    METRICS,
    answer_only,
    bits_per_byte,
    chrf,
    chrf_signature,
    contrastive,
    copied_span,
    cut_at_length,
    cut_at_repetition,
    find_figures,
    length_ratio,
    longest_shared_runs,
    naive_preference,
    ngram_support,
    number_f1,
    number_support,
    pair_matching,
    repetition,
    rouge_l,
    score_cut,
    score_row,
    token_f1,
)

WORDS = st.lists(
    st.sampled_from(["the", "pump", "Valve-seat", "is", "made", "of", "steel.", "12", ""]),
    max_size=20,
)


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
    expected = (
        RougeScorer(["rougeL"], use_stemmer=False).score(texts[1], texts[0])["rougeL"].fmeasure
    )
    assert rouge_l(*texts) == pytest.approx(expected, abs=1e-12)


@given(WORDS, WORDS)
def test_chrf_is_sacrebleus_with_words(prediction, reference):
    texts = " ".join(prediction), " ".join(reference)
    assert chrf(*texts) == pytest.approx(
        sentence_chrf(texts[0], [texts[1]], word_order=2).score / 100
    )


def test_chrf_by_hand_and_its_signature():
    # "ab" against "abc" without words: character 1-grams 2 of 2 and 2 of 3, 2-grams 1 of 1 and 1 of
    # 2, 3-grams 0 of 0 and 0 of 1; a word 1-gram 0 of 1 and 0 of 1. Orders that the prediction or
    # the reference lacks don't count: 1, 2 and the word.
    precision, recall = (1 + 1 + 0) / 3, (2 / 3 + 1 / 2 + 0) / 3
    assert chrf("ab", "abc") == pytest.approx(5 * precision * recall / (4 * precision + recall))
    assert chrf("the pump", "the pump") == 1
    assert chrf_signature().startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:")


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("насос из стали", "Насос из СТАЛИ", 1),
        ("für", "f r", 0),
        ("答案是钢", "答案是铁", 3 / 4),
        ("ポンプ", "ポンプ", 1),
        ("a_b", "a b", 1),
        # Hindi: two words that differ by a vowel sign; of three words two are the same, in order
        ("दिन", "दान", 0),
        ("यह दिन है", "यह दान है", 2 / 3),
        # Arabic: a book with and without vowel marks, with tatweel; another word is another
        ("كِتَاب", "كتاب", 1),
        ("كتـــاب", "كتاب", 1),
        ("كتاب", "كاتب", 0),
        # Hebrew points are as optional
        ("שָׁלוֹם", "שלום", 1),
        # Thai: water is น + tone mark, and ำ; without the mark only ำ is the same: 2 · 1 / (2 + 2)
        ("น้ำ", "นำ", 1 / 2),
        # Turkish: İ is i, I is not ı
        ("İstanbul", "istanbul", 1),
        ("ısı", "isi", 0),
        # Korean: composed and by jamo; 한국 against 한글
        ("\u1112\u1161\u11ab\u1100\u116e\u11a8", "한국", 1),
        ("한국 음식", "한글 음식", 1 / 2),
        # Japanese: コ ー ヒ ー against コ ピ ー: コ and ー, 2 · 2 / (4 + 3)
        ("コーヒー", "コピー", 4 / 7),
        # Chinese beyond the basic plane
        ("𠀀𠀁", "𠀀𠀂", 1 / 2),
        # Persian with and without a joiner, German, Greek with two forms of sigma, é in two forms
        ("می\u200cخواهم", "میخواهم", 1),
        ("Straße", "STRASSE", 1),
        ("ΟΔΟΣ", "οδος", 1),
        ("e\u0301té", "ÉTÉ", 1),
        # a superscript is no digit of the number before it
        ("10²", "102", 0),
    ],
)
def test_words_of_any_script_count(prediction, reference, expected):
    assert rouge_l(prediction, reference) == pytest.approx(expected)
    assert token_f1(prediction, reference) == pytest.approx(expected)


def test_tokens_are_found_where_they_stand():
    text = "The Valve-seat, 答案 हिन्दी"
    assert [text[start:end].lower() for start, end, _ in locate_tokens(text)] == tokenize(text)
    assert tokenize(text) == ["the", "valve", "seat", "答", "案", "हिन्दी"]


@given(st.text(), st.text())
def test_words_do_not_depend_on_how_letters_are_composed(text, other):
    for form in ("NFC", "NFD"):
        assert tokenize(unicodedata.normalize(form, text)) == tokenize(text)
    assert tokenize(f"{text} {other}") == tokenize(text) + tokenize(other)


def test_token_f1_by_hand():
    # bags {the: 2, cat, sat} and {the, cat, ran}: 2 shared, precision 2/4, recall 2/3
    assert token_f1("the cat the sat", "The cat ran") == pytest.approx(4 / 7)
    assert token_f1("x", "y") == token_f1("", "y") == 0


def test_bits_per_byte_and_length_by_hand():
    assert bits_per_byte({"sum": -8 * math.log(2), "bytes": 4}) == pytest.approx(2)
    assert length_ratio("ab", "abcd") == 0.5


TWELVE = "one two three four five six seven eight nine ten eleven twelve"


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        (f"Well. {TWELVE}. {TWELVE}. {TWELVE}, and", f"Well. {TWELVE}."),
        # seventeen times three words: from the fourth on, twelve words stood before
        ("of the pump " * 17, "of the pump"),
        (f"{TWELVE[4:]} no {TWELVE[4:]}", f"{TWELVE[4:]} no {TWELVE[4:]}"),  # eleven words
        ("水泵由钢制成。它重十二公斤，" * 3, "水泵由钢制成。它重十二公斤，"),
        ("short", "short"),
        ("", ""),
    ],
)
def test_an_answer_is_cut_where_it_begins_to_repeat_itself(text, cut):
    assert cut_at_repetition(text) == cut


@given(st.text())
def test_what_is_cut_is_a_beginning_that_repeats_nothing(text):
    cut = cut_at_repetition(text)
    assert text.startswith(cut)
    assert cut_at_repetition(cut) == cut


def test_cut_answers_are_held_against_the_references_by_hand():
    assert cut_at_length("one, two three.", 2) == "one, two"
    assert cut_at_length("one, two three.", 3) == "one, two three."
    looped = f"{TWELVE}. " * 4
    scores = score_cut("rouge_l", looped, [TWELVE, "one"])
    # whole, twelve of 48 words are right: 2 · 12 / (48 + 12)
    assert rouge_l(looped, TWELVE) == pytest.approx(0.4)
    assert scores == {"loops": 1, "cut_at_repetition": 1, "cut_at_length": 1}
    ended = score_cut("token_f1", f"{TWELVE} and so on", [TWELVE])
    assert ended == {
        "loops": 0,
        "cut_at_repetition": pytest.approx(2 * 12 / (15 + 12)),
        "cut_at_length": 1,
    }


def test_repetition_by_hand():
    # "a b c d a b c d": five four-word sequences, of which "a b c d" stands twice
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("a b c") == repetition("") == 0
    # eight words, five sequences, all the same
    assert repetition("The" * 8) == pytest.approx(4 / 5)
    assert repetition("onomatopoeia barbarian hahaha") == 0


CONTEXT = "The pump is made of steel. It weighs 12 kg, at 3.5 bar; the valve of brass weighs 7 g."


def test_support_by_hand():
    # "the valve is", "valve is made", "is made of", "made of steel": the last two stand in the
    # context
    assert ngram_support("The valve is made of steel", CONTEXT) == pytest.approx(2 / 4)
    assert ngram_support("the pump", CONTEXT) is None
    assert number_support("12 or 3.5 or 3", CONTEXT) == pytest.approx(2 / 3)
    assert number_support("none", CONTEXT) is None
    assert copied_span("It is made of steel it weighs, they say", CONTEXT) == 6
    assert copied_span("", CONTEXT) == 0


LETTERS = st.lists(st.lists(st.sampled_from("abc"), max_size=8).map(" ".join), max_size=5)


@given(LETTERS, LETTERS)
def test_the_longest_shared_run_is_what_difflib_finds_text_by_text(answers, texts):
    def longest(answer):
        matchers = [
            SequenceMatcher(None, tokenize(answer), tokenize(text), autojunk=False)
            for text in texts
        ]
        return max((matcher.find_longest_match().size for matcher in matchers), default=0)

    assert longest_shared_runs(answers, texts) == [longest(answer) for answer in answers]


def test_a_pair_is_matched_by_both_questions_together_and_a_texts_own_likelihood_cancels():
    # row 1: log p(A|q1) = −10, log p(B|q1) = −14; row 2: log p(B|q2) = −20, log p(A|q2) = −15. −30
    # against −29: wrong
    first = {"positive": likelihood(-10), "negative": likelihood(-14)}
    second = {"positive": likelihood(-20), "negative": likelihood(-15)}
    assert pair_matching(first, second) == 0
    # B becomes likelier by 100 everywhere: nothing changes
    first["negative"], second["positive"] = likelihood(86), likelihood(80)
    assert pair_matching(first, second) == 0
    assert pair_matching(first, {"positive": likelihood(82), "negative": likelihood(-15)}) == 1
    same = {"positive": likelihood(-1), "negative": likelihood(-1)}
    assert pair_matching(same, same) == 0.5


def test_the_naive_comparison_is_one_half_for_a_swapped_pair_whatever_the_model_knows():
    # answers of ten bytes; B is likelier everywhere, so of two rows that swap A and B one is right
    # and one wrong
    first = {"positive": likelihood(-10), "negative": likelihood(-5)}
    second = {"positive": likelihood(-4), "negative": likelihood(-11)}
    assert (naive_preference(first) + naive_preference(second)) / 2 == 0.5
    # 20 nats over 10 bytes, 30 nats over 20 bytes: the longer is likelier per byte
    assert (
        naive_preference({"positive": likelihood(-20), "negative": likelihood(-30, size=20)}) == 0
    )


def test_contrastive_compares_what_the_prompt_adds():
    # the negative is likelier throughout, but the prompt adds 6 to the positive and 5 to the
    # negative
    row = {"positive": likelihood(-14, -21, bare=-20), "negative": likelihood(-5, -4, bare=-10)}
    assert contrastive(row) == 1
    assert contrastive(row, "no_question") == 0


def test_answer_only_compares_per_byte():
    # 20 nats over 10 bytes, 30 nats over 20 bytes: the longer is likelier per byte
    assert (
        answer_only(
            {"positive": likelihood(0, bare=-20), "negative": likelihood(0, bare=-30, size=20)}
        )
        == 0
    )


@pytest.mark.parametrize(
    ("negative", "pair", "names"),
    [
        (None, None, set()),
        (
            likelihood(-2),
            None,
            {"answer_only", "naive_preference", "contrastive", "contrastive_no_question"},
        ),
        (likelihood(-2), "other", {"answer_only", "naive_preference"}),
    ],
)
def test_metrics_that_can_not_be_said_are_left_out(negative, pair, names):
    prediction = {
        "prediction": "Steel.",
        "finish_reason": "length",
        "likelihood": {"positive": likelihood(-1), "negative": negative},
    }
    scores = score_row({"positive": "Steel.", "also_right": [], "pair": pair}, prediction, CONTEXT)
    without_numbers = {
        "rouge_l",
        "chrf",
        "token_f1",
        "bits_per_byte",
        "copied_span",
        "length_ratio",
        "repetition",
        "truncated",
        "empty",
    }
    assert scores.keys() == without_numbers | names
    assert scores.keys() <= set(METRICS)
    assert (
        scores["rouge_l"],
        scores["truncated"],
        scores["length_ratio"],
        scores["copied_span"],
    ) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("1000", "1,000", 1.0),
        ("It weighs 1.50 kg", "1.5 kg", 1.0),
        ("1,5 kg", "1.5 kg", 1.0),
        ("12,345,678.9", "12345678.90", 1.0),
        ("50", "50%", 0.0),
        ("50 %", "50%", 1.0),
        ("-3", "3", 0.0),
        ("\u22123", "-3", 1.0),
        ("4-5 mm", "4 to 5 mm", 1.0),  # a range is no minus
        ("C#", "C++", 0.0),
        ("C++", "C++", 1.0),
        ("+x", "-x", 0.0),
        ("∞", "∞", 1.0),
        ("≤", "≥", 0.0),
        ("👍", "👍", 1.0),
        ("５", "5", 1.0),
        ("0", "-0", 1.0),
        # of 3 and 4 numbers two are the same: 2 * 2 / 7
        ("2, 3 and 7", "2, 3, 5 and 11", 4 / 7),
        ("nothing", "12 mm", 0.0),
        ("12 mm", "a U-shaped part of H2O, well-known - and so on", None),
    ],
)
def test_numbers_and_signs_count_by_value(prediction, reference, expected):
    assert number_f1(prediction, reference) == (expected and pytest.approx(expected))


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("18.0.2, 12.03.2019, 192.168.0.1", ["18.0.2", "12.03.2019", "192.168.0.1"]),
        ("1.000.000 and 1.234.567,5", ["1000000", "1234567.5"]),
        ("10³ Pa, 10⁶, 10^6, 10⁻⁶", ["10", "3", "10", "6", "10", "6", "10", "-6"]),
        ("1½, 2¾, ½", ["1.5", "2.75", "0.5"]),
        ("٣٫١٤ ١٬٠٠٠ 50٪", ["3.14", "1000", "50%"]),
        ("1" * 39 + "2", ["1" * 39 + "2"]),
    ],
)
def test_figures_beyond_plain_numbers_are_read_as_they_are_written(text, figures):
    assert find_figures(text) == figures


@given(st.text() | st.text("0123456789.,-+%½³⁻٣٫ "))
def test_any_text_has_figures_that_match_themselves(text):
    assert number_f1(text, text) == (1.0 if find_figures(text) else None)
