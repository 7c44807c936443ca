"""Judge the tuned answers against the zero-shot ones and simple baselines, from files alone: no model is loaded.

Reads data/formatted/{test,train_sample,train}.jsonl, data/clean/rows.jsonl (whole contexts), data/predictions/, the votes in
data/votes/ with reports/review_key.json, and reports/sft_history.csv. Writes metrics/evaluation.json,
data/predictions/scores.jsonl and reports/report.{md,html}.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from stages.corpus.passages import passages_given
from stages.corpus.rows import read_jsonl, write_json, write_jsonl, write_text
from stages.params import EvaluateParams, load_model_file, load_params
from stages.run import InputError, run_stage
from stages.verdict.embedding import embedding_cosine
from stages.verdict.metrics import (
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    METRICS,
    UNBOUNDED,
    chrf_signature,
    longest_shared_runs,
    pair_matching,
    prefer,
    score_answer,
    score_row,
)
from stages.verdict.report import PACKAGES, having_both, memory_sentence, render_html, render_markdown, title
from stages.verdict.statistics import Comparison, adjust_holm, compare, decide
from stages.verdict.votes import count_votes, read_votes

log = logging.getLogger(__name__)

SYSTEMS, SPLITS = ("zeroshot", "sft"), ("train", "validation", "test")
ROWS_PER_PROCESS = 1000  # below twice that, more processes are not worth their start

Row = Mapping[str, Any]


def read_predictions(path: Path, rows: Sequence[Row], hash_name: str = "prompt_hash") -> dict[str, dict[str, Any]]:
    """A system's records by row id. Raises InputError where they are of other rows, or were asked with other prompts."""
    records = {record["id"]: record for record in read_jsonl(path)}
    if records.keys() != {row["id"] for row in rows}:
        raise InputError(f"{path}: holds other rows than data/formatted; run `dvc repro`")
    for row in rows:
        if records[row["id"]]["prompt_hash"] != row[hash_name]:
            raise InputError(f"{path}: row {row['id']} was asked with another prompt than format wrote; run `dvc repro`")
    return records


def score_one(row: Row, context: str, records: Mapping[str, Row]) -> dict[str, Any]:
    """One row with its metrics under both systems, and where they were asked or can be had, the baselines."""
    scores: dict[str, Any] = {key: row[key] for key in ("id", "group", "pair")}
    for system in SYSTEMS:
        scores[system] = score_row(row, records[system], context)
    if "no_context" in records:
        scores["no_context"] = score_answer(records["no_context"]["prediction"], row["positive"], context)
        scores["best_passage"] = score_answer(row["best_passage"], row["positive"], context)
        scores["gold"] = score_answer(row["positive"], row["positive"], context)
    if row["negative"] is not None:
        scores["longer"] = {"answer_only": prefer(len(row["positive"]), len(row["negative"]))}
        if row["pair"] is None:
            scores["longer"]["contrastive"] = scores["longer"]["answer_only"]
    return scores


