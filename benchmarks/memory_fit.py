"""Where the coefficients of library.llm.memory.formula come from, and how far its predictions are
off for models they were not fitted to.

    python -m benchmarks.memory_fit

On a CPU, in bfloat16 under autocast and in float32: fits bytes per token to the peaks of small
models of several widths and architectures, by least squares, then predicts the peaks of other
widths, depths, lengths, batches and vocabularies. Training in bfloat16 is also tried as it is on
CUDA, where PEFT sees autocast and makes no copies in float32. This tests how the formula is built;
what CUDA's own kernels add is for benchmarks/gpu_memory.py to say. 154 peaks: 16 minutes on a core
shared with other work. Writes benchmarks/memory_fit.json.
"""

import argparse
import contextlib
import dataclasses
import datetime
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args
from unittest import mock

import numpy as np
import torch
import trl.trainer.utils
from peft import LoraConfig, get_peft_model
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from benchmarks import gpu_memory
from benchmarks.gpu_memory import QWEN, build_model, make_trainer, random_rows, score
from library.llm.memory import formula
from library.llm.memory.measuring import measure_peak

CPU = torch.device("cpu")
ADAPTER = formula.Adapter(r=16, target_modules="all-linear")
TYPES = (torch.bfloat16, torch.float32)
WIDTHS = ("hidden", "query", "intermediate", "key_value", "normed")
# columns of the output embedding at a time: so few that a layer takes more than the head
NARROW_HEAD = 64
# of logits at a time: less than there are
SCORING_HEAD_BYTES = {NARROW_HEAD: 2**16, formula.HEAD_COLUMNS: 2**22}
STEPS = 2  # from the second on, Adam's moments are there

AS_ON_CUDA: Literal["checkpointed as on CUDA"] = "checkpointed as on CUDA"
What = Literal["checkpointed", "checkpointed as on CUDA", "kept", "answering"]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What one peak is measured of."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    tokens: int = 2048
    rows: int = 1
    vocabulary: int = 64
    head_columns: int = NARROW_HEAD
    model_type: str = "qwen2"
    head_size: int | None = None  # in place of the width over the heads

    @property
    def answer(self) -> int:
        """Tokens with a loss; on a CPU the head computes all the same."""
        return self.tokens // 8

    @property
    def config(self) -> PreTrainedConfig:
        """Of its architecture."""
        shape = {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
        }
        heads = {"num_attention_heads": self.heads, "num_key_value_heads": self.key_value_heads}
        if self.head_size is not None:
            heads["head_dim"] = self.head_size
        kind = QWEN | {"model_type": self.model_type}
        return AutoConfig.for_model(
            **kind, **shape, **heads, vocab_size=self.vocabulary, tie_word_embeddings=True
        )


FITTED = [
    Shape(256, 1024, 2, 4, 1),
    Shape(256, 1024, 4, 4, 1),
    Shape(256, 1024, 2, 4, 4),
    Shape(256, 2048, 2, 4, 1),
    Shape(512, 1024, 2, 8, 2),
    Shape(512, 2048, 2, 8, 2),
    # queries are wider than the model, or each head's queries and keys are normalized, or outputs
    Shape(256, 1024, 2, 8, 1, model_type="llama", head_size=64),
    Shape(256, 768, 2, 8, 2, model_type="llama", head_size=64),
    Shape(256, 1024, 2, 4, 1, model_type="qwen3", head_size=128),
    Shape(256, 768, 2, 4, 2, model_type="qwen3", head_size=128),
    Shape(256, 1536, 2, 4, 1, model_type="gemma3_text", head_size=64),
    Shape(320, 1920, 2, 4, 1, model_type="gemma3_text", head_size=64),
]
CHECKED = [
    Shape(384, 2048, 3, 6, 2, tokens=1024),
    Shape(448, 2432, 3, 7, 1, tokens=1536),
    Shape(192, 1024, 4, 3, 3, tokens=640, rows=4),
    Shape(320, 1280, 2, 5, 1, tokens=512, vocabulary=20_000, head_columns=formula.HEAD_COLUMNS),
    Shape(
        192, 768, 4, 3, 1, tokens=256, rows=4, vocabulary=12_000, head_columns=formula.HEAD_COLUMNS
    ),
    # in the proportions of Llama 3.2 1B and 3B, Qwen3 0.6B and 4B, and Gemma 3 1B
    Shape(512, 2048, 2, 8, 2, tokens=1024, model_type="llama"),
    Shape(384, 1024, 3, 3, 1, tokens=1024, model_type="llama", head_size=128),
    Shape(256, 768, 3, 4, 2, tokens=1024, model_type="qwen3", head_size=128),
    Shape(320, 1216, 3, 4, 1, tokens=1024, model_type="qwen3", head_size=128),
    Shape(288, 1728, 3, 2, 1, tokens=1024, model_type="gemma3_text", head_size=128),
]


