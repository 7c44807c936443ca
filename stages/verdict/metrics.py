"""Answer metrics: pure functions of texts and of log-likelihoods. All logarithms of likelihoods are natural (nats)."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rapidfuzz.distance import LCSseq

# Chinese characters and Japanese kana count one by one: no blank tells words apart.
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_IDEOGRAPH}]|[^\W_{_IDEOGRAPH}]+")

Likelihood = Mapping[str, Mapping[str, float]]


def tokenize(text: str) -> list[str]:
    """Lower-case runs of letters and digits of any script; of ASCII text these are rouge-score's, which published figures use."""
    return _TOKEN.findall(text.lower())


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F1 over tokens, without stemming, in [0, 1]. Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004."""
    predicted, expected = tokenize(prediction), tokenize(reference)
    if not predicted or not expected:
        return 0.0
    return 2 * LCSseq.similarity(predicted, expected) / (len(predicted) + len(expected))


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the bags of tokens, in [0, 1]. Rajpurkar et al., SQuAD, 2016, with the tokens above."""
    predicted, expected = Counter(tokenize(prediction)), Counter(tokenize(reference))
    shared = (predicted & expected).total()
    if not shared:
        return 0.0
    return 2 * shared / (predicted.total() + expected.total())


def length_ratio(prediction: str, reference: str) -> float:
    """Characters of the prediction for each of the reference."""
    return len(prediction) / len(reference)


def bits_per_byte(likelihood: Mapping[str, float]) -> float:
    """Bits that the model needs for each UTF-8 byte of the answer: lower is better, whatever the tokenizer."""
    return -likelihood["sum"] / math.log(2) / likelihood["bytes"]


def prefer(one: float, other: float) -> float:
    """1 where the first is larger, 0 where the second is, one half where they are equal."""
    return 1.0 if one > other else 0.0 if one < other else 0.5


def pair_matching(first: Mapping[str, Likelihood], second: Mapping[str, Likelihood]) -> float:
    """Whether two rows that swap their answers A and B are matched right by both questions together.

    log p(A|q1) + log p(B|q2) against log p(B|q1) + log p(A|q2): each text stands on both sides, so its own likelihood cancels.
    Each argument maps `positive` and `negative` to the likelihoods of one row.
    """
    right = first["positive"]["question"]["sum"] + second["positive"]["question"]["sum"]
    wrong = first["negative"]["question"]["sum"] + second["negative"]["question"]["sum"]
    return prefer(right, wrong)


def contrastive(row: Mapping[str, Likelihood], way: str = "question") -> float:
    """Whether the prompt speaks for the positive more than for the negative.

    The gain of each answer is log p(answer|prompt) − log p(answer|neither context nor question). `way` is `question`, or
    `no_question` for the control that sees the passages alone.
    """
    positive, negative = row["positive"], row["negative"]
    return prefer(positive[way]["sum"] - positive["bare"]["sum"], negative[way]["sum"] - negative["bare"]["sum"])


def answer_only(row: Mapping[str, Likelihood]) -> float:
    """Whether the positive is likelier per byte than the negative with nothing else seen. Far from one half, style tells."""
    return prefer(-bits_per_byte(row["positive"]["bare"]), -bits_per_byte(row["negative"]["bare"]))


def score_row(row: Mapping[str, Any], prediction: Mapping[str, Any]) -> dict[str, float]:
    """Every metric of one test row that needs no other row. Those that need a negative are left out where there is none.

    `contrastive` and its control are for rows that are not of a swapped pair: there the question decides, and `pair_matching` asks.
    """
    likelihood, answer = prediction["likelihood"], prediction["prediction"]
    scores = {
        "rouge_l": rouge_l(answer, row["positive"]),
        "token_f1": token_f1(answer, row["positive"]),
        "bits_per_byte": bits_per_byte(likelihood["positive"]["question"]),
        "length_ratio": length_ratio(answer, row["positive"]),
        "truncated": float(prediction["finish_reason"] == "length"),
    }
    if likelihood["negative"] is not None:
        scores["answer_only"] = answer_only(likelihood)
        if row["pair"] is None:
            scores["contrastive"] = contrastive(likelihood)
            scores["contrastive_no_question"] = contrastive(likelihood, "no_question")
    return scores
