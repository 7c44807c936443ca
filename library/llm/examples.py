"""Few-shot prompts: train rows before the question, as earlier turns of the conversation."""

from collections.abc import Mapping, Sequence

from jinja2 import Template
from transformers import PreTrainedTokenizerBase

from library.corpus.passages import rank_passages
from library.llm.chat_template import hash_ids, prompt_ids
from library.llm.prompts import build_messages, build_prompt
from library.params import FormatParams
from library.records import CleanRow, FormattedRow, Message

MOST_OF_THE_BUDGET = 0.5  # that examples take: the rest is for the row's own passages


def choose_examples(question: str, train: Sequence[FormattedRow], count: int) -> list[FormattedRow]:
    """The train rows whose questions are most like a question (BM25), the most like it first."""
    ranked = rank_passages([row["question"] for row in train], question)
    return [train[index] for index in ranked[:count]]


def example_turns(template: Template, row: FormattedRow) -> list[Message]:
    """A train row as it was asked, with its best passage alone, and its answer."""
    passages = [row["best_passage"]] if row["best_passage"] else []
    return [
        build_messages(template, passages, row["question"])[-1],
        {"role": "assistant", "content": row["positive"]},
    ]


def with_examples(
    row: FormattedRow,
    clean: CleanRow,
    examples: Sequence[FormattedRow],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    params: FormatParams,
) -> tuple[FormattedRow, int]:
    """A test row asked after as many examples as half of its prompt's budget holds, and how many
    these are. The one that is most like its question stands next to it.

    The prompt is no longer than without them: its own passages have what is left.
    """
    budget = params.max_length - params.max_new_tokens
    system = [turn for turn in clean["turns"] if turn["role"] == "system"]
    earlier = [turn for turn in clean["turns"] if turn["role"] != "system"]

    def turns(chosen: Sequence[FormattedRow]) -> list[Message]:
        asked = [turn for example in chosen[::-1] for turn in example_turns(template, example)]
        return [*system, *asked, *earlier]

    chosen = list(examples)
    while chosen:
        alone = build_messages(template, [], row["question"], turns(chosen))
        if len(prompt_ids(tokenizer, alone)) <= MOST_OF_THE_BUDGET * budget:
            break
        chosen.pop()
    prompt = build_prompt(
        *(tokenizer, template, row["question"], clean["anchor"], budget, params.passage_characters),
        turns(chosen),
    )
    longer = row["tokens"] - row["prompt_tokens"]  # the longer of its answers
    return {
        **row,
        "messages": prompt.messages,
        "messages_no_question": prompt.messages_no_question,
        "passages": prompt.indices,
        "prompt_tokens": len(prompt.ids),
        "prompt_hash": hash_ids(prompt.ids),
        "tokens": len(prompt.ids) + longer,
    }, len(chosen)


def few_shot_rows(
    rows: Sequence[FormattedRow],
    clean: Mapping[str, CleanRow],
    train: Sequence[FormattedRow],
    count: int,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    params: FormatParams,
) -> tuple[list[FormattedRow], int]:
    """Test rows asked after `count` train rows each, or as many as there is room for; and how many
    of them have fewer.
    """
    made, fewer = [], 0
    for row in rows:
        examples = choose_examples(row["question"], train, count)
        asked, there = with_examples(row, clean[row["id"]], examples, tokenizer, template, params)
        made.append(asked)
        fewer += there < count
    return made, fewer
