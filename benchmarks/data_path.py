"""Measure how fast `profile` and `clean` are, and how much memory they take, with more and more
rows.

    python -m benchmarks.data_path 500 5000 50000

Builds rows of the reference shape with the sample's generator, runs each stage as its own process
tree in its own folder, and in the same run `ftfy.fix_text` on whole documents for comparison.

Writes benchmarks/data_path.json.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ftfy
import psutil
from ruamel.yaml import YAML

from standin.sample_rows import make_rows

ROOT = Path(__file__).parent.parent
FTFY_BYTES = 10_000_000  # of whole documents: enough for a steady figure


def build_rows(path: Path, count: int) -> list[str]:
    """Write `count` rows as JSON Lines; return about `FTFY_BYTES` of descriptions."""
    documents: list[str] = []
    written, seed, characters = 0, 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < count:
            for row in make_rows(seed)[0][: count - written]:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                written += 1
                if characters < FTFY_BYTES and isinstance(row.get("anchor"), str):
                    documents.append(row["anchor"])
                    characters += len(row["anchor"])
            seed += 1
    return documents


def run_stage(stage: str, folder: Path, size: int) -> dict[str, float]:
    """Run a stage on a file of `size` bytes: seconds, MB/s and peak memory in MB of all its
    processes.

    `peak_mb` counts resident memory, shared pages once (PSS), with pages of memory-mapped files,
    which the system takes back when it needs them. `peak_own_mb` leaves those out. Linux only.
    """
    began = time.monotonic()
    process = psutil.Popen(
        [sys.executable, "-m", f"stages.{stage}"], cwd=folder, stderr=subprocess.DEVNULL
    )
    peaks = dict.fromkeys(("Pss", "Pss_Anon"), 0)
    while process.poll() is None:
        totals = dict.fromkeys(peaks, 0)
        for member in [process, *process.children(recursive=True)]:
            with suppress(OSError):  # it may have ended
                lines = Path(f"/proc/{member.pid}/smaps_rollup").read_text().splitlines()[1:]
                kilobytes = {
                    name: int(value.split()[0])
                    for name, value in (line.split(":") for line in lines)
                }
                totals = {name: total + kilobytes[name] for name, total in totals.items()}
        peaks = {name: max(peak, totals[name]) for name, peak in peaks.items()}
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{stage} failed in {folder}")
    seconds = time.monotonic() - began
    megabytes = {name: round(peak * 1024 / 1e6) for name, peak in peaks.items()}
    return {
        "seconds": round(seconds, 1),
        "mb_per_second": round(size / 1e6 / seconds, 2),
        "peak_mb": megabytes["Pss"],
        "peak_own_mb": megabytes["Pss_Anon"],
    }


def measure(count: int) -> dict[str, Any]:
    """One size: the file's bytes, and for each stage seconds, MB/s and peak memory in MB."""
    with tempfile.TemporaryDirectory(prefix="data-path-") as name:
        folder = Path(name)
        for part in ("library", "standin", "stages", "prompts", "models"):
            shutil.copytree(ROOT / part, folder / part)
        yaml = YAML()
        params = yaml.load(ROOT / "params.yaml")
        params["data"]["path"] = "rows.jsonl"
        yaml.dump(params, folder / "params.yaml")
        subprocess.run(
            [sys.executable, "-m", "stages.base"], cwd=folder, check=True, stderr=subprocess.DEVNULL
        )
        documents = build_rows(folder / "rows.jsonl", count)
        size = (folder / "rows.jsonl").stat().st_size
        result: dict[str, Any] = {"rows": count, "bytes": size}
        for stage in ("profile", "clean"):
            result[stage] = run_stage(stage, folder, size)
        began = time.monotonic()
        for document in documents:
            ftfy.fix_text(document)
        read = sum(len(document.encode()) for document in documents)
        result["ftfy_mb_per_second"] = round(read / 1e6 / (time.monotonic() - began), 2)
        result["clean_to_ftfy"] = round(
            result["clean"]["mb_per_second"] / result["ftfy_mb_per_second"], 1
        )
        return result


def main() -> None:
    """Measure the sizes given on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_path", description="Speed and memory of profile and clean."
    )
    parser.add_argument("rows", type=int, nargs="+", help="such as 500 5000 50000")
    sizes = [measure(count) for count in parser.parse_args().rows]
    for result in sizes:
        print(json.dumps(result))
    processor = platform.processor() or platform.machine()
    record = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": {
            "processor": processor,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "sizes": sizes,
    }
    (ROOT / "benchmarks/data_path.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