def measure(shape: Shape, dtype: torch.dtype, what: What, use_dora: bool = False) -> int:
    """Most bytes in tensors beyond the weights: in training with or without checkpoints, or in
    scoring two answers to each prompt.

    Several rows are of different lengths, as in a real batch, so that there is padding and a mask.
    Answers are scored, not generated: that reads the prompts in the same way and then takes more,
    except that PyTorch's bfloat16 on a CPU copies the whole output embedding for each row of which
    it computes one position's logits; the pipeline computes in float32 there.
    """
    rows = random_rows(shape.rows * STEPS, shape.tokens, shape.answer, shape.vocabulary)
    rows = [
        {name: ids[index % shape.rows :] for name, ids in row.items()}
        for index, row in enumerate(rows)
    ]
    # the trainer prints its losses
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        model = build_model(shape.config, CPU, dtype)
        if what != "answering":
            checkpointing = what != "kept"
            trainer = make_trainer(
                *(model, rows, folder, shape.rows, 1, checkpointing), use_dora=use_dora
            )
            return measure_peak(CPU, trainer.train)
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear", use_dora=use_dora
    )
    adapted = get_peft_model(model, adapter).eval()
    padding = [shape.tokens - len(row["input_ids"]) for row in rows[: shape.rows]]
    ids = torch.tensor(
        [[0] * missing + row["input_ids"] for missing, row in zip(padding, rows, strict=False)]
    )
    mask = torch.tensor([[0] * missing + [1] * (shape.tokens - missing) for missing in padding])
    answers = ids[:, -shape.answer :].repeat_interleave(2, dim=0)
    return measure_peak(CPU, lambda: score(adapted, ids, mask, answers))


def predict(
    shape: Shape, dtype: torch.dtype, what: What, adapter: formula.Adapter = ADAPTER
) -> tuple[int, formula.MemoryEstimate]:
    """The same by library.llm.memory.formula, without the adapter; and the whole estimate."""
    sizes = formula.measure_sizes(shape.config, adapter)
    setting = formula.ComputeSettings("nf4", what != "kept", adapter, dtype, "cpu")
    if what == "answering":
        found = formula.predict_answering(sizes, setting, shape.rows, shape.tokens, shape.answer)
    else:
        found = formula.predict_training(sizes, setting, shape.rows, shape.tokens, shape.answer)
    return found.peak - found.weights - 4 * sizes.lora, found


@contextlib.contextmanager
def seen_autocast(what: What) -> Iterator[None]:
    """Have PEFT see autocast on the CPU where that is asked for, and its coefficients taken."""
    if what != AS_ON_CUDA:
        yield
        return
    enabled = torch.is_autocast_enabled
    with (
        mock.patch.object(torch, "is_autocast_enabled", lambda kind="cpu": enabled(kind)),
        mock.patch.dict(formula.BACKWARD, {2: formula.CUDA_BACKWARD}),
    ):
        yield


