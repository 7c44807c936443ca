"""Retrieval metrics from the ranks of right texts, and the comparison of systems by them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from library.errors import InputError
from library.params import EvaluateParams
from library.records import SFT, ZEROSHOT
from library.verdict.scoring import comparison_record
from library.verdict.statistics import Comparison, adjust_holm, compare, decide

BM25 = "bm25"
PRIMARY_METRIC = "ndcg_at_10"
CUT_OFF = 10
RECALLS = (1, 5, 10)


def score_found(found: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one question. `found` has the `ranks`, from 1, of the right texts among the
    first ten, and `right`, how many texts are right.

    Defined as in sentence-transformers' InformationRetrievalEvaluator and MTEB, with equal weight
    for each right text. Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques,
    2002, for nDCG.
    """
    ranks, right = found["ranks"], found["right"]
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(right, CUT_OFF) + 1))
    return {
        "ndcg_at_10": sum(1 / math.log2(rank + 1) for rank in ranks) / best,
        "mrr_at_10": 1 / ranks[0] if ranks else 0.0,
        **{f"recall_at_{k}": sum(rank <= k for rank in ranks) / right for k in RECALLS},
        "accuracy_at_1": float(1 in ranks),
    }


def judge_rankings(
    ranked: Mapping[str, Sequence[Mapping[str, Any]]], primary: str, params: EvaluateParams
) -> dict[str, Any]:
    """Compare the fine-tuned model with zero-shot by every task and metric, and with BM25 by each
    task's nDCG@10.

    `ranked` has the rows' rankings by system, in the same order. Claims are each task's nDCG@10 and
    how often the right answer is nearer; all but the primary one are corrected together. Raises
    InputError if the systems ranked different rows, or if no row has the primary task.
    """
    orders = {tuple(row["id"] for row in rows) for rows in ranked.values()}
    if len(orders) > 1:
        raise InputError("the systems ranked other test rows; run `make embed`")
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    groups: dict[tuple[str, str], list[str]] = {}
    for system, rows in ranked.items():
        for row in rows:
            found = {task: score_found(at) for task, at in row["tasks"].items()}
            if row["nearer"] is not None:
                found["nearer"] = {"accuracy": row["nearer"]}
            for task, scores in found.items():
                for metric, value in scores.items():
                    values.setdefault((task, metric), {}).setdefault(system, []).append(value)
                    if system == SFT:
                        groups.setdefault((task, metric), []).append(row["group"])
    if (primary, PRIMARY_METRIC) not in values:
        raise InputError(f"params.yaml: embed.primary: no test row has the task {primary!r}")

    def compared(key: tuple[str, str], baseline: str) -> Comparison:
        return compare(
            *(values[key][baseline], values[key][SFT], groups[key]),
            *(params.draws, params.confidence, params.seed),
        )

    tuned = {key: compared(key, ZEROSHOT) for key in values}
    beside = {key: compared(key, BM25) for key in values if key[1] in (PRIMARY_METRIC, "accuracy")}
    claims = {(ZEROSHOT, *key): tuned[key].p for key in beside}
    claims |= {(BM25, *key): comparison.p for key, comparison in beside.items()}
    del claims[ZEROSHOT, primary, PRIMARY_METRIC]
    adjusted = adjust_holm(claims)
    metrics: dict[str, Any] = {}
    for (task, metric), comparison in tuned.items():
        record = comparison_record(comparison)
        record[BM25] = mean(values[task, metric][BM25])
        if (ZEROSHOT, task, metric) in adjusted:
            record["p_holm"] = adjusted[ZEROSHOT, task, metric]
        metrics.setdefault(task, {})[metric] = record
    against = {
        task: {
            **comparison_record(comparison, BM25),
            "p_holm": adjusted[BM25, task, metric],
            "verdict": decide(
                replace(comparison, p=adjusted[BM25, task, metric]), False, params.confidence
            ),
        }
        for (task, metric), comparison in beside.items()
    }
    first = tuned[primary, PRIMARY_METRIC]
    return {
        "n": len(next(iter(ranked.values()))),
        "groups": len({row["group"] for row in ranked[SFT]}),
        "verdict": decide(first, False, params.confidence),
        **metrics,
        "against_bm25": against,
    }
