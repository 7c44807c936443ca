"""Statements about an embedding model: its tasks, its numbers, the verdict on its tuning."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from library.pages.rendering import plural
from library.pages.statements import (
    FEW_GROUPS,
    Statement,
    changes_sentence,
    format_interval,
    format_p,
)
from library.records import SFT, ZEROSHOT
from library.units import gib
from library.verdict.retrieval import BM25, PRIMARY_METRIC

SYSTEM_TITLES = {BM25: "BM25", ZEROSHOT: "zero-shot", SFT: "fine-tuned"}
METRIC_TITLES = {
    PRIMARY_METRIC: "nDCG@10",
    "mrr_at_10": "MRR@10",
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "recall_at_10": "recall@10",
    "accuracy_at_1": "accuracy@1",
    "accuracy": "share of rows",
}
EXPLANATIONS = {
    PRIMARY_METRIC: "right texts among the first ten, earlier ones count more; 1 is best",
    "mrr_at_10": "1 over the rank of the first right text, 0 beyond the tenth",
    "recall_at_1": "share of the right texts that come first",
    "recall_at_5": "share of the right texts among the first five",
    "recall_at_10": "share of the right texts among the first ten",
    "accuracy_at_1": "share of questions whose first text is right",
    "accuracy": "share of rows whose right answer is nearer than the wrong one",
}
METRIC_HEADS = (
    *("metric", *SYSTEM_TITLES.values(), "change", "interval", "detectable", "p", "p (Holm)", "n"),
)
TASK_HEADS = ("task", *SYSTEM_TITLES.values(), "change", "interval", "p", "p (Holm)")
BM25_HEADS = ("task", "BM25", "fine-tuned", "difference", "interval", "p (Holm)")


@dataclass(frozen=True)
class Task:
    """A task in words: long and short title, what it measures (`about`), the metric of its claim,
    what is searched for (`thing`), and the subject of its claim (`found`).
    """

    title: str
    short: str
    about: str
    metric: str
    thing: str
    found: str

    @property
    def name(self) -> str:
        """Title and metric, for a table row."""
        return f"{self.title}: {METRIC_TITLES[self.metric]}"


TASKS = {
    "passage": Task(
        "question → passage of its own context",
        "question → passage",
        "Each question is compared with the passages of all test contexts. Any passage of its own "
        "context is right: no row says which of them holds the answer, so a gain can also mean "
        "that contexts are told apart better.",
        *(PRIMARY_METRIC, "passage", "passages of the right context are"),
    ),
    "context": Task(
        "question → its context",
        "question → context",
        "The question is compared with whole contexts, each as near as its nearest passage.",
        *(PRIMARY_METRIC, "context", "the right context is"),
    ),
    "answer": Task(
        "question → its answer",
        "question → answer",
        "Each question is compared with the right answers of all test rows. Any of its own is "
        "right.",
        *(PRIMARY_METRIC, "answer", "the right answer is"),
    ),
    "nearer": Task(
        "right answer nearer than the wrong one",
        "right answer nearer",
        "Of a row's two answers, is the right one nearer to the question? If both are equally "
        "near, the row counts half; 0.5 is chance.",
        *("accuracy", "answer", "the right answer is"),
    ),
}


def tasks_with_numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Task]]:
    """The tasks that some test row has, in order."""
    return ((name, task) for name, task in TASKS.items() if name in metrics)


def claimed(metrics: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """The comparison of zero-shot and fine-tuned that a task's claim is about."""
    result: Mapping[str, Any] = metrics[task][TASKS[task].metric]
    return result


def result_statements(
    metrics: Mapping[str, Any], primary: str, confidence: float
) -> list[Statement]:
    """The statements about metrics/embedding.json, the verdict first."""
    others = (name for name, _ in tasks_with_numbers(metrics) if name != primary)
    return [
        tuning_statement(metrics, primary, confidence),
        bm25_statement(metrics, primary),
        *(task_statement(metrics, name, confidence) for name in others),
    ]


