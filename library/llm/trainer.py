"""TRL's trainers, with each row once an epoch and an error if a loss is not finite."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, cast

import torch
from datasets import Dataset, concatenate_datasets
from transformers import TrainerControl
from trl import SFTTrainer

from library.errors import InputError
from library.llm.batching import Batching
from library.llm.likelihoods import score_completions
from library.llm.memory.measuring import measure_peak, resident_bytes
from library.llm.sharding import find_sharding
from library.llm.trainer_callbacks import AdvanceEpoch
from library.llm.training_rows import BLANK, IGNORED, EpochSampler


class EachRowOnce:
    """A mixin for TRL's trainers: each row once an epoch, finite losses, and a memory check.

    List it before TRL's trainer among a class's bases. `stage` begins its messages. Each row has an
    `id`, and `input_ids` by which it is found.
    """

    stage = "sft"
    args: Any
    model: Any
    state: Any
    accelerator: Any
    data_collator: Any
    train_dataset: Dataset

    def fill_epochs(self, blank: Mapping[str, Any], effective_batch_size: int) -> None:
        """Append the blank row with which EpochSampler fills the last step of an epoch.

        The dataset keeps only the blank's columns.
        """
        rows: Dataset = self.train_dataset.select_columns(list(blank))
        self.order = EpochSampler(len(rows), self.args.seed, effective_batch_size)
        cast(Any, self).add_callback(AdvanceEpoch(self.order))
        self.train_dataset = concatenate_datasets(
            [rows, Dataset.from_list([dict(blank)], features=rows.features)]
        )

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """Leave a model that will be sharded where it is: whole, it may not fit."""
        if find_sharding() is None:
            cast(Any, super())._move_model_to_device(model, device)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochSampler:
        return self.order

    def list_ids(self, inputs: Mapping[str, torch.Tensor]) -> list[list[int]]:
        """The input ids of a batch, row by row, possibly padded."""
        return split_batch(inputs)

    def count_tokens(self, row: Mapping[str, Any]) -> int:
        """Tokens of a dataset row in a batch."""
        return len(row["input_ids"])

    def training_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Run the forward and backward pass of one batch.

        Raises InputError if its loss is not finite.
        """
        ids = self.list_ids(inputs)  # read first, because the model may change the mapping
        loss: torch.Tensor = cast(Any, super()).training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            rows = ", ".join(row for row in find_row_ids(self.train_dataset, ids) if row != BLANK)
            raise InputError(
                f"{self.stage}: the loss is {loss.item()} at step {self.state.global_step + 1}, "
                f"rows {rows}"
            )
        return loss

    def compute_proof_loss(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The loss of a batch, computed with everything that a training step needs."""
        raise NotImplementedError

    def measure_training_step(self) -> int:
        """The most bytes in tensors during one whole optimizer step on the longest train rows.

        Weights and random state stay as they were. The step is as large as any: Adam's moments are
        there, and so are earlier gradients if several batches make a step. Raises InputError if the
        loss of these rows is not finite, torch.OutOfMemoryError if the step does not fit.
        """
        if self.args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs
            )
        *rows, blank = self.train_dataset
        by_length = sorted(rows, key=lambda row: -self.count_tokens(row))[
            : self.args.per_device_train_batch_size
        ]
        blanks = [blank] * (self.args.per_device_train_batch_size - len(by_length))
        inputs = cast(Any, self)._prepare_inputs(self.data_collator([*by_length, *blanks]))
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        before = [parameter.detach().to("cpu", copy=True) for parameter in trainable]
        resident = 0 if self.model.device.type == "cuda" else resident_bytes(self.model)

        def step() -> None:
            self.model.train()
            optimizer = torch.optim.AdamW(trainable, lr=self.args.learning_rate)
            for parameter in trainable:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            if self.args.gradient_accumulation_steps == 1:
                optimizer.zero_grad()
            with (
                torch.random.fork_rng(
                    [self.model.device] if self.model.device.type == "cuda" else []
                ),
                self.accelerator.autocast(),
            ):
                loss: Any = self.compute_proof_loss(inputs)
            if not torch.isfinite(loss):
                raise InputError(
                    f"{self.stage}: the loss of the longest rows, "
                    f"{', '.join(row['id'] for row in by_length)}, is {loss.item()}"
                )
            loss.backward()
            optimizer.step()

        try:
            return resident + measure_peak(self.model.device, step)
        finally:
            for parameter, value in zip(trainable, before, strict=True):
                parameter.grad = None
                parameter.data.copy_(value)


class CheckedTrainer(EachRowOnce, SFTTrainer):  # type: ignore[misc]  # TRL ships no types
    """An SFTTrainer with each row once an epoch and an error if a loss is not finite."""

    control: TrainerControl

    def add_blank(self, pad_token_id: int, effective_batch_size: int) -> None:
        """Append the row without a label that fills the last step of an epoch: see EpochSampler."""
        blank = {"id": BLANK, "input_ids": [pad_token_id], "labels": [IGNORED]}
        self.fill_epochs(blank, effective_batch_size)

    def compute_proof_loss(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The loss of a batch, computed by the fused head."""
        loss: torch.Tensor = self.model(**inputs, use_cache=False, fused_lm_head=True).loss
        return loss

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: Sequence[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The validation loss: the mean of the rows' own losses, as answers are scored.

        A batch takes as many tokens as one in training. transformers averages over the tokens of
        each batch, so its loss, which selects the adapter, would depend on which rows share a
        batch. Raises InputError if a loss is not finite.
        """
        self.model.eval()
        rows = list(self.eval_dataset if eval_dataset is None else eval_dataset)
        requests = []
        for row in rows:
            start = sum(label == IGNORED for label in row["labels"])
            requests.append([(row["input_ids"][:start], row["input_ids"][start:])])
        longest = max(len(row["input_ids"]) for row in (*self.train_dataset, *rows))
        batching = Batching(self.args.per_device_train_batch_size * longest, shown=False)
        with self.accelerator.autocast():
            sums = score_completions(
                *(self.model, self.processing_class, requests, batching, "validation")
            )
        losses = [
            -score / len(completion)
            for ((_, completion),), (score,) in zip(requests, sums, strict=True)
        ]
        for row, loss in zip(rows, losses, strict=True):
            if not math.isfinite(loss):
                raise InputError(
                    f"sft: the validation loss is {loss} at step {self.state.global_step}, row "
                    f"{row['id']}"
                )
        metrics = {f"{metric_key_prefix}_loss": mean(losses)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def split_batch(inputs: Mapping[str, torch.Tensor]) -> list[list[int]]:
    """The input ids of a batch, row by row.

    In a batch without padding, a row begins wherever positions restart.
    """
    if "attention_mask" in inputs:
        return cast(list[list[int]], inputs["input_ids"].tolist())
    starts = (inputs["position_ids"][0] == 0).nonzero()[1:, 0].tolist()
    return [part.tolist() for part in inputs["input_ids"][0].tensor_split(starts)]


def find_row_ids(dataset: Dataset, batch: Sequence[Sequence[int]]) -> list[str]:
    """The `id` of the dataset row for each padded row of input ids."""
    known = {tuple(row["input_ids"]): str(row["id"]) for row in dataset}
    longest = max(map(len, known))

    def find(ids: Sequence[int]) -> str:
        for end in range(min(len(ids), longest), 0, -1):
            if (beginning := tuple(ids[:end])) in known:
                return known[beginning]
        return "unknown"

    return [find(ids) for ids in batch]
