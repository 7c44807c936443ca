"""Compare the tuned embedding model with the untuned one and BM25. No model is loaded.

Reads data/clean/rows.jsonl and data/rankings/. Writes metrics/embedding.json: for each task and
metric the three means, the change by tuning, and its interval and p-value.
"""

import logging
from collections.abc import Mapping

from library.corpus.passages import Bm25
from library.embed.ranking import TASKS, Ranked, Texts, prefer, rank_row
from library.embed.rows import ask, read_split_rows
from library.entry import run_main
from library.files import read_json, read_jsonl, write_json, write_jsonl
from library.params import load_params
from library.paths import EMBEDDING_PATH, RANKED_TEXTS_PATH, rankings_path
from library.records import SFT, ZEROSHOT, CleanRow
from library.verdict.retrieval import BM25, judge_rankings
from library.verdict.scoring import round_numbers

log = logging.getLogger(__name__)


def rank_by_words(rows: list[CleanRow], groups: dict[str, str], texts: Texts) -> list[Ranked]:
    """The same ranks by BM25: what needs no model."""
    passages, answers = Bm25(texts.passages), Bm25(texts.answers)
    place = {text: at for at, text in enumerate(texts.answers)}
    wrong = list(dict.fromkeys(row["negative"] for row in rows if row["negative"] is not None))
    pooled = Bm25([*texts.answers, *wrong])  # so that a word weighs the same in both
    wrong_place = {text: len(texts.answers) + at for at, text in enumerate(wrong)}
    ranked = []
    for row in rows:
        nearer, question = None, ask(row)
        if row["negative"] is not None:
            scores = pooled.score(question)
            nearer = prefer(scores[place[row["positive"]]], scores[wrong_place[row["negative"]]])
        ranked.append(
            rank_row(
                *(row, groups[row["id"]], texts),
                *(passages.score(question), answers.score(question), nearer),
            )
        )
    return ranked


def main() -> None:
    """Rank the test texts with BM25, and compare the three systems."""
    params = load_params()
    rows = read_split_rows(params.split)
    test = rows.splits["test"]
    texts = read_json(RANKED_TEXTS_PATH)
    write_jsonl(rankings_path(BM25), rank_by_words(test, rows.groups, Texts.from_record(texts)))
    ranked = {system: list(read_jsonl(rankings_path(system))) for system in (BM25, ZEROSHOT, SFT)}
    metrics = judge_rankings(ranked, params.embed.primary, params.evaluate)
    write_json(EMBEDDING_PATH, round_numbers({**metrics, "longer": texts["longer"]}))
    log.info(
        "%s: %d test questions in %d groups; nDCG@10:",
        *(EMBEDDING_PATH, metrics["n"], metrics["groups"]),
    )
    for task in TASKS:
        if task in metrics:
            log.info("question → %s: %s", task, describe(metrics[task]["ndcg_at_10"]))
    if "nearer" in metrics:
        told = describe(metrics["nearer"]["accuracy"])
        log.info("right answer nearer than the wrong one: %s", told)


def describe(result: Mapping[str, float]) -> str:
    """One line: a metric under the three systems, and its change with interval and p-value."""
    between = f", {result['low']:+.3f} to {result['high']:+.3f}" if "low" in result else ""
    p = f"Holm p = {result['p_holm']:.4f}" if "p_holm" in result else f"p = {result['p']:.4f}"
    return (
        f"BM25 {result[BM25]:.3f}, zero-shot {result[ZEROSHOT]:.3f}, fine-tuned "
        f"{result[SFT]:.3f} ({result['delta']:+.3f}{between}, {p})"
    )


if __name__ == "__main__":
    run_main(main)
