"""How long `evaluate` takes for 10,000 predictions of the reference shape, and how much memory.

    python -m benchmarks.judging

Repeats the default run's test rows and answers under other ids, groups and words until two systems
have answered 5,000 questions, and runs the stage in a folder of its own, with the shipped
parameters (10,000 draws). Needs the default run (`make repro`). Writes benchmarks/judging.json.
"""

import argparse
import datetime
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.data_path import ROOT, run_stage
from library.files import read_jsonl, write_jsonl

ROWS = 5000  # for each of two systems


def rename(record: Mapping[str, Any], copy: int) -> dict[str, Any]:
    """A record with another id, group and pair, and slightly different texts."""
    changed = dict(record)
    for name in ("id", "group", "pair"):
        if record.get(name) is not None:
            changed[name] = f"{record[name]}-{copy}"
    for name in ("anchor", "positive", "negative", "prediction"):
        if record.get(name) is not None:
            changed[name] = f"{record[name]} Copy {copy}."
    return changed


def main() -> None:
    """Build the folder, run the stage, record."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.judging", description=__doc__.partition("\n")[0]
    ).parse_args()
    test = {row["id"] for row in read_jsonl(ROOT / "data/formatted/test.jsonl")}
    copies = math.ceil(ROWS / len(test))
    with tempfile.TemporaryDirectory(prefix="judging-") as name:
        folder = Path(name)
        for part in (
            "library",
            "standin",
            "stages",
            "models",
            "data",
            "metrics",
            "reports",
            "artifacts/base",
        ):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copy(ROOT / "params.yaml", folder)
        paths = [
            "data/formatted/test.jsonl",
            *(f"data/predictions/{system}.jsonl" for system in ("zeroshot", "sft", "no_context")),
        ]
        for path in [*paths, "data/clean/rows.jsonl"]:
            records = [record for record in read_jsonl(ROOT / path) if record["id"] in test]
            # train rows' contexts
            extra = [record for record in read_jsonl(ROOT / path) if record["id"] not in test]
            write_jsonl(
                folder / path,
                [*extra, *(rename(record, copy) for copy in range(copies) for record in records)],
            )
        result = run_stage(
            "evaluate", folder, sum((folder / path).stat().st_size for path in paths)
        )
        judged = json.loads((folder / "metrics/evaluation.json").read_text())["n"]
    record = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "predictions": 2 * judged,
        "seconds": result["seconds"],
        "peak_mb": result["peak_mb"],
    }
    print(json.dumps(record))
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
