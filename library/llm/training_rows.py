"""The training rows: TRL's dataset, checked, with each row once an epoch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from library.errors import InputError
from library.llm.chat_template import prompt_completion_ids
from library.params import SftParams

IGNORED = -100  # the label that PyTorch's cross entropy ignores
BLANK = "blank"  # the id of the row without a label


def to_dataset(rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Formatted rows as a tokenized TRL dataset, with labels only on the answer and its end-of-turn
    token.

    TRL's own tokenization would also train on what the chat template puts before the answer.
    """

    def encode(row: Mapping[str, Any]) -> dict[str, Any]:
        prompt, completion = prompt_completion_ids(tokenizer, row["messages"], row["positive"])
        labels = [IGNORED] * len(prompt) + completion
        return {"id": row["id"], "input_ids": prompt + completion, "labels": labels}

    return Dataset.from_list(list(map(encode, rows)))


def check_dataset(
    dataset: Dataset,
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> None:
    """Raise InputError if TRL's dataset differs from the rows; each message says how.

    TRL truncates overlong rows at the end, which loses the answer first, and drops rows without
    labels.
    """
    if len(dataset) != len(rows):
        raise InputError(f"sft: {len(rows)} rows went in, {len(dataset)} came out of tokenization")
    for made, row in zip(dataset, rows, strict=True):
        prompt, completion = prompt_completion_ids(tokenizer, row["messages"], row["positive"])
        ids, end = made["input_ids"], len(prompt) + len(completion)
        if ids[: len(prompt)] != prompt:
            raise InputError(
                f"sft: row {row['id']}: the trained prompt is not the prompt that is asked"
            )
        if ids[len(prompt) :] != completion:
            raise InputError(
                f"sft: row {row['id']}: the answer is cut off or changed before training"
            )
        if made["labels"] != [IGNORED] * len(prompt) + completion:
            raise InputError(
                f"sft: row {row['id']}: the loss is not on the answer and its end-of-turn token "
                "alone"
            )
        if end > max_length:
            raise InputError(
                f"sft: row {row['id']}: {end} tokens, format.max_length is {max_length}"
            )


def count_steps(rows: int, params: SftParams) -> int:
    """The number of optimizer steps for training on `rows` rows.

    Raises InputError if the warm-up would not end before training does.
    """
    steps = math.ceil(params.num_train_epochs * math.ceil(rows / params.effective_batch_size))
    if params.warmup_steps >= max(1, steps):
        raise InputError(
            f"params.yaml: sft.warmup_steps: {params.warmup_steps}, but {rows} train rows make "
            f"only {steps} optimizer steps in {params.num_train_epochs:g} epochs of "
            f"{params.effective_batch_size} rows a step; lower it, to 0 if need be"
        )
    return steps


class EpochSampler(Sampler[int]):
    """Each row once an epoch, shuffled by seed and epoch, then blanks.

    Blanks fill the last optimizer step. A blank is the dataset's last row, which has no label. So
    no row is dropped or repeated, and the steps contain the same rows for every batch size and
    number of processes.
    """

    def __init__(self, rows: int, seed: int, effective_batch_size: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0
        self.blanks = -rows % effective_batch_size

    def __len__(self) -> int:
        return self.rows + self.blanks

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.randperm(self.rows, generator=generator).tolist()
        yield from [self.rows] * self.blanks