def score_rows(rows: Sequence[Row], contexts: Mapping[str, str], systems: Mapping[str, Mapping[str, Row]]) -> list[dict[str, Any]]:
    """`score_one` for every row, by several processes where there are many. `pair_matching` stands with a pair's first row."""
    work = [(row, contexts[row["id"]], {system: records[row["id"]] for system, records in systems.items()}) for row in rows]
    if len(rows) < 2 * ROWS_PER_PROCESS:
        scored = [score_one(*arguments) for arguments in work]
    else:
        with ProcessPoolExecutor(min(os.cpu_count() or 1, len(rows) // ROWS_PER_PROCESS)) as pool:
            scored = list(pool.map(score_one, *zip(*work, strict=True), chunksize=50))
    by_id = {row["id"] for row in rows}
    for row, scores in zip(rows, scored, strict=True):
        if row["pair"] in by_id and row["id"] < row["pair"]:
            for system in SYSTEMS:
                pair = [systems[system][key]["likelihood"] for key in (row["id"], row["pair"])]
                scores[system]["pair_matching"] = pair_matching(*pair)
    return scored


def finite(comparison: Comparison) -> dict[str, float]:
    """A comparison as a mapping, without the detectable difference and the interval where there are none."""
    return {name: value for name, value in asdict(comparison).items() if math.isfinite(value)}


def compare_metrics(scored: Sequence[Row], names: Iterable[str], params: EvaluateParams) -> dict[str, Comparison]:
    """The comparison of both systems by each of the metrics that some row has under both."""
    return {
        name: clip(
            compare(
                [scores["zeroshot"][name] for scores in having],
                [scores["sft"][name] for scores in having],
                [scores["group"] for scores in having],
                params.draws,
                params.confidence,
                params.seed,
            ),
            name,
        )
        for name in names
        if (having := having_both(scored, name))
    }


def clip(comparison: Comparison, name: str) -> Comparison:
    """No share can change by more than one: where groups are few, Student's interval would say so."""
    if name in UNBOUNDED or not math.isfinite(comparison.low):
        return comparison
    return replace(comparison, low=max(-1.0, comparison.low), high=min(1.0, comparison.high))


def aggregate(scored: Sequence[Row], params: EvaluateParams) -> dict[str, Any]:
    """The comparison of both systems by every metric that some row has under both."""
    comparisons = compare_metrics(scored, METRICS, params)
    if params.primary not in comparisons:
        raise InputError(
            f"params.yaml: evaluate.primary: no test row has what {params.primary} needs "
            "(a negative, a swapped pair, an embedding model)"
        )
    primary = comparisons[params.primary]
    claims = (HIGHER_IS_BETTER | LOWER_IS_BETTER) - {params.primary}
    adjusted = adjust_holm({name: comparison.p for name, comparison in comparisons.items() if name in claims})
    return {
        "n": len(scored),
        "groups": len({scores["group"] for scores in scored}),
        "verdict": decide(primary, params.primary in LOWER_IS_BETTER, params.confidence),
        "primary": finite(primary),
        **{
            name: finite(comparison) | ({"p_holm": adjusted[name]} if name in adjusted else {})
            for name, comparison in comparisons.items()
        },
    }


def average(scored: Sequence[Row], system: str) -> dict[str, float]:
    """Mean of each metric that some row has under one system."""
    names = [name for name in METRICS if any(name in scores.get(system, {}) for scores in scored)]
    return {name: mean(scores[system][name] for scores in scored if name in scores.get(system, {})) for name in names}


def rounded(value: Any) -> Any:
    """Numbers with six decimals, however deep they stand: the last digits of a float are no news in a diff."""
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def main() -> None:
    """Score, compare and report."""
    params = load_params()
    formatted = {name: list(read_jsonl(Path(f"data/formatted/{name}.jsonl"))) for name in ("test", "train_sample")}
    wanted = {row["id"] for rows in formatted.values() for row in rows}
    contexts = {row["id"]: row["anchor"] for row in read_jsonl(Path("data/clean/rows.jsonl")) if row["id"] in wanted}
    folder = Path("data/predictions")
    test = formatted["test"]
    predictions = {system: read_predictions(folder / f"{system}.jsonl", test) for system in SYSTEMS}
    predictions["no_context"] = read_predictions(folder / "no_context.jsonl", test, "prompt_hash_no_context")
    scored = score_rows(test, contexts, predictions)
    answers = {system: [predictions[system][row["id"]]["prediction"] for row in test] for system in SYSTEMS}
    answers["references"] = [row["positive"] for row in test]
    if params.evaluate.embedding_model is not None:
        for system in SYSTEMS:
            cosines = embedding_cosine(params.evaluate.embedding_model, answers[system], answers["references"])
            for scores, cosine in zip(scored, cosines, strict=True):
                scores[system]["embedding_cosine"] = cosine
    metrics = aggregate(scored, params.evaluate)
    metrics["with_passages"] = sum(bool(row["passages"]) for row in test)
    metrics["baselines"] = {name: average(scored, name) for name in ("no_context", "best_passage", "longer", "gold")}

    trained = formatted["train_sample"]
    asked = {system: read_predictions(folder / f"{system}_train.jsonl", trained) for system in SYSTEMS}
    scored_train = score_rows(trained, contexts, asked)
    train = {system: average(scored_train, system) for system in SYSTEMS}
    taught = (row["positive"] for row in read_jsonl(Path("data/formatted/train.jsonl")))
    runs = longest_shared_runs([answer for given in answers.values() for answer in given], taught)
    metrics["overfitting"] = {
        "train_rows": len(trained),
        "train": train,
        "gap": {
            name: {system: train[system][name] - metrics[name][system] for system in SYSTEMS}
            for name in METRICS
            if name in metrics and all(name in train[system] for system in SYSTEMS)
        },
        "longest_run": {
            name: {"mean": mean(part), "max": max(part)}
            for start, name in enumerate(answers)
            if (part := runs[start * len(test) : (start + 1) * len(test)])
        },
    }

    flagged = {row["id"] for row in test if row["contradicts"] is not None}
    metrics["contradictory"] = len(flagged)
    unflagged = [scores for scores in scored if scores["id"] not in flagged]
    if flagged and having_both(unflagged, params.evaluate.primary):
        metrics["unflagged"] = aggregate(unflagged, params.evaluate)

    key = json.loads(Path("reports/review_key.json").read_text())
    files, refused = read_votes(Path("data/votes"), key)
    for line in refused:
        log.warning("%s", line)
    by_id = {scores["id"]: scores for scores in scored}
    evaluate = params.evaluate
    better = dict.fromkeys(HIGHER_IS_BETTER, 1) | dict.fromkeys(LOWER_IS_BETTER, -1)
    metrics["votes"] = count_votes(files, key, by_id, better, evaluate.draws, evaluate.confidence, evaluate.seed)
    metrics["votes"]["files_of_other_reviews"] = len(refused)
    metrics = rounded(metrics)

    manifest = json.loads(Path("artifacts/base/manifest.json").read_text())
    source, asking = manifest["source"], params.format
    quantization = load_model_file(params.model).quantization
    splits = json.loads(Path("metrics/format.json").read_text())
    device = json.loads((folder / "device.json").read_text())
    facts = {
        "primary metric": title(evaluate.primary),
        "model": f"{source['id']} at {source['revision']}" if "id" in source else source["path"],
        "weights": f"{quantization}, computed in {device['dtype']} on {device['device']}",
        "data": f"{params.data.path}: " + ", ".join(f"{splits[name]['rows']} {name}" for name in SPLITS) + " rows",
        "prompt": f"prompts/{asking.prompt}.jinja{'' if metrics['with_passages'] else ', which leaves the passages out'}, "
        f"{asking.max_length} tokens, {asking.max_new_tokens} of them for the answer",
        "confidence of the intervals": f"{params.evaluate.confidence:.0%}",
        "memory of training": memory_sentence(json.loads(Path("reports/sft_memory.json").read_text())),
    }
    rows = {row["id"]: row for row in test}
    confidence, primary = evaluate.confidence, evaluate.primary
    markdown = render_markdown(metrics, scored, rows, predictions, facts, primary, confidence)
    page = render_html(
        metrics,
        scored,
        rows,
        predictions,
        {key: passages_given(row, contexts[key], params.format.passage_characters) for key, row in rows.items()},
        facts,
        {"chrF++": chrf_signature(), **{name: version(name) for name in PACKAGES}},
        {name: splits[name] for name in SPLITS},
        pd.read_csv("reports/sft_history.csv"),
        Path("params.yaml").read_text(encoding="utf-8"),
        primary,
        confidence,
    )
    write_jsonl(folder / "scores.jsonl", scored)
    write_json(Path("metrics/evaluation.json"), metrics)
    write_text(Path("reports/report.md"), markdown)
    write_text(Path("reports/report.html"), page)
    log.info("reports/report.html and report.md are written")


if __name__ == "__main__":
    run_stage(main)
