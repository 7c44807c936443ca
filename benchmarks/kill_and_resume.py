"""Kill `sft` and `predict` at random moments, ten times each; do they end like an undisturbed run?

    python -m benchmarks.kill_and_resume [KILLS]

After `dvc repro`, in its own folder, with the default data and model, one epoch and a checkpoint
every ten steps: first an undisturbed run, then one that is killed (SIGKILL) after a random time and
started again, anywhere from its first import to its last write.

Writes benchmarks/kill_and_resume.json.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.data_path import ROOT
from library.files import hash_file, write_json

OUTPUTS = {
    "sft": [
        "artifacts/adapter/adapter_model.safetensors",
        "artifacts/adapter/adapter_config.json",
        "reports/sft_history.csv",
    ],
    "predict": ["data/predictions/sft.jsonl", "data/predictions/sft_train.jsonl"],
}


def start(stage: str, folder: Path) -> subprocess.Popen[str]:
    """Start a stage as its own process, with its output in a file."""
    with (folder / "log.txt").open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=folder,
            stdout=file,
            stderr=file,
            text=True,
        )


def torment(stage: str, folder: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Run a stage to its end through `kills` kills: their times, the whole time, and equality of
    outputs.
    """
    for path in OUTPUTS[stage]:
        (folder / path).unlink(missing_ok=True)
    began = time.perf_counter()
    process = start(stage, folder)
    assert process.wait() == 0, (folder / "log.txt").read_text()[-2000:]
    whole = time.perf_counter() - began
    undisturbed = {path: hash_file(folder / path) for path in OUTPUTS[stage]}
    for path in OUTPUTS[stage]:
        (folder / path).unlink()
    killed_after: list[float] = []
    began = time.perf_counter()
    while True:
        process = start(stage, folder)
        # longer and longer, so that it gets on between kills, and is killed in all that it does
        wait = (
            draw.uniform(0, whole * (0.1 + 0.8 * len(killed_after) / kills))
            if len(killed_after) < kills
            else None
        )
        try:
            assert process.wait(timeout=wait) == 0, (folder / "log.txt").read_text()[-2000:]
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed_after.append(round(wait, 1))
            print(stage, "killed after", killed_after[-1], flush=True)
    said = (folder / "log.txt").read_text()
    return {
        "undisturbed_seconds": round(whole, 1),
        "killed_after_seconds": killed_after,
        "seconds_in_all": round(time.perf_counter() - began, 1),
        "went_on": said.count("resuming from ") + said.count(": resuming, "),
        "same_bytes": {
            path: hash_file(folder / path) == expected for path, expected in undisturbed.items()
        },
    }


def prepare(folder: Path) -> None:
    """Copy the default run's files into a folder, with one epoch and a checkpoint every ten
    steps.
    """
    for part in (
        "library",
        "standin",
        "stages",
        "models",
        "data",
        "artifacts",
        "reports",
        "metrics",
    ):
        shutil.copytree(ROOT / part, folder / part)
    params = (ROOT / "params.yaml").read_text()
    for key, value in {"num_train_epochs": 1, "eval_steps": 10}.items():
        params, count = re.subn(rf"^  {key}: .*$", f"  {key}: {value}", params, flags=re.MULTILINE)
        assert count == 1, key
    (folder / "params.yaml").write_text(params)


def main() -> None:
    """Torment both stages and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kills", type=int, nargs="?", default=10)
    kills = parser.parse_args().kills
    draw = random.Random(7)
    record: dict[str, Any] = {"kills": kills}
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        prepare(folder)
        for stage in OUTPUTS:
            record[stage] = torment(stage, folder, kills, draw)
            (folder / "log.txt").unlink()
    record["machine"] = {
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "torch": version("torch"),
    }
    write_json(Path("benchmarks/kill_and_resume.json"), record)
    print(record)


if __name__ == "__main__":
    main()
