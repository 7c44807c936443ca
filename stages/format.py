"""Split the clean rows by group and turn each into the prompt that the model will be asked with.

Reads data/clean/rows.jsonl, the base model's tokenizer and prompts/NAME.jinja, where `format.prompt` is NAME. Writes
data/formatted/: train.jsonl, validation.jsonl, test.jsonl, rejected.jsonl, and train_sample.jsonl with those train rows that the
models are asked, too, so that over-fitting shows; and metrics/format.json.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Template
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from stages.corpus.groups import SPLITS, check_overlap, group_rows, pair_rows, split_groups
from stages.corpus.passages import rank_passages, split_passages
from stages.corpus.rows import check_rejected_share, read_jsonl, write_json, write_jsonl
from stages.llm.prompts import (
    BASE_DIR,
    build_messages,
    hash_ids,
    load_prompt,
    load_tokenizer,
    prompt_completion_ids,
    prompt_ids,
    reads_passages,
)
from stages.params import FormatParams, load_params
from stages.run import InputError, run_stage

log = logging.getLogger(__name__)


def choose_passages(
    tokenizer: PreTrainedTokenizerBase, template: Template, passages: list[str], ranked: list[int], question: str, budget: int
) -> list[int]:
    """Indices of the passages that go into the prompt, in document order.

    In the order of `ranked`, each whole, up to the first that would take the prompt beyond `budget` tokens. None where the template
    leaves passages out.
    """
    if not reads_passages(template):
        return []
    left = budget - len(prompt_ids(tokenizer, build_messages(template, [], question)))
    chosen: list[int] = []
    for index in ranked:
        left -= len(tokenizer(passages[index] + "\n\n", add_special_tokens=False)["input_ids"])
        if left < 0:
            break
        chosen.append(index)
    # tokens at the seams, and a template's own words, can make the whole longer than its parts: measure it
    while chosen:
        kept = [passages[index] for index in sorted(chosen)]
        if len(prompt_ids(tokenizer, build_messages(template, kept, question))) <= budget:
            break
        chosen.pop()
    return sorted(chosen)


def format_row(
    row: Mapping[str, Any],
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    params: FormatParams,
    positions: int | None = None,
) -> dict[str, Any]:
    """One row as prompt messages with the answers: prompt and reserve, or a train row's own answer, in `max_length` tokens.

    A reserve of `max_new_tokens` is kept free for the answer. A train or validation row whose answer is longer pays with its own
    passages; a test row's answer never decides what its prompt holds. Raises InputError where question and answer alone are too
    long, where a text holds the tokenizer's markup, or where an answer to be scored would reach beyond the model's `positions`.
    """
    markup = next((token for token in tokenizer.all_special_tokens for text in row.values() if text and token in text), None)
    if markup is not None:
        raise InputError(f"a text holds the tokenizer's markup {markup!r}")
    bare = build_messages(template, [], "")
    without_context = build_messages(template, [], row["query"])
    question_only = prompt_ids(tokenizer, without_context)
    answer_tokens = len(prompt_completion_ids(tokenizer, bare, row["positive"])[1])
    least = len(question_only) + max(answer_tokens, params.max_new_tokens if split == "test" else 0)
    if least > params.max_length:
        raise InputError(f"question and answer alone take {least} tokens, format.max_length is {params.max_length}")
    reserve = params.max_new_tokens if split == "test" else max(params.max_new_tokens, answer_tokens)
    passages = split_passages(row["anchor"], params.passage_characters)
    ranked = rank_passages(passages, row["query"])
    chosen = choose_passages(tokenizer, template, passages, ranked, row["query"], params.max_length - reserve)
    kept = [passages[index] for index in chosen]
    messages = build_messages(template, kept, row["query"])
    ids = prompt_ids(tokenizer, messages)
    negative_tokens = len(prompt_completion_ids(tokenizer, bare, row["negative"])[1]) if row["negative"] else 0
    total = len(ids) + max(answer_tokens, negative_tokens)
    if split == "test" and positions is not None and total > positions:
        raise InputError(f"its prompt and its longer answer take {total} tokens, the model has {positions} positions")
    return {
        "id": row["id"],
        "messages": messages,
        "messages_no_context": without_context,
        "messages_no_question": build_messages(template, kept, ""),
        "messages_bare": bare,
        "question": row["query"],
        "positive": row["positive"],
        "negative": row["negative"],
        "contradicts": row["contradicts"],
        "passages": chosen,
        "passages_in_context": len(passages),
        "best_passage": passages[ranked[0]] if ranked else "",
        "prompt_tokens": len(ids),
        "question_tokens": len(question_only),
        "prompt_hash": hash_ids(ids),
        "prompt_hash_no_context": hash_ids(question_only),
        "answer_tokens": answer_tokens,
        "tokens": total,
    }


def main() -> None:
    """Format the clean rows. Fails where too many do not fit, groups are too few, or a text stands in two splits."""
    params = load_params()
    template = load_prompt(Path("prompts") / f"{params.format.prompt}.jinja")
    tokenizer = load_tokenizer(BASE_DIR)
    limit = json.loads((BASE_DIR / "config.json").read_text()).get("max_position_embeddings")
    if limit is not None and params.format.max_length > limit:
        raise InputError(f"params.yaml: format.max_length: {params.format.max_length} is beyond the model's {limit} positions")

    rows = {row["id"]: row for row in read_jsonl(Path("data/clean/rows.jsonl"))}
    texts = {key: [row[name] for name in ("anchor", "positive", "negative") if row[name]] for key, row in rows.items()}
    groups = group_rows(texts)
    splits = split_groups(groups, params.split.shares, params.split.seed)
    check_overlap({split: [text for key in rows if splits[key] == split for text in texts[key]] for split in SPLITS})

    formatted: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    rejected = []
    for key, row in tqdm(sorted(rows.items()), desc="format", unit="row", mininterval=2):
        try:
            record = format_row(row, splits[key], tokenizer, template, params.format, limit)
        except InputError as error:
            log.info("rejected %s: %s", row["place"], error)
            rejected.append({"id": key, "file": params.data.path, "place": row["place"], "reason": str(error)})
            continue
        formatted[splits[key]].append({"group": groups[key], **record})
    # a pair counts where both of its rows are asked, which being of one group they are in the same split; rows that contradict
    # each other are none: nothing in their questions could decide
    asked = [rows[record["id"]] for split in SPLITS for record in formatted[split]]
    partners = pair_rows([row for row in asked if row["contradicts"] is None])
    write_jsonl(Path("data/formatted/rejected.jsonl"), rejected)
    check_rejected_share(rejected, len(rows), params.clean.max_rejected_share)
    for split in SPLITS:
        if not formatted[split]:
            raise InputError(f"no row is left in {split}: {len(rejected)} of {len(rows)} rows don't fit")

    metrics: dict[str, Any] = {"rejected": len(rejected), "groups": len(set(groups.values()))}
    for split in SPLITS:
        records = [{**record, "pair": partners.get(record["id"])} for record in formatted[split]]
        write_jsonl(Path(f"data/formatted/{split}.jsonl"), records)
        if split == "train":  # rows are in the order of their ids, which are drawn from their text
            short = [record for record in records if limit is None or record["tokens"] <= limit]
            write_jsonl(Path("data/formatted/train_sample.jsonl"), short[: params.format.train_sample])
        trimmed = sum(len(record["passages"]) < record["passages_in_context"] for record in records)
        metrics[split] = {
            "rows": len(records),
            "groups": len({record["group"] for record in records}),
            "pairs": sum(record["pair"] is not None for record in records) // 2,
            "trimmed_share": round(trimmed / len(records), 6),
            "without_passages": sum(not record["passages"] for record in records),
            "prompt_tokens_mean": round(mean(record["prompt_tokens"] for record in records), 1),
            "prompt_tokens_max": max(record["prompt_tokens"] for record in records),
            "answer_tokens_mean": round(mean(record["answer_tokens"] for record in records), 1),
            "answer_tokens_max": max(record["answer_tokens"] for record in records),
        }
    write_json(Path("metrics/format.json"), metrics)
    log.info(", ".join(f"{split}: {metrics[split]['rows']} rows" for split in SPLITS))
    if not reads_passages(template):
        log.info("prompts/%s.jinja leaves the passages out: the model is asked without them", params.format.prompt)
        return
    for split in SPLITS:
        if metrics[split]["without_passages"]:
            log.warning(
                "%s: %d of %d prompts hold no passage: question and answer leave no room for one; raise format.max_length",
                split, metrics[split]["without_passages"], metrics[split]["rows"],
            )  # fmt: skip


if __name__ == "__main__":
    run_stage(main)
