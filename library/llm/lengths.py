"""Which `format.max_length` and `format.max_new_tokens` take how many of the rows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jinja2 import Template
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from library.corpus.passages import split_passages
from library.llm.chat_template import prompt_completion_ids, prompt_ids
from library.llm.prompts import build_messages
from library.records import CleanRow

SHARES = (0.9, 0.99, 1.0)
LENGTH_STEP, ANSWER_STEP = 64, 16  # advice is in round numbers
MOST_TRIED = 4096  # lengths
MEASURED_ROWS = 2000


class RowLengths(NamedTuple):
    """Tokens of a row's prompt without its passages and with all of them, of its right answer with
    the end of its turn, and of the longer of its answers.
    """

    question: int
    whole: int
    answer: int
    longest: int


class Advice(NamedTuple):
    """The parameters by which `share` of the rows are taken: `max_length` with as much of their
    contexts as the model has positions for, `least` without any; both 0 where none does.
    """

    share: float
    max_new_tokens: int
    max_length: int
    least: int

    def command(self) -> str:
        """What to paste."""
        return (
            f"dvc exp run -S format.max_length={self.max_length} "
            f"-S format.max_new_tokens={self.max_new_tokens}"
        )


def measure_lengths(
    row: CleanRow, tokenizer: PreTrainedTokenizerBase, template: Template, characters: int
) -> RowLengths:
    """The lengths of a row whose context is cut into passages of at most so many characters."""
    turns = row["turns"]
    bare = build_messages(template, [], "", turns)
    answers = [
        len(prompt_completion_ids(tokenizer, bare, text)[1])
        for text in (row["positive"], row["negative"])
        if text
    ]
    passages = split_passages(row["anchor"], characters)
    # whole contexts may be beyond the model's positions: here that is no fault
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    question, whole = (
        len(prompt_ids(tokenizer, build_messages(template, kept, row["query"], turns)))
        for kept in ([], passages)
    )
    return RowLengths(question, whole, answers[0], max(answers))


def advise_lengths(rows: Iterable[RowLengths], positions: int | None) -> list[Advice]:
    """What takes 90, 99 and 100% of the rows; `positions` are the model's, where it says how many.

    A row is taken where question and answer fit into `max_length`, a test row's answer taking
    `max_new_tokens` at least, and where its prompt and longer answer fit into the model's
    positions. So that answers are not cut, `max_new_tokens` is as long as that share of them.
    """
    table: NDArray[np.int64] = np.array(list(rows), dtype=np.int64).reshape(-1, 4)
    question, whole, answer, longest = table.T
    most = positions or int(1e9)
    advice = []
    for share in SHARES if len(table) else ():
        reserve = _round_up(_quantile(answer, share), ANSWER_STEP)
        needed = question + np.maximum(answer, reserve)
        full = _round_up(_quantile(whole + np.maximum(answer, reserve), share), LENGTH_STEP)
        first = _round_up(int(needed.min()), LENGTH_STEP)
        tried = np.unique(
            np.append(
                np.arange(first, min(full, most) + 1, LENGTH_STEP)[:MOST_TRIED], min(full, most)
            )
        )
        wanted = math.ceil(share * len(table))
        taking = [
            int(length)
            for length in tried
            if ((needed <= length) & (np.minimum(whole, length - reserve) + longest <= most)).sum()
            >= wanted
        ]
        advice.append(
            Advice(share, reserve, max(taking), min(taking))
            if taking
            else Advice(share, reserve, 0, 0)
        )
    return advice


def advise_on_rows(
    rows: Mapping[str, CleanRow],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    passage_characters: int,
    positions: int | None,
) -> str:
    """Which lengths would take clean rows, by id, as `describe_advice` has it; of many rows told by
    the first ones, which are a sample: ids are hashes.
    """
    measured = [
        measure_lengths(rows[key], tokenizer, template, passage_characters)
        for key in sorted(rows)[:MEASURED_ROWS]
    ]
    return describe_advice(advise_lengths(measured, positions), positions)


def _quantile(values: NDArray[np.int64], share: float) -> int:
    return int(np.sort(values)[math.ceil(share * len(values)) - 1])


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def describe_advice(advice: Sequence[Advice], positions: int | None) -> str:
    """What to run, a line for each share; the last words of an error."""
    lines = [
        f"\n  takes {entry.share:.0%} of the rows: {entry.command()}"
        + (
            f" (from max_length={entry.least} on, with less of their contexts)"
            if entry.least < entry.max_length
            else ""
        )
        for entry in advice
        if entry.max_length
    ]
    if not lines:
        return (
            f"\n  No length takes 90% of the rows: the model has {positions} positions, choose one "
            "with more (model in params.yaml)"
        )
    return "".join(lines)
