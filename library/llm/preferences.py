"""Preference tuning with TRL's DPO, on right and wrong answers.

It starts from sft's adapter, which is also the reference model.
"""

import logging
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer

from library.corpus.fractions import take_fraction
from library.errors import InputError
from library.files import write_json, write_text
from library.formatted import read_formatted
from library.llm.architectures import count_positions
from library.llm.chat_template import load_tokenizer, prompt_completion_ids
from library.llm.checkpoints import checkpoint_dir
from library.llm.determinism import describe_determinism
from library.llm.devices import describe_device, pick_device
from library.llm.loading import check_artifacts, load_model
from library.llm.memory.measuring import free_memory
from library.llm.memory.planning import LongestLengths, make_settings
from library.llm.patches import set_up_fused_head, use_one_card
from library.llm.processes import start_processes
from library.llm.session import open_session
from library.llm.trainer import EachRowOnce
from library.llm.trainer_callbacks import MarkComplete, Progress
from library.llm.training import history_csv, prepare_adapters, save_adapter, shared_arguments
from library.llm.training_loop import train_within_memory
from library.llm.training_rows import BLANK
from library.params import DpoParams, Params, load_model_file
from library.paths import (
    ADAPTER_DIR,
    BASE_DIR,
    DPO_ADAPTER_DIR,
    DPO_DIR,
    DPO_HISTORY_PATH,
    DPO_MEMORY_PATH,
    DPO_PATH,
    formatted_path,
    other_name,
)
from library.records import DPO, FormattedRow

log = logging.getLogger(__name__)

SAVE_STEPS = 20  # between two checkpoints
POLICY, REFERENCE = "default", "ref"  # TRL's names of the two adapters
MEASURES = ("loss", "rewards/accuracies", "rewards/margins")  # kept of TRL's log


@dataclass(frozen=True)
class PreferenceTask:
    """What to train on, and how; the batch size is chosen separately."""

    tokenizer: PreTrainedTokenizerBase
    pairs: Sequence[FormattedRow]
    params: DpoParams
    gradient_checkpointing: bool
    output_dir: Path


class PreferenceProgress(Progress):
    """A progress bar, with a line for each entry of the log."""

    measure, title = "rewards/margins", "margin of rewards"