def tuning_statement(metrics: Mapping[str, Any], primary: str, confidence: float) -> Statement:
    """Did tuning help retrieval? The verdict on the primary task."""
    result, task = claimed(metrics, primary), TASKS[primary]
    claims = {
        1: "Tuning helped retrieval",
        -1: "Tuning hurt retrieval",
        0: "There is no evidence that tuning changed retrieval",
    }
    return Statement(
        claims[metrics["verdict"]],
        f": {METRIC_TITLES[task.metric]} of “{task.title}” went from {result[ZEROSHOT]:.3f} to "
        f"{result[SFT]:.3f} ({result['delta']:+.3f}, {confidence:.0%} interval "
        f"{format_interval(result)}, {format_p(result['p'])}) on "
        f"{plural(result['n'], 'test question')} in {plural(result['groups'], 'group')}."
        f"{power_sentence(result)}",
    )


def power_sentence(result: Mapping[str, Any]) -> str:
    """The smallest difference that could have been shown; empty if that is unknown.

    Begins with a space, as it follows another sentence.
    """
    if result["groups"] < FEW_GROUPS or result.get("detectable", 0) >= 1:
        return " These are too few groups to show any difference, however large."
    if "detectable" not in result:
        return ""
    return (
        " The smallest true difference that these questions would likely have shown is "
        f"{result['detectable']:.3f}."
    )


def certainty_statement(metrics: Mapping[str, Any], primary: str, confidence: float) -> Statement:
    """How sure is the verdict? Interval, p, what they are based on, and the other tasks."""
    result = claimed(metrics, primary)
    others = [
        find_change(claimed(metrics, name), confidence)
        for name, _ in tasks_with_numbers(metrics)
        if name != primary
    ]
    changes = changes_sentence(others.count(1), others.count(-1), len(others), "other task")
    return Statement(
        f"The {confidence:.0%} interval of the change is {format_interval(result)}",
        f", {format_p(result['p'])}, on {plural(result['n'], 'test question')} in "
        f"{plural(result['groups'], 'independent group')}.{power_sentence(result)}"
        f"{changes} The model was trained with one seed: the interval covers other test questions, "
        "not another training run.",
    )


def fit_statement(memory: Mapping[str, Any]) -> Statement:
    """Does training fit? `memory` is reports/embed_memory.json."""
    return Statement(
        f"It fits on {memory['device']}",
        f": {memory_sentence(memory)}. Run make memory for other models and GPUs.",
    )


def memory_sentence(memory: Mapping[str, Any]) -> str:
    """The memory of a training step, measured and predicted, and what was too much."""
    rows, at_once = memory["batch_size"], memory["mini_batch_size"]
    pieces = f"{rows} rows at once" if at_once >= rows else f"{rows} rows, {at_once} at a time"
    too_large = "".join(
        f"; out of memory with {size} at a time" for size in memory["out_of_memory"]
    )
    return (
        f"{gib(memory['measured'] * 1e6)} in tensors at most, "
        f"{gib(memory['predicted']['peak'] * 1e6)} predicted, for a training step on {pieces}, "
        f"with texts of up to {memory['longest']:,} tokens{too_large}"
    )


def bm25_statement(metrics: Mapping[str, Any], primary: str) -> Statement:
    """Is the tuned model better than BM25 at the primary task?"""
    result = metrics["against_bm25"][primary]
    claims = {
        1: "The tuned model beats BM25, which needs no model",
        -1: "BM25, which needs no model, beats the tuned model",
        0: "There is no evidence that the tuned model beats BM25, which needs no model",
    }
    advice = {
        1: "",
        -1: " On these texts, BM25 is the better choice.",
        0: " On these texts, BM25 may do as well.",
    }
    verdict = result["verdict"]
    return Statement(
        claims[verdict],
        f": {METRIC_TITLES[TASKS[primary].metric]} is {result[SFT]:.3f} against BM25's "
        f"{result[BM25]:.3f} ({result['delta']:+.3f}, interval {format_interval(result)}, Holm "
        f"{format_p(result['p_holm'])}).{advice[verdict]}",
    )