@contextlib.contextmanager
def head_of(shape: Shape) -> Iterator[None]:
    """Have the head computed, and predicted, in tiles of the shape's columns."""
    scoring = SCORING_HEAD_BYTES[shape.head_columns]
    with (
        mock.patch.object(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", shape.head_columns),
        mock.patch.multiple(formula, HEAD_COLUMNS=shape.head_columns, SCORING_HEAD_BYTES=scoring),
        mock.patch.object(gpu_memory, "SCORING_HEAD_BYTES", scoring),
    ):
        yield


def measure_for_fit(shape: Shape, dtype: torch.dtype, what: What) -> tuple[list[float], float]:
    """Widths, and elements for each token beyond what is known without a fit: an equation of the
    least squares.

    Known are checkpoints or keys and values, Adam's moments and one layer's gradients, and one
    linear layer's weights put back into the computing type; where nothing is recomputed also what
    is alive in the last layer's backward pass, by the formula.
    """
    sizes = formula.measure_sizes(shape.config, ADAPTER)
    widths = [float(getattr(sizes, width)) for width in WIDTHS]
    size, layers = dtype.itemsize, shape.layers
    per_token: float = layers * (2 * sizes.key_value if what == "answering" else sizes.hidden)
    if what == "kept":
        per_token = sizes.per_token(formula.BACKWARD[size])
    known: float = shape.tokens * size * per_token
    if what != "answering":
        known += sizes.lora * (8 + 4 / layers) + sizes.hidden * sizes.intermediate * size
    # without checkpoints each layer but the last counts; else one layer, and what is there once
    columns = [(layers - 1) * width for width in widths] if what == "kept" else [*widths, 1.0]
    return columns, (measure(shape, dtype, what) - known) / (shape.tokens * size)


def check(shape: Shape, dtype: torch.dtype, what: What) -> dict[str, Any]:
    """Predicted and measured bytes beyond the weights and the adapter, which are there before."""
    predicted, prediction = predict(shape, dtype, what)
    measured = measure(shape, dtype, what)
    return {
        **dataclasses.asdict(shape),
        "larger": "layer" if prediction.layer >= prediction.head else "head",
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "difference_percent": round(100 * (predicted / measured - 1), 1),
    }


def main() -> None:
    """Fit, check, print and record."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.memory_fit", description=__doc__.partition("\n")[0]
    ).parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    held = {
        "checkpointed": formula.BACKWARD,
        AS_ON_CUDA: {2: formula.CUDA_BACKWARD},
        "kept": formula.KEPT,
        "answering": formula.FORWARD,
    }
    kinds: list[tuple[What, torch.dtype]] = [
        (what, dtype) for what in get_args(What) for dtype in TYPES if dtype.itemsize in held[what]
    ]
    record: dict[str, Any] = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "kinds": [],
    }
    with tqdm(total=len(kinds) * (len(FITTED) + len(CHECKED)), unit="peak") as progress:
        for what, dtype in kinds:
            equations, checks = [], []
            for shape in FITTED:
                with head_of(shape), seen_autocast(what):
                    equations.append(measure_for_fit(shape, dtype, what))
                progress.update()
            for shape in CHECKED:
                with head_of(shape), seen_autocast(what):
                    checks.append(check(shape, dtype, what))
                progress.update()
            columns, values = map(np.array, zip(*equations, strict=True))
            solution = np.linalg.lstsq(columns, values, rcond=None)[0]
            found = {
                width: round(float(factor), 1)
                for width, factor in zip(WIDTHS, solution, strict=False)
            }
            name = str(dtype).removeprefix("torch.")
            record["kinds"].append(
                {
                    "what": what,
                    "dtype": name,
                    "fitted": found,
                    "held": held[what][dtype.itemsize],
                    "checks": checks,
                }
            )
    for kind in record["kinds"]:
        print(
            f"{kind['what']}, {kind['dtype']}: fitted {kind['fitted']}, library.llm.memory.formula "
            f"has {kind['held']}"
        )
        for found in kind["checks"]:
            shape = (
                f"{found['model_type']} {found['hidden']}/{found['intermediate']}, "
                f"{found['layers']} layers, "
                f"{found['key_value_heads']} kv heads"
            )
            print(
                f"  {shape}, {found['rows']} x {found['tokens']} tokens, {found['vocabulary']} "
                f"words ({found['larger']}): {found['predicted_bytes'] / 1e6:.1f} MB for "
                f"{found['measured_bytes'] / 1e6:.1f}, {found['difference_percent']:+}%"
            )
    record["worst_percent"] = max(
        (
            found["difference_percent"]
            for kind in record["kinds"]
            for found in kind["checks"]
            if kind["what"] != AS_ON_CUDA  # whose coefficients count what a card adds
        ),
        key=abs,
    )
    print(f"worst difference: {record['worst_percent']:+}%")
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
