"""Which `format.max_length` and `format.max_new_tokens` are enough for how many rows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jinja2 import Template
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from library.corpus.passages import split_passages
from library.llm.chat_template import prompt_completion_ids, prompt_ids
from library.llm.prompts import build_messages, build_prompt
from library.params import FormatParams
from library.records import CleanRow

SHARES = (0.9, 0.99, 1.0)
LENGTH_STEP, ANSWER_STEP = 64, 16  # advice is rounded up to these
# Where references are a word or two, a zero-shot model still answers in sentences, and would be cut
# off in most of them. 48 tokens are a long sentence in English.
LEAST_ANSWER = 48
LEAST_CHARACTERS = 50  # as in FormatParams
MOST_TRIED = 4096  # lengths
MEASURED_ROWS = 2000


class RowLengths(NamedTuple):
    """A row's lengths in tokens.

    `question`: prompt without passages; `whole`: prompt with all passages; `answer`: right answer
    with end-of-turn token; `longest`: the longer of its answers.
    """

    question: int
    whole: int
    answer: int
    longest: int


class Advice(NamedTuple):
    """Parameters that are enough for `share` of the rows.

    `max_length` leaves room for as much context as the model has positions for, `least` for none;
    both are 0 if no length is enough.
    """

    share: float
    max_new_tokens: int
    max_length: int
    least: int

    def command(self) -> str:
        """The command to paste."""
        return (
            f"dvc exp run -S format.max_length={self.max_length} "
            f"-S format.max_new_tokens={self.max_new_tokens}"
        )


def measure_lengths(
    row: CleanRow, tokenizer: PreTrainedTokenizerBase, template: Template, characters: int
) -> RowLengths:
    """The lengths of a row whose context is cut into passages of at most `characters`."""
    turns = row["turns"]
    bare = build_messages(template, [], "", turns)
    answers = [
        len(prompt_completion_ids(tokenizer, bare, text)[1])
        for text in (row["positive"], row["negative"])
        if text
    ]
    passages = split_passages(row["anchor"], characters)
    # no warning if a whole context exceeds the model's positions
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    question, whole = (
        len(prompt_ids(tokenizer, build_messages(template, kept, row["query"], turns)))
        for kept in ([], passages)
    )
    return RowLengths(question, whole, answers[0], max(answers))


def advise_lengths(rows: Iterable[RowLengths], positions: int | None) -> list[Advice]:
    """Parameters that are enough for 90, 99 and 100% of the rows; `positions` is the model's limit
    or None.

    A row fits if question and answer fit into `max_length`, with at least `max_new_tokens` for a
    test row's answer, and if prompt and longer answer fit into the model's positions.
    `max_new_tokens` is as long as that share of the answers, so that they are not cut, and at least
    LEAST_ANSWER.
    """
    table: NDArray[np.int64] = np.array(list(rows), dtype=np.int64).reshape(-1, 4)
    question, whole, answer, longest = table.T
    most = positions or int(1e9)
    advice = []
    for share in SHARES if len(table) else ():
        reserve = max(LEAST_ANSWER, _round_up(_quantile(answer, share), ANSWER_STEP))
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
    params: FormatParams,
    positions: int | None,
    without: Sequence[CleanRow] = (),
) -> str:
    """The advice for clean rows, by id, as text (`describe_advice`), and for those `without` room
    for a passage.

    Of many rows the first ones are measured; they are a random sample, because ids are hashes.
    """
    measured = [
        measure_lengths(rows[key], tokenizer, template, params.passage_characters)
        for key in sorted(rows)[:MEASURED_ROWS]
    ]
    advice = describe_advice(advise_lengths(measured, positions), positions)
    return advice + advise_on_passages(without, tokenizer, template, params)


def advise_on_passages(
    rows: Sequence[CleanRow],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    params: FormatParams,
) -> str:
    """The largest half, quarter and so on of `format.passage_characters` that gives most of the
    rows' prompts a passage, as a command; empty if none does. The rows' prompts have none now.
    """
    measured = rows[:MEASURED_ROWS]
    budget = params.max_length - params.max_new_tokens
    characters = params.passage_characters // 2
    while measured and characters >= LEAST_CHARACTERS:
        count = sum(
            bool(
                build_prompt(
                    *(tokenizer, template, row["query"], row["anchor"], budget, characters),
                    row["turns"],
                ).passages
            )
            for row in measured
        )
        if 2 * count > len(measured):
            return (
                f"\n  shorter passages, with room for one in {count} of {len(measured)} of these: "
                f"dvc exp run -S format.passage_characters={characters}"
            )
        characters //= 2
    return ""


def _quantile(values: NDArray[np.int64], share: float) -> int:
    return int(np.sort(values)[math.ceil(share * len(values)) - 1])


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def describe_advice(advice: Sequence[Advice], positions: int | None) -> str:
    """The commands, one per share, for the end of an error message.

    If several shares need the same, the largest of them stands for all.
    """
    distinct = {entry._replace(share=0.0): entry for entry in advice}
    lines = [
        f"\n  enough for {entry.share:.0%} of the rows: {entry.command()}"
        + (
            f" (max_length={entry.least} is enough without any of their contexts)"
            if entry.least < entry.max_length
            else ""
        )
        for entry in distinct.values()
        if entry.max_length
    ]
    if not lines:
        return (
            f"\n  No length is enough for 90% of the rows: the model has {positions} positions; "
            "choose one with more (model in params.yaml)"
        )
    return "".join(lines)
