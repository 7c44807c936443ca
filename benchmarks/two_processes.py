"""Do two processes give the metrics of one, without a lost or doubled row?

    python -m benchmarks.two_processes

After `dvc repro`, in its own folder, with the default data and model and one epoch: sft, predict
and evaluate in one process, then in two (`LAUNCHER="torchrun --nproc-per-node 2"`).

Writes benchmarks/two_processes.json.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.kill_and_resume import prepare
from library.files import read_jsonl, write_json

LAUNCHER = f"{shlex.quote(sys.executable)} -m torch.distributed.run --standalone --nproc-per-node 2"


def run(folder: Path, launcher: str) -> tuple[dict[str, Any], Any, list[dict[str, Any]]]:
    """Metrics, adapter and predictions of the three stages."""
    for stage in ("sft", "predict", "evaluate"):
        environment = {**os.environ, "LAUNCHER": launcher if stage != "evaluate" else ""}
        subprocess.run(
            [sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=environment, check=True
        )
    metrics = json.loads((folder / "metrics/evaluation.json").read_text())
    return (
        metrics,
        load_file(folder / "artifacts/adapter/adapter_model.safetensors"),
        list(read_jsonl(folder / "data/predictions/sft.jsonl")),
    )


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of nested mappings, by its dotted name."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{name}.{key}".lstrip("."))
    else:
        yield name, value


def main() -> None:
    """Run both and record how far apart they are."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.two_processes", description=__doc__.partition("\n")[0]
    ).parse_args()
    with tempfile.TemporaryDirectory(prefix="two-") as name:
        folder = Path(name)
        prepare(folder)
        one, adapter, predictions = run(folder, "")
        shutil.rmtree(folder / "artifacts/adapter")
        (folder / "data/predictions/sft.jsonl").unlink()
        two, other, again = run(folder, LAUNCHER)
    assert one.keys() == two.keys()
    first, second = dict(leaves(one)), dict(leaves(two))
    apart = {key: abs(value - second[key]) for key, value in first.items() if value != second[key]}
    record = {
        "rows": len(predictions),
        "same_rows_in_order": [row["id"] for row in predictions] == [row["id"] for row in again],
        "same_answers": sum(
            row["prediction"] == same["prediction"]
            for row, same in zip(predictions, again, strict=True)
        ),
        "largest_adapter_difference": max(
            float((value - other[key]).abs().max()) for key, value in adapter.items()
        ),
        "largest_adapter_weight": max(float(value.abs().max()) for value in adapter.values()),
        "metrics_apart": {
            key: round(value, 7)
            for key, value in sorted(apart.items(), key=lambda item: -item[1])[:10]
        },
        "machine": {"cores": os.cpu_count(), "torch": version("torch")},
    }
    write_json(Path("benchmarks/two_processes.json"), record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
