"""Few-shot prompts: train rows before the question, as earlier turns of the conversation."""

from collections.abc import Mapping, Sequence

from jinja2 import Template
from transformers import PreTrainedTokenizerBase

from library.corpus.passages import rank_passages
from library.llm.chat_template import hash_ids, prompt_ids
from library.llm.prompts import build_messages, build_prompt
from library.params import FormatParams
from library.records import CleanRow, FormattedRow, Message

MOST_OF_THE_BUDGET = 0.5  # for examples, if the row's own passages would fill the prompt


def choose_examples(question: str, train: Sequence[FormattedRow], count: int) -> list[FormattedRow]:
    """The train rows with the questions most similar to a question (BM25), most similar first."""
    ranked = rank_passages([row["question"] for row in train], question)
    return [train[index] for index in ranked[:count]]


def example_turns(template: Template, row: FormattedRow, with_passage: bool) -> list[Message]:
    """A train row as two turns: its question, with its best passage or none, and its answer."""
    passages = [row["best_passage"]] if row["best_passage"] and with_passage else []
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
    """A test row with as many examples before it as fit, and their number.

    The most similar example comes last, next to the question. Examples may take what the row's own
    passages leave of the prompt's budget, or half of the budget if that is more. If not even one
    example fits with its passage, examples come without passages.
    """
    budget = params.max_length - params.max_new_tokens
    system = [turn for turn in clean["turns"] if turn["role"] == "system"]
    earlier = [turn for turn in clean["turns"] if turn["role"] != "system"]

    def turns(count: int, with_passages: bool) -> list[Message]:
        asked = [
            turn
            for example in examples[:count][::-1]
            for turn in example_turns(template, example, with_passages)
        ]
        return [*system, *asked, *earlier]

    def tokens(count: int, with_passages: bool) -> int:
        alone = build_messages(template, [], row["question"], turns(count, with_passages))
        return len(prompt_ids(tokenizer, alone))

    room = max(MOST_OF_THE_BUDGET * budget, budget - row["prompt_tokens"] + tokens(0, True))
    count, with_passages = next(
        (
            (count, with_passages)
            for with_passages in (True, False)
            for count in range(len(examples), 0, -1)
            if tokens(count, with_passages) <= room
        ),
        (0, True),
    )
    prompt = build_prompt(
        *(tokenizer, template, row["question"], clean["anchor"], budget, params.passage_characters),
        *(turns(count, with_passages), lambda passages, question: row["ranked"]),
    )
    longer = row["tokens"] - row["prompt_tokens"]  # of its answers
    return {
        **row,
        "messages": prompt.messages,
        "messages_no_question": prompt.messages_no_question,
        "passages": prompt.indices,
        "prompt_tokens": len(prompt.ids),
        "prompt_hash": hash_ids(prompt.ids),
        "tokens": len(prompt.ids) + longer,
    }, count


def few_shot_rows(
    rows: Sequence[FormattedRow],
    clean: Mapping[str, CleanRow],
    train: Sequence[FormattedRow],
    count: int,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    params: FormatParams,
) -> tuple[list[FormattedRow], list[int]]:
    """Test rows with `count` examples each, or as many as fit; and how many each row has."""
    made, counts = [], []
    for row in rows:
        examples = choose_examples(row["question"], train, count)
        asked, there = with_examples(row, clean[row["id"]], examples, tokenizer, template, params)
        made.append(asked)
        counts.append(there)
    return made, counts
