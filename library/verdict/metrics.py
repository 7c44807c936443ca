"""Answer metrics: pure functions of texts and of log-likelihoods.

All logarithms of likelihoods are natural (nats).
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Context, Decimal
from difflib import SequenceMatcher
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq
from sacrebleu.metrics.chrf import CHRF

from library.corpus.words import locate_tokens, tokenize
from library.records import FormattedRow, Likelihood, Likelihoods, Prediction, right_answers

_FIGURE = regex.compile(
    r"(?<![\w)\]])(?P<sign>[-\u2212\u2013+])?(?P<number>\d+(?:[.,]\d+)*|[.]\d+)(?P<percent>\s?%)?"
    r"|(?<!\w)[-\u2212\u2013](?=[\w.])|[[\p{Sm}\p{Sc}\p{So}%]--[|~]]|(?<=\w)#",
    regex.VERSION1,
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_THOUSANDS_BY_POINTS = re.compile(
    r"\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?"
)  # a single point could be a decimal point
_EXACT = Context(prec=10_000)
_POWER = re.compile("[⁺⁻]?[⁰¹²³⁴-⁹]+")  # NFKC would make them digits of the number before
_FRACTION = re.compile("([0-9]*)([¼-¾⅐-⅞])")
_ARABIC_SIGNS = str.maketrans("٫٬٪", ".,%")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_STUTTER = re.compile(r"([^\W\d_]{2,}?)\1{3,}")  # TheTheTheThe
_BASE = np.uint64(0x9E3779B97F4A7C15)
_CHRF = CHRF(word_order=2)
SUPPORT_WORDS, REPETITION_WORDS = 3, 4
LOOP_WORDS = 12  # words in a run: if one occurs again, the answer is looping
OPTIONAL = frozenset({"embedding_cosine"})  # computed if evaluate.embedding_model is set
# all others lie between 0 and 1
UNBOUNDED = {"embedding_cosine", "bits_per_byte", "copied_span", "length_ratio"}

METRICS = (
    "rouge_l",
    "chrf",
    "token_f1",
    "number_f1",
    "embedding_cosine",
    "bits_per_byte",
    "pair_matching",
    "contrastive",
    "contrastive_no_question",
    "answer_only",
    "naive_preference",
    "ngram_support",
    "number_support",
    "copied_span",
    "length_ratio",
    "loops",
    "cut_at_repetition",
    "cut_at_length",
    "repetition",
    "truncated",
    "empty",
)

# All other metrics describe an answer, or are controls, and have no better direction.
HIGHER_IS_BETTER = frozenset(
    {
        "rouge_l",
        "chrf",
        "token_f1",
        "number_f1",
        "embedding_cosine",
        "pair_matching",
        "contrastive",
    }
)

LOWER_IS_BETTER = frozenset({"bits_per_byte", "repetition", "truncated", "empty"})


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F1 over tokens, without stemming, in [0, 1].

    Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.
    """
    predicted, expected = tokenize(prediction), tokenize(reference)
    if not predicted or not expected:
        return 0.0
    return 2 * LCSseq.similarity(predicted, expected) / (len(predicted) + len(expected))


