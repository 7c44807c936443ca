"""Judge the tuned answers against the zero-shot ones, from files alone.

Reads data/formatted/test.jsonl and data/predictions/{zeroshot,sft}.jsonl. Writes metrics/evaluation.json,
data/predictions/scores.jsonl and reports/report.md.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.corpus.rows import read_jsonl, write_json, write_jsonl, write_text
from stages.params import EvaluateParams, load_params
from stages.run import InputError, run_stage
from stages.verdict.metrics import pair_matching, score_row
from stages.verdict.report import render_report
from stages.verdict.statistics import adjust_holm, compare, decide

log = logging.getLogger(__name__)

SYSTEMS = ("zeroshot", "sft")
METRICS = (
    "rouge_l",
    "token_f1",
    "bits_per_byte",
    "pair_matching",
    "contrastive",
    "contrastive_no_question",
    "answer_only",
    "length_ratio",
    "truncated",
)
LOWER_IS_BETTER = {"bits_per_byte", "truncated"}


def score_systems(
    rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Each test row with its metrics under both systems; a swapped pair's `pair_matching` stands with its first row."""
    by_id = {row["id"]: row for row in rows}
    scored = []
    for row in rows:
        record: dict[str, Any] = {key: row[key] for key in ("id", "group", "pair")}
        for system in SYSTEMS:
            prediction = predictions[system][row["id"]]
            if prediction["prompt_hash"] != row["prompt_hash"]:
                raise InputError(f"row {row['id']}: {system} was asked with another prompt than format wrote; run `dvc repro`")
            record[system] = score_row(row, prediction)
            if row["pair"] is not None and row["id"] < row["pair"] and row["pair"] in by_id:
                other = predictions[system][row["pair"]]
                record[system]["pair_matching"] = pair_matching(prediction["likelihood"], other["likelihood"])
        scored.append(record)
    return scored


def aggregate(scored: Sequence[Mapping[str, Any]], params: EvaluateParams) -> dict[str, Any]:
    """The numbers of metrics/evaluation.json. Metrics that no row has are left out."""
    comparisons = {}
    for name in METRICS:
        having = [record for record in scored if name in record["zeroshot"]]
        if having:
            comparisons[name] = compare(
                [record["zeroshot"][name] for record in having],
                [record["sft"][name] for record in having],
                [record["group"] for record in having],
                params.draws,
                params.confidence,
                params.seed,
            )
    if params.primary not in comparisons:
        raise InputError(f"params.yaml: evaluate.primary: no test row has what {params.primary} needs (a negative, a swapped pair)")
    primary = comparisons[params.primary]
    others = {name: comparison.p for name, comparison in comparisons.items() if name != params.primary}
    adjusted = adjust_holm(others)
    metrics: dict[str, Any] = {
        "n": len(scored),
        "groups": len({record["group"] for record in scored}),
        "verdict": decide(primary, params.primary in LOWER_IS_BETTER, params.confidence),
        "primary": {key: round(value, 6) for key, value in asdict(primary).items() if key != "n"},
    }
    for name, comparison in comparisons.items():
        metrics[name] = {key: round(value, 6) for key, value in asdict(comparison).items()}
        if name in adjusted:
            metrics[name]["p_holm"] = round(adjusted[name], 6)
    return metrics


def main() -> None:
    """Score, compare and report."""
    params = load_params()
    rows = list(read_jsonl(Path("data/formatted/test.jsonl")))
    predictions = {}
    for system in SYSTEMS:
        path = Path(f"data/predictions/{system}.jsonl")
        predictions[system] = {record["id"]: record for record in read_jsonl(path)}
        if predictions[system].keys() != {row["id"] for row in rows}:
            raise InputError(f"{path}: holds other rows than data/formatted/test.jsonl; run `dvc repro`")
    scored = score_systems(rows, predictions)
    metrics = aggregate(scored, params.evaluate)
    flagged = {row["id"] for row in rows if row["contradicts"] is not None}
    metrics["contradictory"] = len(flagged)
    unflagged = [record for record in scored if record["id"] not in flagged]
    if flagged and any(params.evaluate.primary in record["sft"] for record in unflagged):
        metrics["unflagged"] = aggregate(unflagged, params.evaluate)
    manifest = json.loads(Path("artifacts/base/manifest.json").read_text())
    source = manifest["source"]
    asked = {
        "primary metric": params.evaluate.primary,
        "model": f"{source['id']} at {source['revision']}" if "id" in source else source["path"],
        "data": params.data.path,
        "prompt": f"prompts/{params.format.prompt}.jinja, {params.format.max_length} tokens",
        "confidence of the intervals": params.evaluate.confidence,
    }
    report = render_report(metrics, scored, rows, predictions, asked, params.evaluate.primary in LOWER_IS_BETTER)
    write_jsonl(Path("data/predictions/scores.jsonl"), scored)
    write_json(Path("metrics/evaluation.json"), metrics)
    write_text(Path("reports/report.md"), report)
    log.info("reports/report.md is written")


if __name__ == "__main__":
    run_stage(main)
