"""Fit DoRA's coefficients in library.llm.memory.formula, and measure their error.

    python -m benchmarks.dora_memory

Measures peaks of small Qwen2 models with LoRA and DoRA on a CPU, in bfloat16 under autocast and in
float32. What DoRA adds is fitted to bytes per token, per element of the widest input squared, and
per element of the largest weight, by least squares of the relative error. 96 peaks take 3 minutes
on one core. Writes benchmarks/dora_memory.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls
from tqdm import tqdm
from transformers.utils import logging

from benchmarks.memory_fit import TYPES, Shape, What, head_of, measure, predict
from library.llm.memory import formula

FITTED = [
    Shape(256, 1024, 2, 4, 1),
    Shape(256, 1024, 4, 4, 1),
    Shape(512, 1024, 2, 8, 2),
    Shape(256, 2048, 2, 4, 1, tokens=512),
    Shape(384, 2048, 3, 6, 2, tokens=256),
    Shape(512, 2048, 2, 8, 2, tokens=1024),
]
CHECKED = [Shape(448, 1792, 3, 7, 1, tokens=768), Shape(320, 1280, 2, 5, 5, tokens=1536)]
ADAPTER = formula.Adapter(r=16, target_modules="all-linear", dora=True)
HELD: dict[What, Any] = {
    "checkpointed": (formula.DORA_BACKWARD, formula.DORA_TRAINING_WEIGHTS),
    "kept": (formula.DORA_KEPT, formula.DORA_TRAINING_WEIGHTS),
    "answering": (formula.DORA_FORWARD, formula.DORA_ANSWERING_WEIGHTS),
}


def fit(what: What, size: int, plain: list[int], dora: list[int]) -> list[float]:
    """Fit DoRA's coefficients.

    Two are per token, for the hidden and intermediate widths. Two are per float32 element, of the
    widest input squared and of the largest weight.
    """
    columns = []
    for shape in FITTED:
        layers = shape.layers if what == "kept" else 1
        tokens = shape.rows * shape.tokens * size * layers
        wide, high = shape.intermediate, shape.hidden
        columns.append([tokens * high, tokens * wide, 4 * wide**2, 4 * wide * high])
    whole = np.array(dora, float)
    solution, _ = nnls(np.array(columns) / whole[:, None], (whole - np.array(plain)) / whole)
    return [round(float(value), 1) for value in solution]


def main() -> None:
    """Fit, check, print and record."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.dora_memory", description=__doc__.partition("\n")[0]
    ).parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    record: list[dict[str, Any]] = []
    shapes = [*FITTED, *CHECKED]
    with tqdm(total=len(HELD) * len(TYPES) * len(shapes) * 2, unit="peak") as progress:
        for what, (per_token, weights) in HELD.items():
            for dtype in TYPES:
                peaks: dict[bool, list[int]] = {False: [], True: []}
                differences = []
                for shape in shapes:
                    with head_of(shape):
                        for dora, found in peaks.items():
                            found.append(measure(shape, dtype, what, dora))
                            progress.update()
                        predicted, _ = predict(shape, dtype, what, ADAPTER)
                    differences.append(round(100 * (predicted / peaks[True][-1] - 1), 1))
                count, size = len(FITTED), dtype.itemsize
                record.append(
                    {
                        "what": what,
                        "dtype": str(dtype).removeprefix("torch."),
                        "fitted": fit(what, size, peaks[False][:count], peaks[True][:count]),
                        "held": [*per_token[size].values(), *weights[size]],
                        "lora_bytes": peaks[False],
                        "dora_bytes": peaks[True],
                        "difference_percent": differences,
                    }
                )
    for kind in record:
        print(
            f"{kind['what']}, {kind['dtype']}: fitted {kind['fitted']}, library.llm.memory.formula "
            f"has {kind['held']}; predictions off by {kind['difference_percent']}%"
        )
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