class PreferenceTrainer(EachRowOnce, DPOTrainer):  # type: ignore[misc]  # TRL ships no types
    """A DPOTrainer with each pair once an epoch and an error if a loss is not finite.

    The blanks that fill an epoch's last step are pairs of two empty answers. They have no gradient;
    in that step's logged loss they count as undecided.
    """

    stage = DPO
    _total_train_tokens: int

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """The pairs unchanged: TRL would tokenize them with the chat template, and train on what
        that puts between prompt and answer.
        """
        return dataset

    def list_ids(self, inputs: Mapping[str, torch.Tensor]) -> list[list[int]]:
        """Prompt and right answer of each pair; TRL puts right answers before wrong ones."""
        chosen: list[list[int]] = inputs["input_ids"].chunk(2)[0].tolist()
        return chosen

    def count_tokens(self, row: Mapping[str, Any]) -> int:
        """Tokens of the prompt and the longer answer, to which a batch is padded."""
        return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """TRL's loss, with the blanks taken out of the logged means of rewards."""
        found = super()._compute_loss(model, inputs, return_outputs)
        real = inputs["completion_mask"].any(dim=1).float()
        share = self.accelerator.gather(real).mean().item()
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name in MEASURES[1:]:
            value = metrics[name].pop()
            if share:
                metrics[name].append(value / share)
            elif not metrics[name]:
                del metrics[name]
        return found

    def compute_proof_loss(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The loss of a batch, with the reference's pass; nothing is logged."""
        seen = self._total_train_tokens
        loss: torch.Tensor = self.compute_loss(self.model, inputs)
        self._metrics["train"].clear()
        self._total_train_tokens = seen
        return loss


def choose_pairs(rows: Iterable[FormattedRow]) -> list[FormattedRow]:
    """The rows that have a right and a wrong answer.

    Raises InputError if there are none.
    """
    pairs = [row for row in rows if row["negative"] is not None]
    if not pairs:
        raise InputError(
            "params.yaml: dpo.num_train_epochs: no train row has a wrong answer to be told from "
            "the right one. Name their column in data.columns.negative; if it is named, other rows "
            "give them as right answers, and format took them out: set this to 0"
        )
    return pairs


def to_pairs(rows: Iterable[FormattedRow], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Formatted rows for TRL's collator: token ids of the prompt, and of both answers with their
    end-of-turn token. `input_ids`, with the right answer, identify the row.
    """

    def encode(row: FormattedRow) -> dict[str, Any]:
        prompt, chosen = prompt_completion_ids(tokenizer, row["messages"], row["positive"])
        again, rejected = prompt_completion_ids(tokenizer, row["messages"], str(row["negative"]))
        if again != prompt:
            raise InputError(f"dpo: row {row['id']}: its answers do not share one prompt")
        return pair_record(row["id"], prompt, chosen, rejected)

    return Dataset.from_list(list(map(encode, rows)))


def pair_record(
    key: str, prompt: list[int], chosen: list[int], rejected: list[int]
) -> dict[str, Any]:
    """A pair as a row of the dataset."""
    return {
        "id": key,
        "input_ids": prompt + chosen,
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
    }


def preference_arguments(task: PreferenceTask, per_device: int, device: torch.device) -> DPOConfig:
    """TRL's configuration of a task, with batch size `per_device` in each process."""
    params = task.params
    steps = math.ceil(
        params.num_train_epochs * math.ceil(len(task.pairs) / params.effective_batch_size)
    )
    args = DPOConfig(
        **shared_arguments(task.output_dir, params, per_device, device),
        beta=params.beta,
        lr_scheduler_type="linear",
        max_length=None,  # TRL would truncate
        gradient_checkpointing=task.gradient_checkpointing,
        save_steps=SAVE_STEPS,
        # the last complete one, and the one being written
        save_total_limit=2,
        logging_steps=logging_steps(steps),
    )
    use_one_card(args)
    return args


def logging_steps(steps: int) -> int:
    """How often to log: about ten times, and at each checkpoint, so that a resumed run logs the
    same means.
    """
    return max(every for every in (1, 2, 4, 5, 10, 20) if every == 1 or every <= steps / 10)


def build_preference_trainer(
    model: Any, task: PreferenceTask, per_device: int
) -> PreferenceTrainer:
    """Build a trainer on a base model with the float32 adapter that training continues from.

    The reference is TRL's own frozen copy of that adapter.
    """
    disable_progress_bars()
    device = pick_device()
    trainer = PreferenceTrainer(
        model=model,
        args=preference_arguments(task, per_device, device),
        train_dataset=to_pairs(task.pairs, task.tokenizer),
        processing_class=task.tokenizer,
        callbacks=[MarkComplete()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(PreferenceProgress)
    blank = pair_record(BLANK, [task.tokenizer.pad_token_id], [], [])
    trainer.fill_epochs(blank, task.params.effective_batch_size)
    prepare_adapters(trainer, device)
    restore_policy(trainer.model)
    return trainer


def restore_policy(model: torch.nn.Module) -> None:
    """Reset the policy to the reference's weights.

    TRL rounds a quantized model's policy to bfloat16 after it has copied the reference: see
    `keep_adapter_in_float32`.
    """
    tensors = dict(model.named_parameters())
    for name, value in tensors.items():
        if f".{POLICY}." in name:
            value.data.copy_(tensors[name.replace(f".{POLICY}.", f".{REFERENCE}.")].data)


def load_policy(quantization: Any) -> PreTrainedModel:
    """Load the fine-tuned model with a trainable adapter."""
    return load_model(BASE_DIR, quantization, ADAPTER_DIR, shard=False, trainable=True)


def tune_on_preferences(params: Params) -> None:
    """Train, save adapter, history and memory, and ask the tuned model the test rows.

    A killed run resumes. Raises InputError before anything is loaded if no row has a wrong answer,
    a row has more tokens than the model has positions, or one pair does not fit into memory.
    """
    state = start_processes()
    if state.is_main_process:
        for folder in (DPO_DIR, DPO_PATH.parent):
            shutil.rmtree(folder, ignore_errors=True)
    check_artifacts(BASE_DIR, ADAPTER_DIR)
    model_file = load_model_file(params.model)
    pairs = choose_pairs(take_fraction(read_formatted("train"), params.sft.train_fraction))
    check_positions(pairs)
    log.info("%d train rows have a right and a wrong answer", len(pairs))
    device = pick_device()
    settings = make_settings(model_file, params.sft, device.type)
    settings = replace(settings, triton=set_up_fused_head(device), pairs=True)
    longest = LongestLengths(
        length=max(row["tokens"] for row in pairs),
        answer=max(row["tokens"] - row["prompt_tokens"] for row in pairs),
    )
    checkpoints = checkpoint_dir(
        DPO,
        [formatted_path("train"), BASE_DIR, ADAPTER_DIR],
        [
            params.dpo.model_dump(),
            params.sft.train_fraction,
            model_file.model_dump(),
            describe_device(),
        ],
    )
    task = PreferenceTask(
        tokenizer=load_tokenizer(BASE_DIR),
        pairs=pairs,
        params=params.dpo,
        gradient_checkpointing=settings.gradient_checkpointing,
        output_dir=checkpoints,
    )

    def build(per_device: int, checkpointing: bool) -> PreferenceTrainer:
        model = load_policy(model_file.quantization)
        return build_preference_trainer(
            model, replace(task, gradient_checkpointing=checkpointing), per_device
        )

    trainer, memory = train_within_memory(settings, params.dpo, longest, build, checkpoints)
    if state.is_main_process:
        save_adapter(trainer.model, DPO_ADAPTER_DIR, started_from=ADAPTER_DIR)
        write_text(DPO_HISTORY_PATH, history_csv(trainer.state.log_history, MEASURES))
        write_json(DPO_MEMORY_PATH, {**memory, **describe_determinism(device)})
    state.wait_for_everyone()
    del trainer
    free_memory()  # answering needs it
    session = open_session(
        DPO, DPO_ADAPTER_DIR, rows={"test": read_formatted("test")}, trained=True
    )
    session.close(other_name(DPO), {other_name(DPO): session.answer("test", DPO)})
    session.forget()
    if state.is_main_process:
        write_json(DPO_PATH, {"systems": [DPO]})
        shutil.rmtree(checkpoints)
    state.wait_for_everyone()


def check_positions(pairs: Iterable[FormattedRow]) -> None:
    """Raise InputError if a row with its longer answer exceeds the model's positions."""
    positions = count_positions(BASE_DIR)
    for row in pairs:
        if positions is not None and row["tokens"] > positions:
            raise InputError(
                f"dpo: row {row['id']} takes {row['tokens']} tokens with its longer answer, and "
                f"the model has {positions} positions; lower format.max_length"
            )
