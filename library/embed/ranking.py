"""Rank the right texts among all test texts; every retrieval metric is computed from these ranks.

There are three tasks. `passage`: a question searches the passages of all test contexts; any passage
of its own context is right. `context`: a question searches the contexts, each scored by its best
passage. `answer`: a question searches the right answers of all test rows; any of its own is right.
Also recorded is whether a right answer is nearer to the question than the row's wrong one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from library.records import CleanRow, right_answers

Scores = NDArray[np.float64]
RANKS_KEPT = 10  # the metrics' cut-off
TASKS = ("passage", "context", "answer")


class Found(TypedDict):
    """The ranks of a question's right texts, counted from 1.

    `ranks` has those among the first RANKS_KEPT, `first` is the best; with the number of right
    texts and of all texts.
    """

    ranks: list[int]
    first: int
    right: int
    among: int


class Ranked(TypedDict):
    """A test row's ranks from one system (data/rankings/SYSTEM.jsonl).

    `nearer` is 1 if the right answer is nearer than the wrong one, one half if both are equal, None
    without a wrong one. `top` lists the first passages, each as context and place in it.
    """

    id: str
    group: str
    tasks: dict[str, Found]
    nearer: float | None
    top: list[tuple[str, int]]


@dataclass(frozen=True)
class Texts:
    """The texts to search: passages in the order of their contexts, and distinct answers."""

    passages: Sequence[str]
    owners: Sequence[str]
    answers: Sequence[str]

    def to_record(self) -> dict[str, Any]:
        """The texts as JSON: passages by context."""
        by_context: dict[str, list[str]] = {}
        for owner, passage in zip(self.owners, self.passages, strict=True):
            by_context.setdefault(owner, []).append(passage)
        return {"passages": by_context, "answers": list(self.answers)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Texts":
        """The texts that `to_record` wrote."""
        return cls(
            passages=[text for texts in record["passages"].values() for text in texts],
            owners=[key for key, texts in record["passages"].items() for _ in texts],
            answers=record["answers"],
        )


def gather_texts(rows: Sequence[CleanRow], cut: Callable[[str], Sequence[str]]) -> Texts:
    """The texts of test rows; `cut` cuts a context into passages."""
    contexts = {row["context_id"]: row["anchor"] for row in rows if row["anchor"]}
    passages = {key: cut(context) for key, context in contexts.items()}
    return Texts(
        passages=[text for texts in passages.values() for text in texts],
        owners=[key for key, texts in passages.items() for _ in texts],
        answers=list(dict.fromkeys(text for row in rows for text in right_answers(row))),
    )


def find(scores: Sequence[float] | Scores, right: Sequence[bool]) -> Found:
    """The ranks of the right texts, highest score first, ties in the texts' order."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    ranks = (np.flatnonzero(np.asarray(right)[order]) + 1).tolist()
    return {
        "ranks": [rank for rank in ranks if rank <= RANKS_KEPT],
        "first": ranks[0],
        "right": len(ranks),
        "among": len(scores),
    }


def rank_row(
    row: CleanRow,
    group: str,
    texts: Texts,
    passage_scores: Sequence[float] | Scores,
    answer_scores: Sequence[float] | Scores,
    nearer: float | None,
) -> Ranked:
    """A row's ranks, from the scores of its question with all passages and all answers."""
    right = set(right_answers(row))
    tasks = {
        "answer": find(answer_scores, [text in right for text in texts.answers]),
    }
    top: list[tuple[str, int]] = []
    if row["anchor"]:
        own = [owner == row["context_id"] for owner in texts.owners]
        tasks["passage"] = find(passage_scores, own)
        nearest: dict[str, float] = {}
        for owner, score in zip(texts.owners, map(float, passage_scores), strict=True):
            nearest[owner] = max(score, nearest.get(owner, -np.inf))
        tasks["context"] = find(
            np.asarray(list(nearest.values())), [owner == row["context_id"] for owner in nearest]
        )
        starts = {owner: texts.owners.index(owner) for owner in nearest}
        for at in np.argsort(-np.asarray(passage_scores), kind="stable")[:5].tolist():
            top.append((texts.owners[at], at - starts[texts.owners[at]]))
    return {"id": row["id"], "group": group, "tasks": tasks, "nearer": nearer, "top": top}


def prefer(right: float, wrong: float) -> float:
    """1 if the right one is nearer, one half if they are equal, else 0."""
    return 0.5 if right == wrong else float(right > wrong)
