"""Few-shot prompts: train rows before the question, as earlier turns of the conversation."""

from collections.abc import Mapping, Sequence

from jinja2 import Template
from transformers import PreTrainedTokenizerBase

from library.corpus.passages import rank_passages
from library.llm.chat_template import hash_ids, prompt_ids
from library.llm.prompts import build_messages, build_prompt
from library.params import FormatParams
from library.records import CleanRow, FormattedRow, Message

MOST_OF_THE_BUDGET = 0.5  # that examples take where its own passages would fill the prompt


def choose_examples(question: str, train: Sequence[FormattedRow], count: int) -> list[FormattedRow]:
    """The train rows whose questions are most like a question (BM25), the most like it first."""
    ranked = rank_passages([row["question"] for row in train], question)
    return [train[index] for index in ranked[:count]]


def example_turns(template: Template, row: FormattedRow, with_passage: bool) -> list[Message]:
    """A train row as it was asked, with its best passage alone or with none, and its answer."""
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
    """A test row asked after as many examples as there is room for, and how many these are. The one
    that is most like its question stands next to it.

    Room is what its own passages leave of the prompt's budget, or half of that. Where it holds no
    example with its passage, examples are questions and answers alone.
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
    longer = row["tokens"] - row["prompt_tokens"]  # the longer of its answers
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
    """Test rows asked after `count` train rows each, or as many as there is room for; and how many
    each has.
    """
    made, counts = [], []
    for row in rows:
        examples = choose_examples(row["question"], train, count)
        asked, there = with_examples(row, clean[row["id"]], examples, tokenizer, template, params)
        made.append(asked)
        counts.append(there)
    return made, counts