def _bag_f1(predicted: Counter[str], expected: Counter[str]) -> float:
    shared = (predicted & expected).total()
    return 2 * shared / (predicted.total() + expected.total()) if shared else 0.0


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the bags of tokens, in [0, 1]. Rajpurkar et al., SQuAD, 2016, with the tokens above."""
    return _bag_f1(Counter(tokenize(prediction)), Counter(tokenize(reference)))


def find_figures(text: str) -> list[str]:
    """The numbers and signs of a text, in order, each in one form.

    Numbers keep their sign and percent sign, and are compared by value, as Dua et al. do (DROP,
    2019): 1,000 is 1000, and 1.50 is 1.5. A comma is a decimal comma unless three digits follow
    it; several points group thousands. Powers and fractions are read as such: 10³
    is 10 and 3, 1½ is 1.5. A version or a date is one figure. Digits within a word (H2O) are no
    number. Signs are mathematical ones, currencies, other symbols (∞, ≥, °, an emoji), the # and +
    of C# and C++, and a minus before a word.
    """
    found = []
    text = _FRACTION.sub(_decimal, _POWER.sub(r"^\g<0>", text.translate(_ARABIC_SIGNS)))
    for match in _FIGURE.finditer(unicodedata.normalize("NFKC", text)):
        number = match["number"]
        if number is None:
            found.append(match[0].replace("\u2212", "-").replace("\u2013", "-"))
            continue
        value = _value(number)
        minus = "-" if match["sign"] in ("-", "\u2212", "\u2013") and value != "0" else ""
        found.append(f"{minus}{value}{'%' if match['percent'] else ''}")
    return found


def _decimal(match: re.Match[str]) -> str:
    """Digits with a fraction after them, such as 1½, as a decimal number."""
    value = Decimal(match[1] or 0) + Decimal(str(unicodedata.numeric(match[2])))
    return f"{value:f}"


def _value(number: str) -> str:
    """A number in one form. A version or a date, with several points or commas that do not group
    thousands, stays as it is.
    """
    for point, pattern in ((",", _THOUSANDS), (".", _THOUSANDS_BY_POINTS)):
        if pattern.fullmatch(number):
            number = number.replace(point, "")
    number = number.replace(",", ".")
    if number.count(".") > 1:
        return number
    return f"{Decimal(number).normalize(_EXACT):f}"


def number_f1(prediction: str, reference: str) -> float | None:
    """F1 of the bags of numbers and signs, in [0, 1]; None if the reference has none."""
    expected = Counter(find_figures(reference))
    return _bag_f1(Counter(find_figures(prediction)), expected) if expected else None


def chrf(prediction: str, reference: str) -> float:
    """chrF++ as sacrebleu computes it, but in [0, 1] instead of 0 to 100.

    Popović, chrF++, 2017.
    """
    return float(_CHRF.sentence_score(prediction, [reference]).score) / 100


def chrf_signature() -> str:
    """The signature that sacrebleu wants quoted with its scores: version and settings."""
    scorer = CHRF(word_order=2)
    scorer.corpus_score(["a"], [["a"]])  # only this sets the number of references
    return str(scorer.get_signature().format())


def length_ratio(prediction: str, reference: str) -> float:
    """Characters of the prediction per character of the reference."""
    return len(prediction) / len(reference)


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def repetition(prediction: str) -> float:
    """Share of the four-word sequences that occurred in the answer before.

    Welleck et al., Neural Text Generation with Unlikelihood Training, 2020 (seq-rep-4). 0 if there
    is no such sequence. A syllable repeated four times or more without spaces counts as words.
    """
    spaced = _STUTTER.sub(
        lambda match: " ".join([match[1]] * (len(match[0]) // len(match[1]))), prediction
    )
    ngrams = _ngrams(tokenize(spaced), REPETITION_WORDS)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def cut_at_repetition(text: str) -> str:
    """The text up to the first run of LOOP_WORDS words that occurred in it before; all of it if
    there is none.
    """
    places = locate_tokens(text)
    seen: set[tuple[str, ...]] = set()
    for at, words in enumerate(_ngrams([word for _, _, word in places], LOOP_WORDS)):
        if words in seen:
            return text[: places[at][0]].rstrip()
        seen.add(words)
    return text


def cut_at_length(text: str, words: int) -> str:
    """The first `words` words of the text, or all of it if it has no more."""
    places = locate_tokens(text)
    return text[: places[words - 1][1]] if 0 < words < len(places) else text


def score_cut(metric: str, answer: str, references: Sequence[str]) -> dict[str, float]:
    """Score an answer by one of TEXT_METRICS after cutting it where it begins to repeat itself, and
    after cutting it to the length of the longest reference. `loops` is 1 if it repeats itself.

    A gain on whole answers that is missing here comes from ending in time.
    """
    ended = cut_at_repetition(answer)
    longest = max(len(tokenize(reference)) for reference in references)
    cut = {"cut_at_repetition": ended, "cut_at_length": cut_at_length(answer, longest)}
    scores: dict[str, float] = {"loops": float(ended != answer)}
    for name, text in cut.items():
        if (score := best_score(TEXT_METRICS[metric], text, references)) is not None:
            scores[name] = score
    return scores


class _Context(NamedTuple):
    ngrams: set[tuple[str, ...]]
    numbers: set[str]
    matcher: "SequenceMatcher[str]"


@lru_cache(maxsize=4)  # all answers of a row are compared with one context
def _context(text: str) -> _Context:
    tokens = tokenize(text)
    return _Context(
        set(_ngrams(tokens, SUPPORT_WORDS)),
        set(_NUMBER.findall(text)),
        SequenceMatcher(None, b=tokens, autojunk=False),
    )


def ngram_support(prediction: str, context: str) -> float | None:
    """Share of the answer's three-word sequences that occur in the context; None if it has none."""
    ngrams = _ngrams(tokenize(prediction), SUPPORT_WORDS)
    return (
        sum(ngram in _context(context).ngrams for ngram in ngrams) / len(ngrams) if ngrams else None
    )


