"""What is said of an embedding model: of metrics/embedding.json, and of what a branch did to it."""

from collections.abc import Mapping
from typing import Any

from library.pages.comment import change_cells
from library.pages.rendering import plural
from library.pages.statements import Statement, format_interval, format_p
from library.verdict.retrieval import BM25, PRIMARY_METRIC

TASK_TITLES = {task: f"question → {task}" for task in ("passage", "context", "answer")}
CLAIMS = {
    1: "The tuned embedding model ranks the right texts higher",
    -1: "The tuned embedding model ranks the right texts lower",
    0: "There is no evidence that tuning changed how high the right texts are ranked",
}
AGAINST_BM25 = {
    1: "it beats BM25",
    -1: "it is beaten by BM25",
    0: "it and BM25 can't be told apart",
}


def retrieval_statement(metrics: Mapping[str, Any], primary: str) -> Statement:
    """Does tuning the embedding model help? The verdict on the primary task."""
    result, beside = metrics[primary][PRIMARY_METRIC], metrics["against_bm25"][primary]
    return Statement(
        CLAIMS[metrics["verdict"]],
        f": {TASK_TITLES[primary]}, nDCG@10 went from {result['zeroshot']:.3f} to "
        f"{result['sft']:.3f} ({result['delta']:+.3f}, interval {format_interval(result)}, "
        f"{format_p(result['p'])}) on {plural(result['n'], 'test question')} in "
        f"{plural(result['groups'], 'group')}. Tuned, {AGAINST_BM25[beside['verdict']]} "
        f"({result[BM25]:.3f}).",
    )


def render_retrieval(head: Mapping[str, Any], base: Mapping[str, Any], primary: str) -> str:
    """Every task on the base and here as a table, the primary one first."""
    lines = [
        "| nDCG@10 | BM25 | zero-shot | fine-tuned | gain | interval of the gain |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    claims = {task: (task, PRIMARY_METRIC, name) for task, name in TASK_TITLES.items()}
    claims["nearer"] = ("nearer", "accuracy", "right answer nearer than the wrong one (its share)")
    for task in sorted(claims, key=lambda task: task != primary):
        key, metric, name = claims[task]
        before, after = (side.get(key, {}).get(metric, {}) for side in (base, head))
        if before or after:
            cells = change_cells(before, after, (BM25, "zeroshot", "sft"))
            lines.append(f"| {name}{' (primary)' if task == primary else ''} | {cells} |")
    return "\n".join(lines)
