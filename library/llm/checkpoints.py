"""Where a stage keeps its progress, so that it can be killed at any moment and resume.

Progress is in checkpoints/, outside the stage's outputs.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from library.files import hash_file
from library.imports import ROOT, computing_modules
from library.paths import CHECKPOINTS_DIR
from library.versions import PACKAGES, package_versions

COMPLETE = "complete"  # the file that marks a whole checkpoint of the trainer


def checkpoint_dir(
    stage: str,
    input_paths: Sequence[Path],
    parameters: Any,
    packages: Sequence[str] = PACKAGES,
) -> Path:
    """The folder for the progress of this run of a stage, created if missing:
    checkpoints/STAGE-KEY.

    The key is a hash of the input files (folders file by file), the parameters, the modules that
    the outputs depend on, and the versions of `packages`. Progress under another key is never used.
    """
    files = [file for path in input_paths for file in _files_of(path)]
    identity = {
        "inputs": [[path.as_posix(), hash_file(path)] for path in files],
        "parameters": parameters,
        "code": [[path.as_posix(), hash_file(ROOT / path)] for path in computing_modules(stage)],
        "versions": package_versions(packages),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = CHECKPOINTS_DIR / f"{stage}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _files_of(path: Path) -> list[Path]:
    return [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]


def find_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint in a folder; incomplete ones are removed."""
    for path in folder.glob("checkpoint-*"):
        if not (path / COMPLETE).exists():
            shutil.rmtree(path, ignore_errors=True)
    return max(
        folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), default=None
    )


def append_line(path: Path, value: Any) -> None:
    """Append a value to a JSON Lines file in one write, on a new line even after a torn one."""
    with path.open("ab") as file:
        file.write(b"\n" + json.dumps(value).encode() + b"\n")


def read_lines(path: Path) -> Iterator[Any]:
    """The values of a JSON Lines file; a torn line is skipped."""
    for line in path.read_bytes().split(b"\n"):
        if line:
            try:
                yield json.loads(line)
            except ValueError:
                continue
