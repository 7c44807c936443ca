"""Answers after thinking, which has a token budget of its own and is not part of the answer."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from library.llm.answering import make_prediction
from library.llm.batching import Batching
from library.llm.chat_template import THINK_END, prompt_ids
from library.llm.generation import generate_answers, generate_ids
from library.records import FormattedRow, ThoughtfulPrediction

CLOSING = 8  # most tokens of BREAKS and the end-of-thinking tag together
BREAKS = "\n", "\n\n"  # what models write before the end-of-thinking tag, and before the answer


def answer_after_thoughts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[FormattedRow],
    thinking_tokens: int,
    max_new_tokens: int,
    batching: Batching = Batching(),
    name: str = "rows",
) -> list[ThoughtfulPrediction]:
    """Let a model think about formatted rows, then answer them.

    Thinking takes up to `thinking_tokens`, plus the tokens that close it; if it does not end by
    itself, it is closed there. `tokenizer` is one whose prompts open the thinking
    (`adapt_template`).
    """
    prompts = [prompt_ids(tokenizer, row["messages"]) for row in rows]
    end = tokenizer.convert_tokens_to_ids(THINK_END)
    ends = {end, *model.generation_config.eos_token_id}
    thoughts = generate_ids(
        model, tokenizer, prompts, thinking_tokens, ends, batching, f"{name}-thoughts"
    )
    line, paragraph = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in BREAKS)
    closed = []
    for ids in thoughts:
        before = ids[:-1] if ids[-1] in ends else ids
        closed.append([*before, *([] if ids[-1] == end else line), end, *paragraph])
    answers = generate_answers(
        model,
        tokenizer,
        [[*prompt, *ids] for prompt, ids in zip(prompts, closed, strict=True)],
        max_new_tokens,
        batching,
        f"{name}-answers",
    )
    return [
        {
            **make_prediction(row, answer, None),
            "generated_tokens": len(ids) + answer["generated_tokens"],
            "thoughts": str(tokenizer.decode(ids)).rpartition(THINK_END)[0].strip(),
        }
        for row, ids, answer in zip(rows, closed, answers, strict=True)
    ]
