"""A clean row as the model is asked it, within the budget of tokens."""

import textwrap
from collections.abc import Sequence
from statistics import mean

from jinja2 import Template
from transformers import PreTrainedTokenizerBase

from library.errors import InputError
from library.llm.chat_template import (
    find_markup,
    hash_ids,
    prompt_completion_ids,
    prompt_ids,
    read_answer,
)
from library.llm.prompts import build_messages, build_prompt
from library.params import FormatParams
from library.records import CleanRow, FormattedRow


def format_row(
    row: CleanRow,
    split: str,
    group: str,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    params: FormatParams,
    positions: int | None = None,
) -> FormattedRow:
    """One row as prompt messages with its answers; prompt and answer take `max_length` at most.

    A reserve of `max_new_tokens` is kept free for the answer. A train or validation row whose
    answer is longer pays with its own passages; a test row's answer never decides what its prompt
    holds. Raises InputError where question and answer alone are too long, where a text holds the
    tokenizer's markup, or where an answer to be scored would reach beyond the model's `positions`.
    `pair` is for the caller to fill in: it takes all rows.
    """
    texts = [row["anchor"], row["query"], row["positive"], row["negative"] or ""]
    markup = find_markup(tokenizer, texts)
    if markup is not None:
        raise InputError(f"a text holds the tokenizer's markup {markup!r}")
    bare = build_messages(template, [], "")
    answer = prompt_completion_ids(tokenizer, bare, row["positive"])[1]
    answer_tokens = len(answer)
    if (read := read_answer(tokenizer, answer)) != row["positive"].strip():
        raise InputError(
            "the model's tokenizer can't write its answer, which it reads as "
            f"{textwrap.shorten(read, 60, placeholder=' …')!r}"
        )
    negative_tokens = 0
    if row["negative"]:
        negative_tokens = len(prompt_completion_ids(tokenizer, bare, row["negative"])[1])

    question_tokens = len(prompt_ids(tokenizer, build_messages(template, [], row["query"])))
    least = question_tokens + max(answer_tokens, params.max_new_tokens if split == "test" else 0)
    if least > params.max_length:
        raise InputError(
            f"question and answer alone take {least} tokens, format.max_length is "
            f"{params.max_length}"
        )
    reserve = params.max_new_tokens
    if split != "test":
        reserve = max(reserve, answer_tokens)
    budget = params.max_length - reserve
    prompt = build_prompt(
        tokenizer, template, row["query"], row["anchor"], budget, params.passage_characters
    )
    tokens = len(prompt.ids) + max(answer_tokens, negative_tokens)
    if split == "test" and positions is not None and tokens > positions:
        raise InputError(
            f"its prompt and its longer answer take {tokens} tokens, the model has {positions} "
            "positions"
        )
    return {
        "group": group,
        "id": row["id"],
        "messages": prompt.messages,
        "messages_no_context": prompt.messages_no_context,
        "messages_no_question": prompt.messages_no_question,
        "messages_bare": prompt.messages_bare,
        "question": row["query"],
        "positive": row["positive"],
        "negative": row["negative"],
        "contradicts": row["contradicts"],
        "passages": prompt.indices,
        "passages_in_context": prompt.passages_in_context,
        "best_passage": prompt.best_passage,
        "prompt_tokens": len(prompt.ids),
        "question_tokens": len(prompt.question_ids),
        "prompt_hash": hash_ids(prompt.ids),
        "prompt_hash_no_context": hash_ids(prompt.question_ids),
        "answer_tokens": answer_tokens,
        "tokens": tokens,
        "pair": None,
    }


def describe_split(rows: Sequence[FormattedRow]) -> dict[str, float]:
    """How many rows, groups and pairs a split has, and how long their prompts and answers are."""
    trimmed = sum(len(row["passages"]) < row["passages_in_context"] for row in rows)
    return {
        "rows": len(rows),
        "groups": len({row["group"] for row in rows}),
        "pairs": sum(row["pair"] is not None for row in rows) // 2,
        "trimmed_share": round(trimmed / len(rows), 6),
        "without_passages": sum(not row["passages"] for row in rows),
        "prompt_tokens_mean": round(mean(row["prompt_tokens"] for row in rows), 1),
        "prompt_tokens_max": max(row["prompt_tokens"] for row in rows),
        "answer_tokens_mean": round(mean(row["answer_tokens"] for row in rows), 1),
        "answer_tokens_max": max(row["answer_tokens"] for row in rows),
    }
