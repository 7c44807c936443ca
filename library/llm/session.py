"""Load a model and its rows, and answer them within memory; a killed run resumes."""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from library.errors import InputError
from library.files import hash_adapter, hash_base, hash_file, read_json, write_json, write_jsonl
from library.formatted import read_formatted
from library.llm.answering import answer_questions, answer_rows, score_text
from library.llm.batching import SECONDS, Batching
from library.llm.chat_template import load_tokenizer
from library.llm.checkpoints import checkpoint_dir
from library.llm.devices import describe_computation, describe_device, pick_device
from library.llm.loading import load_model
from library.llm.memory.measuring import peak_bytes
from library.llm.memory.planning import (
    LongestLengths,
    Way,
    lengths_below,
    make_settings,
    offloaded_ways,
    plan_answering,
    plan_dequantizing,
)
from library.llm.processes import start_processes
from library.params import AnyModel, Params, load_model_file, load_params
from library.paths import (
    BASE_DIR,
    COSTS_PATH,
    answerer_path,
    predictions_path,
)
from library.records import (
    Answerer,
    Dequantizing,
    FormattedRow,
    Likelihood,
    Prediction,
    QuestionAnswer,
)

log = logging.getLogger(__name__)

ASKED = ("test", "train_sample")  # all test rows, and some train rows to show over-fitting