def number_support(prediction: str, context: str) -> float | None:
    """Share of the answer's numbers that occur in the context; None if it has none."""
    numbers = _NUMBER.findall(prediction)
    return (
        sum(number in _context(context).numbers for number in numbers) / len(numbers)
        if numbers
        else None
    )


def copied_span(prediction: str, context: str) -> int:
    """Words in the longest run that the answer copies from the context."""
    matcher = _context(context).matcher
    matcher.set_seq1(tokenize(prediction))
    return matcher.find_longest_match().size


def longest_shared_runs(answers: Sequence[str], texts: Iterable[str]) -> list[int]:
    """For each answer, the words in its longest run that occurs word for word in one of the texts.

    A run of n words is shared only if its first n - 1 are. So each round keeps only the positions,
    in answers and texts, whose runs are still shared, and makes these one word longer.
    """
    known: dict[str, int] = {}

    def number(many: Iterable[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        words: list[int] = []
        owners: list[int] = []
        for owner, text in enumerate(many):
            ids = [known.setdefault(word, len(known) + 1) for word in tokenize(text)]
            words += [*ids, 0]  # 0 ends a text: no run crosses it
            owners += [owner] * (len(ids) + 1)
        return np.array(words, dtype=np.uint64), np.array(owners, dtype=np.int64)

    (asked, owner), (given, _) = number(answers), number(texts)
    longest = np.zeros(len(answers), dtype=np.int64)
    at, there = np.flatnonzero(asked), np.flatnonzero(given)
    runs, known_runs = asked[at], given[there]
    length = 1
    while True:
        alive, known_alive = np.isin(runs, known_runs), np.isin(known_runs, runs)
        at, runs, there, known_runs = (
            at[alive],
            runs[alive],
            there[known_alive],
            known_runs[known_alive],
        )
        if not len(at):
            return [int(value) for value in longest]
        longest[owner[at]] = length
        further, known_further = asked[at + length] > 0, given[there + length] > 0
        at, runs, there, known_runs = (
            at[further],
            runs[further],
            there[known_further],
            known_runs[known_further],
        )
        # a hash of 64 bits by Horner's rule, modulo 2^64
        runs = runs * _BASE + asked[at + length]
        known_runs = known_runs * _BASE + given[there + length]
        length += 1


def bits_per_byte(likelihood: Likelihood) -> float:
    """Bits that the model needs per UTF-8 byte of the answer. Lower is better, and tokenizers are
    comparable.
    """
    return -likelihood["sum"] / math.log(2) / likelihood["bytes"]


def prefer(one: float, other: float) -> float:
    """1 if the first is larger, 0 if the second is, one half if they are equal."""
    return 1.0 if one > other else 0.0 if one < other else 0.5


def _of_both(row: Likelihoods, variant: str) -> tuple[Likelihood, Likelihood]:
    """The likelihoods of positive and negative after one variant of the prompt."""
    assert row["negative"] is not None, "asked only of rows with a negative"
    return row["positive"][variant], row["negative"][variant]


def pair_matching(first: Likelihoods, second: Likelihoods) -> float:
    """Whether two rows' swapped answers A and B are matched to the right questions.

    Compares log p(A|q1) + log p(B|q2) with log p(B|q1) + log p(A|q2): each text is on both sides,
    so its own likelihood cancels.
    """
    (right_1, wrong_1), (right_2, wrong_2) = (_of_both(row, "question") for row in (first, second))
    return prefer(right_1["sum"] + right_2["sum"], wrong_1["sum"] + wrong_2["sum"])


def contrastive(row: Likelihoods, variant: str = "question") -> float:
    """Whether the prompt raises the positive's likelihood more than the negative's.

    The gain of each answer is log p(answer|prompt) − log p(answer|neither context nor question).
    `variant` is `question`, or `no_question` for the control that sees the passages alone.
    """
    positive, negative = _of_both(row, variant)
    bare_positive, bare_negative = _of_both(row, "bare")
    return prefer(positive["sum"] - bare_positive["sum"], negative["sum"] - bare_negative["sum"])


def answer_only(row: Likelihoods) -> float:
    """Whether the positive is likelier per byte than the negative without any prompt.

    If the mean is far from one half, style gives the right answer away.
    """
    positive, negative = _of_both(row, "bare")
    return prefer(-bits_per_byte(positive), -bits_per_byte(negative))


def naive_preference(row: Likelihoods) -> float:
    """Whether the positive is likelier per byte than the negative after the full prompt.

    It depends on style, so it is no evidence of knowledge.
    """
    positive, negative = _of_both(row, "question")
    return prefer(-bits_per_byte(positive), -bits_per_byte(negative))


def best_score(
    metric: Callable[[str, str], float | None], answer: str, references: Sequence[str]
) -> float | None:
    """The best score over the references, as in SQuAD's evaluation (Rajpurkar et al., 2016); None
    if the metric is defined for none.
    """
    scores = [metric(answer, reference) for reference in references]
    return max((score for score in scores if score is not None), default=None)


TEXT_METRICS = {metric.__name__: metric for metric in (rouge_l, chrf, token_f1, number_f1)}


def score_answer(answer: str, references: Sequence[str], context: str) -> dict[str, float]:
    """Every metric of an answer's text against the right answers; training uses the first of these.

    Undefined metrics are left out, such as the support of numbers in an answer without numbers.
    """
    scores: dict[str, float | None] = {
        name: best_score(metric, answer, references) for name, metric in TEXT_METRICS.items()
    }
    scores["length_ratio"] = length_ratio(answer, references[0])
    scores["repetition"] = repetition(answer)
    scores["empty"] = float(not answer.strip())
    if context:
        scores["ngram_support"] = ngram_support(answer, context)
        scores["number_support"] = number_support(answer, context)
        scores["copied_span"] = copied_span(answer, context)
    return {name: float(value) for name, value in scores.items() if value is not None}


def score_likelihood(likelihood: Likelihoods, paired: bool) -> dict[str, float]:
    """Every metric of one row's likelihoods. Those that need a negative are left out without one.

    `contrastive` and its control are left out for rows of a swapped pair: there only the question
    decides, and `pair_matching` judges that.
    """
    scores = {"bits_per_byte": bits_per_byte(likelihood["positive"]["question"])}
    if likelihood["negative"] is not None:
        scores["answer_only"] = answer_only(likelihood)
        scores["naive_preference"] = naive_preference(likelihood)
        if not paired:
            scores["contrastive"] = contrastive(likelihood)
            scores["contrastive_no_question"] = contrastive(likelihood, "no_question")
    return scores


def score_row(row: FormattedRow, prediction: Prediction, context: str) -> dict[str, float]:
    """Every metric of one row under one system, except those that need another row."""
    likelihood = prediction["likelihood"]
    return {
        **score_answer(prediction["prediction"], right_answers(row), context),
        "truncated": float(prediction["finish_reason"] == "length"),
        **({} if likelihood is None else score_likelihood(likelihood, row["pair"] is not None)),
    }
