"""Score all answers and compare the systems. No model is loaded.

Reads data/formatted/{test,train_sample,train}.jsonl, data/clean/rows.jsonl (whole contexts),
data/predictions/, the votes in data/votes/ with reports/review_key.json, and the records that
identify base model and adapter. Writes metrics/evaluation.json and data/predictions/scores.jsonl.
"""

import logging

from library.corpus.fractions import take_fraction
from library.corpus.words import tokenize
from library.embed.similarity import embedding_cosine
from library.entry import run_main
from library.files import read_json, write_json, write_jsonl
from library.formatted import read_contexts, read_formatted
from library.params import load_params
from library.paths import (
    EVALUATION_PATH,
    REVIEW_KEY_PATH,
    SCORES_PATH,
    VOTES_DIR,
    predictions_path,
)
from library.records import BASELINES, SYSTEMS, right_answers
from library.verdict.judges import count_folder
from library.verdict.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER, TEXT_METRICS, score_cut
from library.verdict.scoring import (
    average,
    check_answerers,
    judge,
    judge_general_text,
    measure_overfitting,
    read_examples,
    read_others,
    read_predictions,
    read_seeds,
    round_numbers,
    rows_with_metric,
    score_baselines,
    score_rows,
)

log = logging.getLogger(__name__)


def main() -> None:
    """Score every row, compare the systems and count the votes."""
    every = load_params()
    params = every.evaluate
    check_answerers()
    test, sample = read_formatted("test"), read_formatted("train_sample")
    train = take_fraction(read_formatted("train"), every.sft.train_fraction)
    taught = {row["id"]: row["positive"] for row in train}
    wanted = {row["id"] for row in [*test, *sample]}
    contexts = read_contexts(wanted)
    others, again = read_others(test), read_seeds(test)
    predictions = {
        system: read_predictions(predictions_path(system), test) for system in SYSTEMS
    } | {**others, **again}
    without_context = read_predictions(
        predictions_path("no_context"), test, "prompt_hash_no_context"
    )
    scored = score_rows(test, contexts, predictions)
    for row, scores in zip(test, scored, strict=True):
        answer = without_context[row["id"]]["prediction"]
        scores.systems.update(score_baselines(row, contexts[row["id"]], answer))
    answers = {
        system: [given[row["id"]]["prediction"] for row in test]
        for system, given in predictions.items()
    }
    references = [right_answers(row) for row in test]
    if params.primary in TEXT_METRICS:
        for system, given in answers.items():
            for scores, answer, right in zip(scored, given, references, strict=True):
                scores.systems[system] |= score_cut(params.primary, answer, right)
    if params.embedding_model is not None:
        for system, given in answers.items():
            cosines = embedding_cosine(params.embedding_model, given, references)
            for scores, cosine in zip(scored, cosines, strict=True):
                scores.systems[system]["embedding_cosine"] = cosine

    metrics = judge(scored, params, list(others), read_examples(), list(again))
    metrics["several_right"] = sum(len(right) > 1 for right in references)
    metrics["wordless_references"] = sum(not any(map(tokenize, right)) for right in references)
    metrics["with_passages"] = sum(bool(row["passages"]) for row in test)
    metrics["general_text"] = judge_general_text(params)
    metrics["baselines"] = {name: average(scored, name) for name in BASELINES}
    asked = {
        system: read_predictions(predictions_path(f"{system}_train"), sample) for system in SYSTEMS
    }
    metrics["overfitting"] = measure_overfitting(
        scored,
        score_rows([row for row in sample if row["id"] in taught], contexts, asked),
        {
            **{system: answers[system] for system in SYSTEMS},
            "references": [right[0] for right in references],
        },
        taught.values(),
    )

    flagged = {row["id"] for row in test if row["contradicts"] is not None}
    metrics["contradictory"] = len(flagged)
    unflagged = [scores for scores in scored if scores.id not in flagged]
    if flagged and rows_with_metric(unflagged, params.primary):
        metrics["unflagged"] = judge(unflagged, params, again=list(again))

    better = dict.fromkeys(HIGHER_IS_BETTER, 1) | dict.fromkeys(LOWER_IS_BETTER, -1)
    key, by_id = read_json(REVIEW_KEY_PATH), {scores.id: scores for scores in scored}
    metrics |= count_folder(VOTES_DIR, key, by_id, better, predictions, params)
    write_jsonl(SCORES_PATH, (scores.to_record() for scores in scored))
    write_json(EVALUATION_PATH, round_numbers(metrics))
    told = (metrics["primary"][system] for system in SYSTEMS)
    log.info("%s: %s is %.3f zero-shot, %.3f fine-tuned", EVALUATION_PATH, params.primary, *told)


if __name__ == "__main__":
    run_main(main)
