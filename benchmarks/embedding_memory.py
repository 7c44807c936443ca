"""Where the coefficients of library.embed.memory come from, and how far its predictions are off.

    python -m benchmarks.embedding_memory

On a CPU, in float32 and in bfloat16 under autocast: fits bytes per token to the peaks of small BERT
and Mistral models of several widths, by least squares, then predicts other widths, depths, lengths
and ways of training. What CUDA's own kernels add it does not tell. About two minutes on one core.
Writes benchmarks/embedding_memory.json.
"""

import argparse
import contextlib
import datetime
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from library.embed.memory import (
    ADDED,
    FORWARD,
    KEPT,
    EncoderSettings,
    measure_encoder,
    predict_encoding,
    predict_step,
)
from library.llm.memory.measuring import measure_peak, resident_bytes
from library.params import LoraParams

CPU = torch.device("cpu")
TYPES = (torch.float32, torch.bfloat16)
FITTED = [(256, 1024), (512, 1024), (256, 2048), (512, 2048), (384, 1536)]  # widths
DEPTHS = (2, 5)
WIDTHS = ("hidden", "intermediate")
TEXTS, LENGTH = 8, 128
LORA = LoraParams(r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear")
# architecture, width, of feed-forward layers, layers, heads, texts, tokens, dropped, and how
CHECKED: list[tuple[str, int, int, int, int, int, int, float, str]] = [
    ("bert", 384, 1536, 6, 12, 16, 64, 0.0, "all"),
    ("bert", 384, 1536, 6, 12, 4, 256, 0.1, "all"),
    ("bert", 384, 1536, 6, 12, 4, 256, 0.0, "checkpointed"),
    ("bert", 512, 2048, 8, 8, 4, 384, 0.0, "lora"),
    ("xlm-roberta", 448, 1792, 4, 7, 8, 192, 0.0, "all"),
    ("xlm-roberta", 448, 1792, 4, 7, 8, 192, 0.0, "encoding"),
    ("mistral", 384, 1536, 5, 6, 4, 256, 0.0, "lora"),
    ("mistral", 384, 1536, 5, 6, 4, 256, 0.0, "checkpointed"),
    ("mistral", 384, 1536, 5, 6, 4, 256, 0.0, "encoding"),
]


def make_config(
    kind: str, hidden: int, intermediate: int, layers: int, heads: int, dropped: float = 0.0
) -> PreTrainedConfig:
    """A config with a small vocabulary, with or without attention dropout."""
    own = (
        {"num_key_value_heads": heads, "attention_dropout": dropped}
        if kind == "mistral"
        else {"attention_probs_dropout_prob": dropped, "max_position_embeddings": 514}
    )
    return AutoConfig.for_model(
        kind,
        vocab_size=200,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **own,
    )


def measure(
    config: PreTrainedConfig, texts: int, length: int, dtype: torch.dtype, how: str
) -> tuple[int, int]:
    """The most bytes in tensors during a step, and the bytes of model and gradients before it."""
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="sdpa").train(how != "encoding")
    model.config.use_cache = False
    if how == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if how == "lora":
        model = get_peft_model(model, LoraConfig(**LORA.model_dump())).train()
    trained = [] if how == "encoding" else [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    ids = torch.randint(5, 200, (texts, length))
    mask = torch.ones_like(ids)
    mask[1:, -3:] = 0
    computing = (
        contextlib.nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype=dtype)
    )

    def step() -> None:
        with torch.set_grad_enabled(how != "encoding"), computing:
            out = model(input_ids=ids, attention_mask=mask).last_hidden_state.float().mean(1)
        if how != "encoding":
            out.square().sum().backward()

    held = resident_bytes(model)
    return measure_peak(CPU, step), held


def fit(kind: str, dtype: torch.dtype) -> dict[str, float]:
    """Bytes per token and element: kept by each layer, added by the last one, and taken by a layer
    without gradients.
    """
    equations, values, without = [], [], []
    for (hidden, intermediate), layers in itertools.product(FITTED, DEPTHS):
        config = make_config(kind, hidden, intermediate, layers, 4)
        peak, _ = measure(config, TEXTS, LENGTH, dtype, "all")
        if dtype == torch.bfloat16:
            peak -= 2 * measure_encoder(config, None).linear
        equations.append([layers * hidden, layers * intermediate, hidden, intermediate])
        values.append(peak / (TEXTS * LENGTH))
        peak, _ = measure(config, TEXTS, LENGTH, dtype, "encoding")
        without.append(peak / (TEXTS * LENGTH))
    table = np.array(equations)
    solution = [
        *np.linalg.lstsq(table, np.array(values), rcond=None)[0],
        *np.linalg.lstsq(table[:, 2:], np.array(without), rcond=None)[0],
    ]
    names = [f"{what} {width}" for what in ("kept", "added", "forward") for width in WIDTHS]
    return {name: round(float(value), 1) for name, value in zip(names, solution, strict=True)}


def check(shape: tuple[Any, ...], dtype: torch.dtype) -> dict[str, Any]:
    """Predicted and measured bytes of one step, without Adam's moments."""
    kind, hidden, intermediate, layers, heads, texts, length, dropped, how = shape
    config = make_config(kind, hidden, intermediate, layers, heads, dropped)
    sizes = measure_encoder(config, LORA if how == "lora" else None)
    settings = EncoderSettings(
        nf4=False,
        gradient_checkpointing=how == "checkpointed",
        all_weights=how != "lora",
        weight_bytes=4,
        computing_bytes=dtype.itemsize,
        device_type="cpu",
    )
    if how == "encoding":
        predicted = predict_encoding(sizes, settings, texts, length)
    else:
        predicted = predict_step(sizes, settings, texts, length)
    expected = predicted.peak - predicted.trained * 2 // 3  # a third of it or less is gradients
    if how == "lora":
        expected = predicted.peak - 8 * sizes.lora
    peak, held = measure(config, texts, length, dtype, how)
    return {
        "shape": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "predicted_bytes": expected,
        "measured_bytes": peak + held,
        "difference_percent": round(100 * (expected / (peak + held) - 1), 1),
    }


def main() -> None:
    """Fit, check, print and record."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.embedding_memory", description=__doc__.partition("\n")[0]
    ).parse_args()
    fitted = []
    for kind, dtype in itertools.product(("bert", "mistral"), TYPES):
        found = fit(kind, dtype)
        gated, size = kind == "mistral", dtype.itemsize
        held = {"kept": KEPT[gated, size], "added": ADDED[size], "forward": FORWARD[gated]}
        fitted.append({"kind": kind, "dtype": str(dtype), "fitted": found, "held": held})
        print(f"{kind}, {dtype}: fitted {found}, library.embed.memory has {held}")
    checks = []
    for shape in CHECKED:
        for dtype in TYPES if shape[-1] != "encoding" else TYPES[:1]:
            found = check(shape, dtype)
            checks.append(found)
            print(f"{shape}, {found['dtype']}: {found['difference_percent']:+}%")
    worst = max((found["difference_percent"] for found in checks), key=abs)
    print(f"worst difference: {worst:+}%")
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    record = {"date": date, "fitted": fitted, "checks": checks, "worst_percent": worst}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