def find_change(result: Mapping[str, Any], confidence: float) -> int:
    """Whether a task is done better (1) or worse (-1) by its corrected p, or neither (0)."""
    if result.get("p_holm", result["p"]) > 1 - confidence or "low" not in result:
        return 0
    return int(result["low"] > 0) - int(result["high"] < 0)


def task_statement(metrics: Mapping[str, Any], name: str, confidence: float) -> Statement:
    """What tuning changed in a task other than the primary one."""
    result, task = claimed(metrics, name), TASKS[name]
    nearer = name == "nearer"
    what = "Right answers are told from wrong ones" if nearer else f"{task.found} found"
    claim = {
        1: f"{what} better",
        -1: f"{what} worse",
        0: f"There is no evidence that {what[0].lower()}{what[1:]} better",
    }[find_change(result, confidence)]
    measure = "the share of rows" if nearer else METRIC_TITLES[task.metric]
    return Statement(
        claim[0].upper() + claim[1:],
        f": {measure} went from {result[ZEROSHOT]:.3f} to {result[SFT]:.3f} "
        f"({result['delta']:+.3f}, interval {format_interval(result)}, Holm "
        f"{format_p(result['p_holm'])}); BM25: {result[BM25]:.3f}.",
    )


def metric_rows(metrics: Mapping[str, Any], task: str, primary: str) -> list[list[str]]:
    """Table rows of a task's metrics, under METRIC_HEADS."""
    rows = []
    for name, title in METRIC_TITLES.items():
        if name not in metrics[task]:
            continue
        result = metrics[task][name]
        detectable = f"{result['detectable']:.3f}" if "detectable" in result else ""
        holm = f"{result['p_holm']:.4f}" if "p_holm" in result else "describes"
        if (task, name) == (primary, PRIMARY_METRIC):
            holm = "primary"
        rows.append(
            [
                *(title, *(f"{result[system]:.3f}" for system in SYSTEM_TITLES)),
                *(f"{result['delta']:+.3f}", format_interval(result), detectable),
                *(f"{result['p']:.4f}", holm, f"{result['n']:,}"),
            ]
        )
    return rows


def bm25_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Table rows of the tuned model against BM25, by each task's metric, under BM25_HEADS."""
    rows = []
    for name, task in tasks_with_numbers(metrics):
        result = metrics["against_bm25"][name]
        rows.append(
            [
                *(task.name, f"{result[BM25]:.3f}", f"{result[SFT]:.3f}"),
                *(f"{result['delta']:+.3f}", format_interval(result), f"{result['p_holm']:.4f}"),
            ]
        )
    return rows


def task_rows(metrics: Mapping[str, Any], primary: str) -> list[list[str]]:
    """Table rows of the tasks, by each task's metric, under TASK_HEADS."""
    rows = []
    for name, task in tasks_with_numbers(metrics):
        result = claimed(metrics, name)
        holm = "primary" if name == primary else f"{result['p_holm']:.4f}"
        rows.append(
            [
                *(task.name, *(f"{result[system]:.3f}" for system in SYSTEM_TITLES)),
                *(f"{result['delta']:+.3f}", format_interval(result), f"{result['p']:.4f}", holm),
            ]
        )
    return rows


def markdown_tables(metrics: Mapping[str, Any], primary: str) -> str:
    """The tables of tasks and of BM25 as Markdown."""
    tables = []
    for heads, rows in (
        (TASK_HEADS, task_rows(metrics, primary)),
        (BM25_HEADS, bm25_rows(metrics)),
    ):
        head, *lines = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
        tables.append("\n".join([head, f"|---|{'--:|' * (len(heads) - 1)}", *lines]))
    return "\n\n".join(tables)


def unseen_sentences(metrics: Mapping[str, Any], max_length: int) -> str:
    """How much of the test texts the model does not see."""
    longer, rows = metrics["longer"], metrics["n"]
    return (
        f"The model sees the first {max_length:,} tokens of a text, prompt included. "
        f"{longer['questions']:,} of {rows:,} test questions and {longer['answers']:,} of {rows:,} "
        "right answers are longer. Contexts are cut into passages that it sees whole. BM25 sees "
        "all of every text."
    )