@dataclass(frozen=True)
class AnsweringSession:
    """A model that a stage asks, its rows, and the folder that keeps answers until the end."""

    state: PartialState
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: Mapping[str, Sequence[FormattedRow]]
    general_text: str
    longest: int  # tokens of the longest row that memory was planned for
    max_new_tokens: int
    batching: Batching
    kept_dir: Path
    base_dir: Path
    adapter_dir: Path | None
    dequantized: bool
    trained: bool  # whether this process trained the adapter

    def answer(self, split: str, name: str) -> list[Prediction]:
        """Answer a split's rows, with likelihoods; `name` is the system's, for progress."""
        return answer_rows(
            self.model, self.tokenizer, self.rows[split], self.max_new_tokens, self.batching, name
        )

    def answer_without_context(self, name: str) -> list[QuestionAnswer]:
        """Answer the test questions without their context."""
        return answer_questions(
            self.model, self.tokenizer, self.rows["test"], self.max_new_tokens, self.batching, name
        )

    def score_general_text(self, name: str) -> list[Likelihood]:
        """The likelihood of each paragraph of `evaluate.general_text`, in order."""
        return score_text(
            *(self.model, self.tokenizer, self.general_text, self.longest, self.batching, name)
        )

    def close(self, system: str, predictions: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write predictions by name, and a record of the model that made them.

        The main process writes; the others wait for it.
        """
        if self.state.is_main_process:
            for name, records in predictions.items():
                write_jsonl(predictions_path(name), records)
            adapter_dir = self.adapter_dir
            answerer: Answerer = {
                "base": hash_base(read_json(self.base_dir / "manifest.json")),
                "adapter": None if adapter_dir is None else hash_adapter(adapter_dir),
                "answers": {name: hash_file(predictions_path(name)) for name in predictions},
                **describe_computation(self.model),
                **describe_dequantizing(self.dequantized),
            }
            write_json(answerer_path(system), answerer)
            self._note_costs(predictions)
            cut_off = sum(row["finish_reason"] == "length" for row in predictions[system])
            log.info(
                "%s: %d answers, %d of them cut off at %d tokens",
                *(predictions_path(system), len(predictions[system]), cut_off, self.max_new_tokens),
            )
        self.state.wait_for_everyone()

    def _note_costs(self, predictions: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Record what each system's answers cost; not in DVC, because it differs between runs."""
        costs = read_json(COSTS_PATH) if COSTS_PATH.is_file() else {}
        for name, records in predictions.items():
            system = name.rpartition("/")[2]
            paths = [
                self.kept_dir / f"{system}-{part}{SECONDS}" for part in ("thoughts", "answers")
            ]
            seconds = [read_json(path)["seconds_per_row"] for path in paths if path.is_file()]
            if records and seconds and not system.endswith("_train"):
                costs[system] = {
                    "seconds_per_row": round(sum(seconds), 3),
                    "tokens_per_answer": round(mean(row["generated_tokens"] for row in records), 1),
                    **self._peak(),
                    **describe_computation(self.model),
                }
        write_json(COSTS_PATH, costs)

    def _peak(self) -> dict[str, int]:
        """The peak memory of answering.

        On a CPU only the whole process's peak is known, so it is left out if the process has also
        trained.
        """
        if self.trained and self.model.device.type == "cpu":
            return {}
        return {"peak_mb": round(peak_bytes(self.model.device) / 1e6)}

    def forget(self) -> None:
        """Remove the answers that were kept for resuming."""
        if self.state.is_main_process:
            shutil.rmtree(self.kept_dir)
        self.state.wait_for_everyone()


def describe_dequantizing(once: bool) -> Dequantizing:
    """A record of whether 4-bit weights are dequantized once; empty on a CPU."""
    return {"dequantized": once} if pick_device().type == "cuda" else {}


def plan_rows(
    base_dir: Path,
    model_file: AnyModel,
    params: Params,
    rows: Sequence[FormattedRow],
    thinking_tokens: int = 0,
    instead: str = "model={}",
    shown: bool = True,
) -> tuple[int, int]:
    """Tokens of the longest row, with its answer and thinking, and of a batch.

    Raises InputError if one row does not fit into memory, with what would. Names of other models
    are put into `instead`. Logs the memory if `shown`.
    """
    limit = thinking_tokens + params.format.max_new_tokens
    longest = max(max(row["tokens"], row["prompt_tokens"] + limit) for row in rows)
    settings = make_settings(model_file, params.sft, pick_device().type)
    least = max(row["question_tokens"] for row in rows) + params.format.max_new_tokens
    # another model's tokenizer may make more tokens than format counted
    ratio = max(1.0, (longest - thinking_tokens) / params.format.max_length)

    def shorter() -> Iterator[Way]:
        for length in lengths_below(params.format.max_length, least):
            lengths = LongestLengths(
                min(longest, thinking_tokens + math.ceil(length * ratio)), limit
            )
            yield Way(f"format.max_length={length}", settings, lengths)

    lengths = LongestLengths(longest, limit)
    ways = [offloaded_ways(settings, lengths), shorter()]
    return longest, plan_answering(base_dir, settings, lengths, ways, instead=instead, shown=shown)


def open_session(
    stage: str,
    adapter_dir: Path | None = None,
    base_dir: Path = BASE_DIR,
    model: str | None = None,
    rows: Mapping[str, Sequence[FormattedRow]] | None = None,
    thinking_tokens: int = 0,
    general_text: bool = False,
    trained: bool = False,
) -> AnsweringSession:
    """Load a model to ask it rows for a stage.

    By default it is the base model of params.yaml without an adapter, and the rows are those of
    ASKED. `thinking_tokens` is how many tokens it may think before each answer. `general_text` also
    loads the text to score. `trained` says that this process trained the adapter.

    Raises InputError if one row does not fit into memory, before anything is loaded.
    """
    state = start_processes()
    params = load_params()
    model_file = load_model_file(model or params.model)
    rows = rows or {split: read_formatted(split) for split in ASKED}
    limit = thinking_tokens + params.format.max_new_tokens
    general_path = Path(params.evaluate.general_text)
    if general_text and not general_path.is_file():
        raise InputError(
            f"{general_path}: no such file (evaluate.general_text in params.yaml; the one that "
            "comes with the pipeline is data/general/plain.txt)"
        )
    if (folder := params.evaluate.embedding_model) is not None and not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder (evaluate.embedding_model in params.yaml)")
    every = [row for asked_rows in rows.values() for row in asked_rows]
    longest, tokens = plan_rows(base_dir, model_file, params, every, thinking_tokens)
    settings = make_settings(model_file, params.sft, pick_device().type)
    once = plan_dequantizing(base_dir, settings, LongestLengths(longest, limit), tokens)
    if torch.cuda.is_available():  # the peak of earlier work in this process does not count
        torch.cuda.reset_peak_memory_stats()
    asked = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    kept_dir = checkpoint_dir(
        stage,
        [
            *([general_path] if general_text else []),
            base_dir,
            *([] if adapter_dir is None else [adapter_dir]),
        ],
        [limit, model_file.model_dump(), describe_device(), asked, describe_dequantizing(once)],
    )
    return AnsweringSession(
        state=state,
        model=load_model(base_dir, model_file.quantization, adapter_dir, dequantize=once),
        tokenizer=load_tokenizer(base_dir),
        rows=rows,
        general_text=general_path.read_text(encoding="utf-8") if general_text else "",
        dequantized=once,
        trained=trained,
        longest=longest,
        max_new_tokens=params.format.max_new_tokens,
        batching=Batching(tokens, kept_dir),
        kept_dir=kept_dir,
        base_dir=base_dir,
        adapter_dir=adapter_dir,
    )
