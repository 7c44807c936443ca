"""Generate greedy answers."""

from collections.abc import Collection, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from library.llm.batching import Batching, pad, run_batches
from library.llm.chat_template import read_answer
from library.llm.sharding import takes_same_steps
from library.records import Answer


@torch.no_grad()
def generate_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Collection[int],
    batching: Batching = Batching(),
    name: str = "answers",
) -> list[list[int]]:
    """Generate greedily after prompts; all are token ids, results in the prompts' order.

    Generation stops after one of `ends`, which is included, or after `max_new_tokens`.
    """
    ends = sorted(ends)

    def work(batch: list[int]) -> list[list[int]]:
        ids, mask = pad([prompts[i] for i in batch], tokenizer.pad_token_id, "left", model.device)
        outputs = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends,
            synced_gpus=takes_same_steps(),
        )
        written = outputs[:, ids.shape[1] :].tolist()
        stops = [next((i for i, token in enumerate(one) if token in ends), None) for one in written]
        return [
            one if stop is None else one[: stop + 1]
            for one, stop in zip(written, stops, strict=True)
        ]

    return run_batches(name, [len(prompt) + max_new_tokens for prompt in prompts], work, batching)


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batching: Batching = Batching(),
    name: str = "answers",
) -> list[Answer]:
    """Generate greedy answers to prompts given as token ids, in their order.

    `finish_reason` is "stop" at an end-of-turn token, and "length" if `max_new_tokens` cut the
    answer off.
    """
    ends = model.generation_config.eos_token_id
    written = generate_ids(model, tokenizer, prompts, max_new_tokens, ends, batching, name)
    return [
        {
            "prediction": read_answer(tokenizer, ids[:-1] if (done := ids[-1] in ends) else ids),
            "finish_reason": "stop" if done else "length",
            "generated_tokens": len(ids),
        }
        for ids in written
    ]
