"""Metrics of every row under every system, and their comparisons, means and gaps."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any, cast

from library.adapters import check_started_from, check_trained_rows
from library.errors import InputError
from library.files import hash_adapter, hash_base, read_json, read_jsonl
from library.params import EvaluateParams
from library.paths import (
    ADAPTER_DIR,
    ADAPTER_DIRS,
    DPO_PATH,
    MANIFEST_PATH,
    OTHERS_PATH,
    SEEDS_PATH,
    answerer_path,
    answers_name,
    other_name,
    predictions_path,
    seed_name,
)
from library.records import (
    DPO,
    FEW_SHOT,
    SFT,
    SYSTEMS,
    THINKING,
    ZEROSHOT,
    Answerer,
    FormattedRow,
    Likelihood,
    Prediction,
    ScoredRow,
    hash_answers,
    right_answers,
    seed_system,
)
from library.verdict.metrics import (
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    METRICS,
    UNBOUNDED,
    bits_per_byte,
    longest_shared_runs,
    pair_matching,
    prefer,
    score_answer,
    score_row,
)
from library.verdict.statistics import (
    Comparison,
    adjust_holm,
    compare,
    compare_seeds,
    decide,
)
from library.verdict.written import check_file, check_written

ROWS_PER_PROCESS = 1000  # below twice that, more processes cost more than they save
ROWS_SHOWN = 5
STYLE_MARGIN = 0.1  # if bare answers are further off one half, they give the right one away

Predictions = Mapping[str, Prediction]  # by row id


def read_predictions(
    path: Path, rows: Sequence[FormattedRow], hash_name: str | None = "prompt_hash"
) -> dict[str, Any]:
    """Read a system's records, by row id.

    Raises InputError if they are of other rows, or if their prompts are not those that the rows
    have under `hash_name` (not checked if None).
    """
    records = {record["id"]: record for record in read_jsonl(path)}
    if records.keys() != {row["id"] for row in rows}:
        raise InputError(f"{path}: holds other rows than data/formatted; run `dvc repro`")
    for row in rows:
        record = records[row["id"]]
        answers = hash_answers(row["positive"], row["negative"])
        for asked, fault in (
            (
                hash_name is None or record["prompt_hash"] == dict(row)[hash_name],
                "was asked with another prompt",
            ),
            (record.get("answers_hash", answers) == answers, "had other answers to score"),
            (record.get("group", row["group"]) == row["group"], "was in another group"),
            (record.get("pair", row["pair"]) == row["pair"], "was in another pair"),
        ):
            if not asked:
                raise InputError(
                    f"{path}: row {row['id']} {fault} than format wrote; run `dvc repro`"
                )
    return records


def check_answerers() -> None:
    """Raise InputError unless zero-shot and fine-tuned answers belong to the present files.

    Both must come from the present base model, the fine-tuned ones with the present adapter, which
    must have been trained on that base and on the present rows. The files of answers must be as
    they were written.
    """
    base = hash_base(read_json(MANIFEST_PATH))
    adapter, adapter_base = hash_adapter(ADAPTER_DIR), read_json(ADAPTER_DIR / "base.json")
    check_trained_rows(SFT)
    if hash_base(adapter_base) != base:
        raise InputError(
            f"{ADAPTER_DIR}: trained on the base {hash_base(adapter_base)[:12]}, {MANIFEST_PATH} "
            f"says {base[:12]}; run `dvc repro`"
        )
    for system, expected in ((ZEROSHOT, None), (SFT, adapter)):
        path = answerer_path(system)
        record = read_json(path)
        if not isinstance(record, dict) or not Answerer.__required_keys__ <= record.keys():
            raise InputError(f"{path}: does not say what gave the answers; run `dvc repro`")
        answerer = cast(Answerer, record)
        if answerer["base"] != base:
            raise InputError(
                f"{path}: its answers are of the base {answerer['base'][:12]}, {MANIFEST_PATH} "
                f"says {base[:12]}; run `dvc repro`"
            )
        if answerer["adapter"] != expected:
            of = "with an adapter" if expected is None else f"not with that of {ADAPTER_DIR}"
            raise InputError(f"{path}: its answers were given {of}; run `dvc repro`")
    check_written()


def read_examples() -> dict[str, float]:
    """Read how many examples few-shot prompts hold; empty if few-shot is off."""
    examples: dict[str, float] = read_json(OTHERS_PATH).get("examples", {})
    return examples


def read_others(rows: Sequence[FormattedRow]) -> dict[str, dict[str, Prediction]]:
    """Read the answers of the other systems that were asked, by name.

    Raises InputError if they are of other rows, of another base or adapter, or not as they were
    written.
    """
    found = {}
    for system in (*read_json(OTHERS_PATH)["systems"], *read_json(DPO_PATH)["systems"]):
        own, name = system in (FEW_SHOT, THINKING, DPO), other_name(system)
        found[system] = _read_answers_of(system, name, rows, None, same_base=own)
        if system == DPO:
            check_tuned(DPO)
    return found


def read_seeds(rows: Sequence[FormattedRow]) -> dict[str, dict[str, Prediction]]:
    """Read the answers of the models that were fine-tuned with other seeds, by name.

    Raises InputError if they are of other rows, of another base, or not as they were written.
    """
    found = {}
    for seed in read_json(SEEDS_PATH)["seeds"]:
        system = seed_system(seed)
        found[system] = _read_answers_of(system, seed_name(system), rows, "prompt_hash")
    return found


def _read_answers_of(
    system: str,
    name: str,
    rows: Sequence[FormattedRow],
    hash_name: str | None,
    same_base: bool = True,
) -> dict[str, Prediction]:
    path, record = predictions_path(name), read_json(answerer_path(name))
    check_file(name, record, system)
    if same_base and record["base"] != hash_base(read_json(MANIFEST_PATH)):
        raise InputError(f"{path}: its answers are of another base; run `dvc repro`")
    return read_predictions(path, rows, hash_name)


def check_tuned(system: str) -> None:
    """Raise InputError unless the adapter of sft or dpo gave the system's answers, was trained on
    the present rows and, if it is dpo's, from the present adapter of sft.
    """
    name = answers_name(system)
    record = read_json(answerer_path(name))
    check_file(name, record, system)
    if record["adapter"] != hash_adapter(ADAPTER_DIRS[system]):
        raise InputError(
            f"{answerer_path(name)}: its answers were given not with that of "
            f"{ADAPTER_DIRS[system]}; run `dvc repro`"
        )
    check_trained_rows(system)
    if system == DPO:
        check_started_from()


def score_one(row: FormattedRow, context: str, predictions: Mapping[str, Prediction]) -> ScoredRow:
    """One row with its metrics under each system that answered it."""
    systems = {
        system: score_row(row, prediction, context) for system, prediction in predictions.items()
    }
    return ScoredRow(row["id"], row["group"], row["pair"], systems)


def score_rows(
    rows: Sequence[FormattedRow], contexts: Mapping[str, str], systems: Mapping[str, Predictions]
) -> list[ScoredRow]:
    """Score every row with `score_one`, in several processes if there are many rows.

    `pair_matching` is stored with a pair's first row.
    """
    work = []
    for row in rows:
        key = row["id"]
        answers = {system: predictions[key] for system, predictions in systems.items()}
        work.append((row, contexts[key], answers))
    if len(rows) < 2 * ROWS_PER_PROCESS:
        scored = [score_one(*arguments) for arguments in work]
    else:
        with ProcessPoolExecutor(min(os.cpu_count() or 1, len(rows) // ROWS_PER_PROCESS)) as pool:
            scored = list(pool.map(score_one, *zip(*work, strict=True), chunksize=50))
    known = {row["id"] for row in rows}
    for scores in scored:
        if scores.pair in known and scores.pair is not None and scores.id < scores.pair:
            for system, predictions in systems.items():
                one, other = (predictions[key]["likelihood"] for key in (scores.id, scores.pair))
                if one is not None and other is not None:
                    scores.systems[system]["pair_matching"] = pair_matching(one, other)
    return scored


def score_baselines(
    row: FormattedRow, context: str, answer_without_context: str
) -> dict[str, dict[str, float]]:
    """Scores of the BASELINES on a row, by name; those that the row does not have are left out."""
    texts = {
        "no_context": answer_without_context,
        "best_passage": row["best_passage"],
        "gold": row["positive"],
    }
    scores = {
        name: score_answer(text, right_answers(row), context)
        for name, text in texts.items()
        if row["best_passage"] or name != "best_passage"
    }
    if row["negative"] is not None:
        longer = prefer(len(row["positive"]), len(row["negative"]))
        scores["longer"] = {"answer_only": longer}
        if row["pair"] is None:
            scores["longer"]["contrastive"] = longer
    return scores


def rows_with_metric(
    scored: Iterable[ScoredRow], metric: str, systems: Sequence[str] = SYSTEMS
) -> list[ScoredRow]:
    """The scored rows that have a metric under all of the systems."""
    return [
        scores for scores in scored if all(metric in scores.systems[system] for system in systems)
    ]


def compare_systems(
    scored: Sequence[ScoredRow],
    metrics: Iterable[str],
    params: EvaluateParams,
    baseline: str = ZEROSHOT,
    candidate: str = SFT,
    again: Sequence[str] = (),
    baseline_again: Sequence[str] = (),
) -> dict[str, Comparison]:
    """Compare two systems by each of the metrics that some row has under both.

    `again` are the candidate trained with other seeds, `baseline_again` the baseline; with them,
    the mean over all seeds counts.
    """
    baselines, candidates = (baseline, *baseline_again), (candidate, *again)
    comparisons: dict[str, Comparison] = {}
    for metric in metrics:
        rows = rows_with_metric(scored, metric, (*baselines, *candidates))
        if not rows:
            continue
        before, after = (
            [[row.systems[system][metric] for row in rows] for system in systems]
            for systems in (baselines, candidates)
        )
        groups = [row.group for row in rows]
        how = params.draws, params.confidence, params.seed
        comparison = (
            compare_seeds(before, after, groups, *how)
            if again or baseline_again
            else compare(before[0], after[0], groups, *how)
        )
        comparisons[metric] = clip(comparison, metric)
    return comparisons


def compare_runs(
    before: Mapping[str, ScoredRow],
    after: Mapping[str, ScoredRow],
    metrics: Iterable[str],
    params: EvaluateParams,
) -> dict[str, Comparison]:
    """Compare the fine-tuned models of two runs on the rows, by id, that both have, by each of the
    metrics that some row has under both.

    If each run was trained with several seeds, a SeedsComparison covers test rows and the seeds of
    both. Otherwise a Comparison covers test rows only, and takes the mean over a run's seeds.
    """
    common = sorted(before.keys() & after.keys())
    if not common:
        return {}
    trained_again = all(len(run[common[0]].seeds) > 1 for run in (before, after))

    def name_systems(side: str, row: ScoredRow) -> dict[str, dict[str, float]]:
        if not trained_again:
            return {side: row.tuned}
        return {f"{side} {name}": row.systems[name] for name in row.seeds}

    rows = []
    for key in common:
        firsts, seconds = name_systems("before", before[key]), name_systems("after", after[key])
        rows.append(ScoredRow(key, after[key].group, None, firsts | seconds))
    (first, *first_again), (second, *second_again) = firsts, seconds
    return compare_systems(rows, metrics, params, first, second, second_again, first_again)


def clip(comparison: Comparison, metric: str) -> Comparison:
    """The comparison with its interval clipped to −1 and 1, if the metric is between 0 and 1.

    With few groups, Student's interval goes beyond that.
    """
    if metric in UNBOUNDED or not math.isfinite(comparison.low):
        return comparison
    return replace(comparison, low=max(-1.0, comparison.low), high=min(1.0, comparison.high))


def comparison_record(
    comparison: Comparison, baseline: str = ZEROSHOT, candidate: str = SFT
) -> dict[str, float]:
    """A comparison as a mapping of finite numbers, with the two means under the systems' names.

    An infinite detectable difference or interval is left out.
    """
    names = {"baseline": baseline, "candidate": candidate}
    values = asdict(comparison).items()
    return {names.get(name, name): value for name, value in values if math.isfinite(value)}


def judge(
    scored: Sequence[ScoredRow],
    params: EvaluateParams,
    others: Sequence[str] = (),
    examples: Mapping[str, float] | None = None,
    again: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare fine-tuned and each of the others with zero-shot by every metric that some row has
    under both, and fine-tuned with each of the others; add the verdicts.

    `examples` says how many examples few-shot's prompts hold, `again` are the systems that were
    fine-tuned with other seeds. All claims but the verdict on fine-tuned against zero-shot are
    corrected together. Raises InputError if no row has the primary metric.
    """
    comparisons = compare_systems(scored, METRICS, params, again=again)
    if params.primary not in comparisons:
        raise InputError(
            f"params.yaml: evaluate.primary: no test row has what {params.primary} needs (a "
            "negative, a swapped pair, an embedding model)"
        )
    primary = comparisons[params.primary]
    told = (params.primary, "pair_matching", "contrastive")
    compared = {(ZEROSHOT, SFT): comparisons}
    for other in others:
        compared[ZEROSHOT, other] = compare_systems(scored, METRICS, params, ZEROSHOT, other)
        # dpo starts from the first seed's adapter: compare it with that seed alone
        seeds = () if other == DPO else again
        compared[other, SFT] = compare_systems(scored, told, params, other, SFT, seeds)
    claims = HIGHER_IS_BETTER | LOWER_IS_BETTER
    adjusted = adjust_holm(
        {
            (*pair, name): comparison.p
            for pair, made in compared.items()
            for name, comparison in made.items()
            if name in claims and (*pair, name) != (ZEROSHOT, SFT, params.primary)
        }
    )
    records = {
        pair: {
            name: comparison_record(comparison, *pair)
            | ({"p_holm": adjusted[*pair, name]} if (*pair, name) in adjusted else {})
            for name, comparison in made.items()
        }
        for pair, made in compared.items()
    }

    def verdict(baseline: str, candidate: str) -> int:
        comparison = compared[baseline, candidate][params.primary]
        corrected = adjusted.get((baseline, candidate, params.primary), comparison.p)
        return decide(
            replace(comparison, p=corrected), params.primary in LOWER_IS_BETTER, params.confidence
        )

    beside = {
        other: {
            "verdict": verdict(ZEROSHOT, other),
            **({"examples": dict(examples)} if examples and other == FEW_SHOT else {}),
            **records[ZEROSHOT, other],
            "tuned": {"verdict": verdict(other, SFT), **records[other, SFT]},
        }
        for other in others
    }
    return {
        "n": len(scored),
        "groups": len({scores.group for scores in scored}),
        "verdict": verdict(ZEROSHOT, SFT),
        "training_seeds": 1 + len(again),
        **({"by_seed": _means_by_seed(scored, params, again)} if again else {}),
        "primary": comparison_record(primary),
        **records[ZEROSHOT, SFT],
        **({"others": beside} if beside else {}),
    }


