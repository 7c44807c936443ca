"""How much slower training and answering are beside one other busy process.

    python -m benchmarks.busy_machine

After `dvc repro`, in a folder of its own, with the default data and model and one epoch: zeroshot
and sft alone, and beside a process that spins on the last of the machine's cores. With the waiting
threads' policy as it is set here (library/__init__.py), and as OpenMP has it. Writes
benchmarks/busy_machine.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.kill_and_resume import prepare
from library.files import write_json

STAGES = ("zeroshot", "sft")
POLICIES = {"as set here": None, "as OpenMP has it": "undefined"}  # no policy: it spins for a while


@contextmanager
def spinning(core: int) -> Iterator[None]:
    """Run a process that keeps one core busy."""
    command = ["taskset", "-c", str(core), sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()


def seconds(folder: Path, stage: str, policy: str | None) -> float:
    """The time a stage takes, its start included."""
    environment = {**os.environ, **({} if policy is None else {"OMP_WAIT_POLICY": policy})}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return round(time.perf_counter() - start, 1)


def main() -> None:
    """Time both stages in both ways and record it."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.busy_machine", description=__doc__.partition("\n")[0]
    ).parse_args()
    cores = os.cpu_count() or 1
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="busy-") as name:
        folder = Path(name)
        prepare(folder)
        for said, policy in POLICIES.items():
            for stage in STAGES:
                alone = seconds(folder, stage, policy)
                with spinning(cores - 1):
                    beside = seconds(folder, stage, policy)
                results.setdefault(said, {})[stage] = {
                    "alone_s": alone,
                    "beside_s": beside,
                    "ratio": round(beside / alone, 2),
                }
                print(f"{said}: {stage} {alone} s alone, {beside} s beside one busy process")
    record = {"cores": cores, "torch": version("torch"), "results": results}
    write_json(Path(__file__).with_suffix(".json"), record)


if __name__ == "__main__":
    main()
