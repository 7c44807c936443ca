"""Search all test texts for every test question with an embedding model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from library.embed.encoder import count_longest, count_tokens, encode
from library.embed.ranking import Ranked, Texts, prefer, rank_row
from library.embed.rows import ask
from library.records import CleanRow


def rank_rows(
    encoder: Any,
    rows: Sequence[CleanRow],
    groups: Mapping[str, str],
    texts: Texts,
    name: str,
    plan: Callable[[int], int],
) -> list[Ranked]:
    """Rank the texts for each row's question.

    `name` is the system's, for the log; `plan` says how many texts of a length to encode at once.
    """
    asked = [ask(row) for row in rows]
    wrong = list(dict.fromkeys(row["negative"] for row in rows if row["negative"] is not None))
    at_once = plan(count_longest(encoder, asked, [*texts.passages, *texts.answers, *wrong]))
    questions = encode(encoder, asked, "query", f"{name}: questions", at_once)
    passages = encode(encoder, texts.passages, "document", f"{name}: passages", at_once)
    answers = encode(encoder, texts.answers, "document", f"{name}: answers", at_once)
    vectors = encode(encoder, wrong, "document", f"{name}: wrong answers", at_once)
    place = {text: at for at, text in enumerate(texts.answers)}
    wrong_place = {text: at for at, text in enumerate(wrong)}
    ranked = []
    for row, question in zip(rows, questions, strict=True):
        answer_scores = (answers @ question).astype(np.float64)
        nearer = None
        if row["negative"] is not None:
            nearer = prefer(
                float(answer_scores[place[row["positive"]]]),
                float(vectors[wrong_place[row["negative"]]] @ question),
            )
        passage_scores = (passages @ question).astype(np.float64)
        ranked.append(
            rank_row(row, groups[row["id"]], texts, passage_scores, answer_scores, nearer)
        )
    return ranked


def count_longer(encoder: Any, rows: Sequence[CleanRow]) -> dict[str, int]:
    """The numbers of questions and right answers that exceed the model's longest input."""
    limit = encoder.max_seq_length
    return {
        "questions": sum(count_tokens(encoder, ask(row), "query") > limit for row in rows),
        "answers": sum(count_tokens(encoder, row["positive"], "document") > limit for row in rows),
    }