def _means_by_seed(
    scored: Sequence[ScoredRow], params: EvaluateParams, again: Sequence[str]
) -> dict[str, float]:
    """The primary metric of the fine-tuned model and of those trained with other seeds."""
    rows = rows_with_metric(scored, params.primary, (ZEROSHOT, SFT, *again))
    return {
        system: mean(row.systems[system][params.primary] for row in rows)
        for system in (SFT, *again)
    }


def judge_general_text(params: EvaluateParams) -> dict[str, float]:
    """Compare zero-shot and fine-tuned by bits per byte on a text that has nothing to do with the
    rows, paragraph by paragraph.
    """
    read = {system: list(read_jsonl(predictions_path(f"{system}_general"))) for system in SYSTEMS}
    if [part["bytes"] for part in read[ZEROSHOT]] != [part["bytes"] for part in read[SFT]]:
        raise InputError("the two systems read other general texts; run `dvc repro`")
    before, after = (
        [bits_per_byte(cast(Likelihood, part)) for part in read[system]] for system in SYSTEMS
    )
    paragraphs = [str(number) for number in range(len(before))]
    return comparison_record(
        compare(before, after, paragraphs, params.draws, params.confidence, params.seed)
    )


def average(scored: Sequence[ScoredRow], system: str) -> dict[str, float]:
    """The mean of each metric that some row has under one system."""
    means = {}
    for metric in METRICS:
        rows = [row.systems.get(system, {}) for row in scored]
        values = [metrics[metric] for metrics in rows if metric in metrics]
        if values:
            means[metric] = mean(values)
    return means


