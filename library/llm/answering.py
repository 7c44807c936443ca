"""Ask a model the formatted rows: its answers, and the likelihoods of right and wrong answers."""

import math
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from library.errors import InputError
from library.llm.batching import Batching
from library.llm.chat_template import hash_ids, prompt_completion_ids, prompt_ids
from library.llm.generation import generate_answers
from library.llm.likelihoods import score_completions
from library.records import (
    Answer,
    FormattedRow,
    Likelihood,
    Likelihoods,
    Message,
    Prediction,
    QuestionAnswer,
    hash_answers,
)


def prompt_variants(row: FormattedRow) -> dict[str, list[Message]]:
    """The prompts after which a row's answers are scored, by name.

    `question` has passages and question, `no_question` only passages, `bare` neither.
    """
    return {
        "question": row["messages"],
        "no_question": row["messages_no_question"],
        "bare": row["messages_bare"],
    }


GIVEN_TOKENS = 2  # of a paragraph are not scored: the first can be a beginning-of-text token
# prompts that share a prefix are scored together, so that the prefix is read once: with and without
# the question both begin with the passages; the bare prompt shares almost nothing
READ_TOGETHER = (("question", "no_question"), ("bare",))


def given_answers(row: FormattedRow) -> dict[str, str]:
    """A row's own answers by name: positive and, if it has one, negative."""
    answers = {"positive": row["positive"]}
    if row["negative"] is not None:
        answers["negative"] = row["negative"]
    return answers


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[FormattedRow],
    max_new_tokens: int,
    batching: Batching = Batching(),
    name: str = "questions",
) -> list[QuestionAnswer]:
    """Answer the rows' questions without passages, in the rows' order."""
    prompts = [prompt_ids(tokenizer, row["messages_no_context"]) for row in rows]
    answers = generate_answers(
        model, tokenizer, prompts, max_new_tokens, batching, f"{name}-answers"
    )
    return [
        {"id": row["id"], "prompt_hash": hash_ids(prompt), **answer}
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
    ]


def answer_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[FormattedRow],
    max_new_tokens: int,
    batching: Batching = Batching(),
    name: str = "rows",
) -> list[Prediction]:
    """Answer formatted rows, and score their own answers.

    Raises InputError if a prompt is not the one that `format` wrote.
    """
    prompts = [prompt_ids(tokenizer, row["messages"]) for row in rows]
    for row, prompt in zip(rows, prompts, strict=True):
        if hash_ids(prompt) != row["prompt_hash"]:
            raise InputError(
                f"row {row['id']}: the prompt is not the one that format wrote; run `dvc repro`"
            )
    answers = generate_answers(
        model, tokenizer, prompts, max_new_tokens, batching, f"{name}-answers"
    )
    likelihoods = score_rows(model, tokenizer, rows, batching, f"{name}-likelihoods")
    return [
        make_prediction(row, answer, likelihood)
        for row, answer, likelihood in zip(rows, answers, likelihoods, strict=True)
    ]


def make_prediction(
    row: FormattedRow, answer: Answer, likelihood: Likelihoods | None
) -> Prediction:
    """The record of a row's answer and likelihoods."""
    return {
        "id": row["id"],
        "group": row["group"],
        "pair": row["pair"],
        "prompt_hash": row["prompt_hash"],
        "prompt_tokens": row["prompt_tokens"],
        "answers_hash": hash_answers(row["positive"], row["negative"]),
        "passages": row["passages"],
        **answer,
        "likelihood": likelihood,
    }


def score_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    most_tokens: int,
    batching: Batching = Batching(),
    name: str = "text",
) -> list[Likelihood]:
    """Score each paragraph of a text after its first two tokens, without a prompt.

    Of a long paragraph, only the first `most_tokens` tokens count. Raises InputError if a
    likelihood is not finite.
    """
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    encoded = [tokenizer(part)["input_ids"][:most_tokens] for part in paragraphs]
    requests = [[(ids[:GIVEN_TOKENS], ids[GIVEN_TOKENS:])] for ids in encoded]
    requests = [[(given, rest)] for [(given, rest)] in requests if rest]
    found: list[Likelihood] = []
    sums = score_completions(model, tokenizer, requests, batching, name)
    for number, ([(_, ids)], (score,)) in enumerate(zip(requests, sums, strict=True), 1):
        if not math.isfinite(score):
            raise InputError(f"paragraph {number} of the general text: its likelihood is {score}")
        size = len(tokenizer.decode(ids, clean_up_tokenization_spaces=False).encode())
        found.append({"sum": score, "tokens": len(ids), "bytes": size})
    return found


def likelihood_requests(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[FormattedRow]
) -> list[tuple[int, list[tuple[str, str]], list[tuple[list[int], list[int]]]]]:
    """The prompts and answers to score: every row's own answers after each of `prompt_variants`.

    A request has a row's index, its pairs of variant and answer, and their prompts and completions
    as token ids. Prompts that share a prefix are in one request, so that the prefix is read only
    once.
    """
    requests = []
    for index, row in enumerate(rows):
        variants, answers = prompt_variants(row), given_answers(row)
        for together in READ_TOGETHER:
            asked = [(variant, answer) for variant in together for answer in answers]
            ids = [
                prompt_completion_ids(tokenizer, variants[variant], answers[answer])
                for variant, answer in asked
            ]
            requests.append((index, asked, ids))
    return requests


def score_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[FormattedRow],
    batching: Batching = Batching(),
    name: str = "likelihoods",
) -> list[Likelihoods]:
    """Score the rows' own answers after each of `prompt_variants`.

    Raises InputError if a likelihood is not finite.
    """
    found: list[Likelihoods] = [
        {"positive": {}, "negative": None if row["negative"] is None else {}} for row in rows
    ]
    requests = likelihood_requests(tokenizer, rows)
    scores = score_completions(model, tokenizer, [ids for _, _, ids in requests], batching, name)
    for (index, asked, request), sums in zip(requests, scores, strict=True):
        texts = given_answers(rows[index])
        for (variant, answer), (_, completion), score in zip(asked, request, sums, strict=True):
            if not math.isfinite(score):
                raise InputError(
                    f"row {rows[index]['id']}: the likelihood of its {answer} is {score}"
                )
            by_variant = found[index]["positive" if answer == "positive" else "negative"]
            assert by_variant is not None
            by_variant[variant] = {
                "sum": score,
                "tokens": len(completion),
                "bytes": len(texts[answer].encode()),
            }
    return found
