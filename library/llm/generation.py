"""Greedy answers."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from library.llm.batching import Batching, pad, run_batches
from library.llm.chat_template import read_answer
from library.llm.sharding import takes_same_steps
from library.records import Answer


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batching: Batching = Batching(),
    name: str = "answers",
) -> list[Answer]:
    """Greedy answers to prompts given as token ids, in their order.

    A `finish_reason` is "stop" at an end-of-turn token, and "length" where `max_new_tokens` cut the
    answer off.
    """
    ends = set(model.generation_config.eos_token_id)

    def work(batch: list[int]) -> list[Answer]:
        ids, mask = pad([prompts[i] for i in batch], tokenizer.pad_token_id, "left", model.device)
        outputs = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            synced_gpus=takes_same_steps(),
        )
        answers: list[Answer] = []
        for output in outputs[:, ids.shape[1] :].tolist():
            end = next((i for i, token in enumerate(output) if token in ends), None)
            answers.append(
                {
                    "prediction": read_answer(tokenizer, output[:end]),
                    "finish_reason": "length" if end is None else "stop",
                    "generated_tokens": len(output) if end is None else end + 1,
                }
            )
        return answers

    return run_batches(name, [len(prompt) + max_new_tokens for prompt in prompts], work, batching)