def measure_overfitting(
    scored_test: Sequence[ScoredRow],
    scored_train: Sequence[ScoredRow],
    answers: Mapping[str, Sequence[str]],
    taught: Iterable[str],
) -> dict[str, Any]:
    """Measure how much better train rows are answered than test rows, and the longest run of words
    copied from training answers.

    `answers` has the answers to the test rows by system and their `references`; `taught` are the
    answers that were trained on.
    """
    train = {system: average(scored_train, system) for system in SYSTEMS}
    gap = {}
    for metric in METRICS:
        rows = rows_with_metric(scored_test, metric)
        if rows and all(metric in train[system] for system in SYSTEMS):
            gap[metric] = {
                system: train[system][metric] - mean(row.systems[system][metric] for row in rows)
                for system in SYSTEMS
            }
    runs = iter(longest_shared_runs([text for given in answers.values() for text in given], taught))
    longest_run = {}
    for system, given in answers.items():
        part = [next(runs) for _ in given]
        if part:
            longest_run[system] = {"mean": mean(part), "max": max(part)}
    return {
        "train_rows": len(scored_train),
        "train": train,
        "gap": gap,
        "longest_run": longest_run,
    }


def round_numbers(value: Any) -> Any:
    """A nested value with its floats rounded to six decimals: their last digits are noise."""
    if isinstance(value, Mapping):
        return {key: round_numbers(inner) for key, inner in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def pick_examples(
    scored: Sequence[ScoredRow], primary: str, systems: tuple[str, str] = SYSTEMS
) -> tuple[list[ScoredRow], list[ScoredRow]]:
    """Rows to show: those that gained most by the primary metric from the first of two systems to
    the second, and those that gained least or lost.
    """
    sign = -1 if primary in LOWER_IS_BETTER else 1
    before, after = systems

    def gain(row: ScoredRow) -> float:
        return sign * (row.systems[after][primary] - row.systems[before][primary])

    ordered = sorted(
        rows_with_metric(scored, primary, systems), key=lambda row: (gain(row), row.id)
    )
    gained = [row for row in ordered[::-1][:ROWS_SHOWN] if gain(row) > 0]
    shown = {row.id for row in gained}
    return gained, [row for row in ordered[:ROWS_SHOWN] if row.id not in shown]


def style_tells(metrics: Mapping[str, Any], tuned: str = SFT) -> bool:
    """Whether bare answers, without context and question, give the right one away to zero-shot or
    the tuned system.
    """
    return "answer_only" in metrics and any(
        abs(metrics["answer_only"][system] - 0.5) > STYLE_MARGIN for system in (ZEROSHOT, tuned)
    )
