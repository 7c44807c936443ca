"""Ask the model: greedy answers, and how likely it finds given answers. Batches are sorted by length, so little is padding."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Never

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.llm.prompts import hash_ids, prompt_completion_ids, prompt_ids
from stages.run import InputError

HEAD_BYTES = 2**28
WAYS = {"question": "messages", "no_question": "messages_no_question", "bare": "messages_bare"}


def tokens_per_batch() -> int:
    """How many tokens, padding included, go through the model at once: TOKENS_PER_BATCH in the environment, or 8192.

    It depends on the machine's memory and changes no result beyond rounding, so it is no parameter.
    """
    value = os.environ.get("TOKENS_PER_BATCH", "8192")
    if not value.isdigit() or int(value) == 0:
        raise InputError(f"TOKENS_PER_BATCH in the environment: expected a positive whole number, got {value!r}")
    return int(value)


def batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices in batches, longest first, each of at most `limit` tokens when padded to its longest member.

    A member that is longer than the limit makes a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > limit:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Input ids, attention mask and position ids, each (rows, longest), padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "position_ids": positions.to(device)}


def _track(what: str, total: int) -> "tqdm[Never]":
    return tqdm(desc=what, total=total, unit="row", mininterval=2)


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[dict[str, Any]]:
    """Greedy answers to prompts given as token ids, in their order.

    Each is a mapping with `prediction`, `finish_reason` ("stop" at an end-of-turn token, "length" where `max_new_tokens` cut it
    off) and `generated_tokens`, the end-of-turn token included.
    """
    ends = set(model.generation_config.eos_token_id)
    answers: list[dict[str, Any]] = [{} for _ in prompts]
    with _track("answers", len(prompts)) as progress:
        for batch in batches([len(prompt) + max_new_tokens for prompt in prompts], tokens_per_batch()):
            padded = pad_left([prompts[i] for i in batch], tokenizer.pad_token_id, model.device)
            del padded["position_ids"]  # generate derives them from the mask
            outputs = model.generate(**padded, max_new_tokens=max_new_tokens)
            for index, output in zip(batch, outputs[:, padded["input_ids"].shape[1] :].tolist(), strict=True):
                end = next((i for i, token in enumerate(output) if token in ends), None)
                answers[index] = {
                    "prediction": tokenizer.decode(output[:end], skip_special_tokens=True).strip(),
                    "finish_reason": "length" if end is None else "stop",
                    "generated_tokens": len(output) if end is None else end + 1,
                }
            progress.update(len(batch))
    return answers


@torch.inference_mode()
def score_completions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
    """Log-likelihood in nats of each completion after its prompt, both as token ids, summed over the completion's tokens.

    Logits are computed for the completions' positions alone, at most HEAD_BYTES of them at a time and in float32: a vocabulary of
    150,000 makes 600 kB for each token. Raises InputError where an architecture does more to its logits than the output embedding.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder, head = base.get_decoder(), base.get_output_embeddings()
    at_once = max(1, HEAD_BYTES // (4 * head.weight.shape[0]))
    for prompt, _ in requests[:1]:
        ids = torch.tensor([prompt], device=model.device)
        whole = base(input_ids=ids, logits_to_keep=1, use_cache=False).logits[0, -1].float()
        headed = head(decoder(input_ids=ids, use_cache=False).last_hidden_state[0, -1]).float()
        if (whole.log_softmax(-1) - headed.log_softmax(-1)).abs().max() > 0.1:
            raise InputError(f"{type(base).__name__} changes its logits after the output embedding; it can't be scored here")
    scores = [math.nan] * len(requests)
    with _track("likelihoods", len(requests)) as progress:
        for batch in batches([len(prompt) + len(completion) for prompt, completion in requests], tokens_per_batch()):
            rows = [[*requests[i][0], *requests[i][1]] for i in batch]
            padded = pad_left(rows, tokenizer.pad_token_id, model.device)
            hidden = decoder(**padded, use_cache=False).last_hidden_state
            lengths = [len(requests[i][1]) for i in batch]
            before = torch.cat([hidden[row, -length - 1 : -1] for row, length in enumerate(lengths)])
            tokens = torch.tensor([token for i in batch for token in requests[i][1]], device=hidden.device)
            losses = [
                cross_entropy(head(part).float(), wanted, reduction="none")
                for part, wanted in zip(torch.split(before, at_once), torch.split(tokens, at_once), strict=True)
            ]
            for index, part in zip(batch, torch.split(torch.cat(losses).double(), lengths), strict=True):
                scores[index] = -float(part.sum())
            progress.update(len(batch))
    return scores


def answer_questions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], max_new_tokens: int
) -> list[dict[str, Any]]:
    """What a model answers to the rows' questions without any passage: a mapping a row, as `generate_answers` makes them."""
    prompts = [prompt_ids(tokenizer, row["messages_no_context"]) for row in rows]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens)
    return [
        {"id": row["id"], "prompt_hash": hash_ids(prompt), **answer}
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
    ]


def answer_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], max_new_tokens: int
) -> list[dict[str, Any]]:
    """What a model answers to formatted rows, and how likely it finds their positive and negative.

    Likelihoods stand under `likelihood.ANSWER.WAY`, WAY being `question` (passages and question), `no_question` (passages) or
    `bare` (neither): `sum` in nats, `tokens` and `bytes`. Raises InputError where a prompt's tokens are not those that
    `format` counted.
    """
    prompts = [prompt_ids(tokenizer, row["messages"]) for row in rows]
    for row, prompt in zip(rows, prompts, strict=True):
        if hash_ids(prompt) != row["prompt_hash"]:
            raise InputError(f"row {row['id']}: the prompt is not the one that format wrote; run `dvc repro`")
    wanted: list[tuple[int, str, str]] = [
        (index, answer, way)
        for index, row in enumerate(rows)
        for answer in ("positive", "negative")
        if row[answer] is not None
        for way in WAYS
    ]
    requests = [prompt_completion_ids(tokenizer, rows[index][WAYS[way]], rows[index][answer]) for index, answer, way in wanted]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens)
    records = [
        {
            **{key: row[key] for key in ("id", "group", "pair", "prompt_hash", "prompt_tokens", "passages")},
            **answer,
            "likelihood": {"positive": {}, "negative": None if row["negative"] is None else {}},
        }
        for row, answer in zip(rows, answers, strict=True)
    ]
    for (index, answer, way), request, score in zip(wanted, requests, score_completions(model, tokenizer, requests), strict=True):
        if not math.isfinite(score):
            raise InputError(f"row {rows[index]['id']}: the likelihood of its {answer} is {score}")
        size = len(rows[index][answer].encode())
        records[index]["likelihood"][answer][way] = {"sum": score, "tokens": len(request[1]), "bytes": size}
    return records
