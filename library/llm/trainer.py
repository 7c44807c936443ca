"""TRL's trainers, held to every row once an epoch and to losses that are finite."""

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
    """What stands before one of TRL's trainers among a class's bases: each row once an epoch,
    losses that are finite, and a step that proves the memory.

    `stage` begins its messages. Its rows have an `id`, and `input_ids` by which they are found.
    """

    stage = "sft"
    args: Any
    model: Any
    state: Any
    accelerator: Any
    data_collator: Any
    train_dataset: Dataset

    def fill_epochs(self, blank: Mapping[str, Any], effective_batch_size: int) -> None:
        """Append the row that EpochSampler fills the last step of an epoch with; of the others its
        columns are kept.
        """
        rows: Dataset = self.train_dataset.select_columns(list(blank))
        self.order = EpochSampler(len(rows), self.args.seed, effective_batch_size)
        cast(Any, self).add_callback(AdvanceEpoch(self.order))
        self.train_dataset = concatenate_datasets(
            [rows, Dataset.from_list([dict(blank)], features=rows.features)]
        )

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """Leave a model where it is that is sharded before it fits."""
        if find_sharding() is None:
            cast(Any, super())._move_model_to_device(model, device)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochSampler:
        return self.order

    def list_ids(self, inputs: Mapping[str, torch.Tensor]) -> list[list[int]]:
        """The input ids of a batch row by row, maybe padded."""
        return split_batch(inputs)

    def count_tokens(self, row: Mapping[str, Any]) -> int:
        """Tokens that a row of the dataset takes in a batch."""
        return len(row["input_ids"])

    def training_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """One forward and backward pass of one batch.

        Raises InputError where its loss is not finite.
        """
        ids = self.list_ids(inputs)  # before the model may change the mapping
        loss: torch.Tensor = cast(Any, super()).training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            rows = ", ".join(row for row in find_row_ids(self.train_dataset, ids) if row != BLANK)
            raise InputError(
                f"{self.stage}: the loss is {loss.item()} at step {self.state.global_step + 1}, "
                f"rows {rows}"
            )
        return loss

    def compute_proof_loss(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The loss of a batch, by all that a training step computes."""
        raise NotImplementedError

    def measure_training_step(self) -> int:
        """The most bytes in tensors during one whole optimizer step on the longest train rows.

        Nothing remains of it. It is a step in the midst of training: Adam's moments are there, and
        where several batches make a step also the gradients of those before. Raises InputError
        where the loss of these rows is not finite, torch.OutOfMemoryError where the step does not
        fit.
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
    """An SFTTrainer that sees each row once an epoch, and ends at a loss that is not finite."""

    control: TrainerControl

    def add_blank(self, pad_token_id: int, effective_batch_size: int) -> None:
        """Append the row without a label that EpochSampler fills the last step of an epoch with."""
        blank = {"id": BLANK, "input_ids": [pad_token_id], "labels": [IGNORED]}
        self.fill_epochs(blank, effective_batch_size)

    def compute_proof_loss(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The loss of a batch by the fused head."""
        loss: torch.Tensor = self.model(**inputs, use_cache=False, fused_lm_head=True).loss
        return loss

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: Sequence[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The validation loss: the mean over rows of each row's own, by what scores answers, as
        many rows at a time as a training step takes tokens.

        transformers' own would take the mean over the tokens of a batch, so that the loss that
        chooses the adapter would depend on which rows share one. Raises InputError where it is not
        finite.
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
    """The input ids of a batch row by row.

    A batch without padding is one row in which positions begin anew.
    """
    if "attention_mask" in inputs:
        return cast(list[list[int]], inputs["input_ids"].tolist())
    starts = (inputs["position_ids"][0] == 0).nonzero()[1:, 0].tolist()
    return [part.tolist() for part in inputs["input_ids"][0].tensor_split(starts)]


def find_row_ids(dataset: Dataset, batch: Sequence[Sequence[int]]) -> list[str]:
    """The `id` of the dataset's row behind each padded row of input ids."""
    known = {tuple(row["input_ids"]): str(row["id"]) for row in dataset}
    longest = max(map(len, known))

    def find(ids: Sequence[int]) -> str:
        for end in range(min(len(ids), longest), 0, -1):
            if (beginning := tuple(ids[:end])) in known:
                return known[beginning]
        return "unknown"

    return [find(ids) for ids in batch]
