"""A clean row as the model is asked it, within the budget of tokens."""

import logging
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import mean, median
from typing import Any

from jinja2 import Template
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from library.corpus.passages import Ranker, count_sentences, rank_passages
from library.corpus.splitting import Split
from library.errors import InputError
from library.llm.chat_template import (
    find_markup,
    hash_ids,
    prompt_completion_ids,
    prompt_ids,
    read_answer,
)
from library.llm.prompts import build_messages, build_prompt, reads_passages
from library.params import FormatParams
from library.progress import SECONDS_BETWEEN_UPDATES
from library.records import SPLITS, CleanRow, FormattedRow

log = logging.getLogger(__name__)

SHOWN_REJECTED = 10


def format_row(
    row: CleanRow,
    split: str,
    group: str,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    params: FormatParams,
    positions: int | None = None,
    rank: Ranker = rank_passages,
) -> FormattedRow:
    """One row as prompt messages with its answers; prompt and answer take `max_length` at most.

    A reserve of `max_new_tokens` is kept free for the answer. A train or validation row whose
    answer is longer pays with its own passages; a test row's answer never decides what its prompt
    holds. Raises InputError where question and answer alone are too long, where a text holds the
    tokenizer's markup, or where an answer to be scored would reach beyond the model's `positions`.
    `pair` is for the caller to fill in: it takes all rows.
    """
    turns = row["turns"]
    texts = [row["anchor"], row["query"], row["positive"], row["negative"] or ""]
    texts += [turn["content"] for turn in turns]
    markup = find_markup(tokenizer, texts)
    if markup is not None:
        raise InputError(f"a text holds the tokenizer's markup {markup!r}")
    bare = build_messages(template, [], "", turns)
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

    question_tokens = len(prompt_ids(tokenizer, build_messages(template, [], row["query"], turns)))
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
        *(tokenizer, template, row["query"], row["anchor"], budget, params.passage_characters),
        *(turns, rank),
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
        "also_right": row["also_right"],
        "negative": row["negative"],
        "contradicts": row["contradicts"],
        "passages": prompt.indices,
        "ranked": prompt.ranked,
        "best_passage": prompt.best_passage,
        "prompt_tokens": len(prompt.ids),
        "question_tokens": len(prompt.question_ids),
        "prompt_hash": hash_ids(prompt.ids),
        "prompt_hash_no_context": hash_ids(prompt.question_ids),
        "answer_tokens": answer_tokens,
        "tokens": tokens,
        "pair": None,
    }


def format_rows(
    rows: Iterable[CleanRow],
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    params: FormatParams,
    positions: int | None,
    rank: Ranker,
) -> tuple[dict[str, list[FormattedRow]], list[dict[str, str]]]:
    """The rows by split, in the order of their ids; and of those that can't be asked id, place and
    reason.
    """
    formatted: dict[str, list[FormattedRow]] = {name: [] for name in SPLITS}
    rejected: list[dict[str, str]] = []
    ordered = sorted(rows, key=lambda row: row["id"])
    for row in tqdm(ordered, desc="format", unit="row", mininterval=SECONDS_BETWEEN_UPDATES):
        name, group = split.splits[row["id"]], split.groups[row["id"]]
        try:
            made = format_row(row, name, group, tokenizer, template, params, positions, rank)
        except InputError as error:
            rejected.append({"id": row["id"], "place": row["place"], "reason": str(error)})
        else:
            formatted[name].append(made)
    for record in rejected[:SHOWN_REJECTED]:
        log.info("rejected %s: %s", record["place"], record["reason"])
    if len(rejected) > SHOWN_REJECTED:
        log.info("%d rows rejected in all: data/formatted/rejected.jsonl lists them", len(rejected))
    return formatted, rejected


def usual_sentences(rows: Mapping[str, CleanRow], split: Split) -> int:
    """How many sentences the train rows' answers have, the median of them; rows are by id."""
    trained = (rows[key]["positive"] for key, name in split.splits.items() if name == "train")
    return round(median(map(count_sentences, trained)))


def complete_row(
    row: FormattedRow, partners: Mapping[str, str], given_away: Collection[str]
) -> FormattedRow:
    """The row with its partner's id, and without a wrong answer where training gives it away."""
    row = {**row, "pair": partners.get(row["id"])}
    if row["id"] in given_away:
        row |= {"negative": None, "tokens": row["prompt_tokens"] + row["answer_tokens"]}
    return row


def log_shares(name: str, numbers: Mapping[str, Any]) -> None:
    """Log a split's rows, groups and share; warn if most rows lose their wrong answer."""
    said = (
        f"{name}: {numbers['rows']} rows in {numbers['groups']} groups, {numbers['share']:.1%} of "
        f"all (wanted: {numbers['asked_share']:.0%})"
    )
    if lost := numbers["negatives_given_away"]:
        said += f"; {lost} of them lose their wrong answer, because training shows it as right or "
        said += "their right answer as wrong"
    if without := numbers["without_passages"]:
        said += f"; {without} prompts have no room for a passage"
    log.log(logging.WARNING if 2 * lost > numbers["rows"] else logging.INFO, "%s", said)


def without_room(rows: Iterable[FormattedRow], template: Template) -> list[FormattedRow]:
    """The rows whose passages are all too long for the prompt; none if the template leaves passages
    out.
    """
    if not reads_passages(template):
        return []
    return [row for row in rows if row["ranked"] and not row["passages"]]


def describe_split(
    rows: Sequence[FormattedRow],
    total: int,
    asked_share: float,
    given_away: Collection[str],
    template: Template,
) -> dict[str, float]:
    """How many rows, groups and pairs a split has, of `total` rows, and how long their prompts and
    answers are.
    """
    trimmed = sum(len(row["passages"]) < len(row["ranked"]) for row in rows)
    return {
        "rows": len(rows),
        "share": round(len(rows) / total, 6),
        "asked_share": asked_share,
        "negatives_given_away": sum(row["id"] in given_away for row in rows),
        "groups": len({row["group"] for row in rows}),
        "pairs": sum(row["pair"] is not None for row in rows) // 2,
        "trimmed_share": round(trimmed / len(rows), 6),
        "without_passages": len(without_room(rows, template)),
        "prompt_tokens_mean": round(mean(row["prompt_tokens"] for row in rows), 1),
        "prompt_tokens_max": max(row["prompt_tokens"] for row in rows),
        "answer_tokens_mean": round(mean(row["answer_tokens"] for row in rows), 1),
        "answer_tokens_max": max(row["answer_tokens"] for row in rows),
    }
