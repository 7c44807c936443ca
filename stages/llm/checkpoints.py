"""Where a stage keeps what it has done so far: outside its outputs, so that it can be killed at any moment and go on."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.llm.manifest import hash_file

CHECKPOINTS_DIR = Path("checkpoints")
CODE_DIR = Path(__file__).parents[1]
LIBRARIES = ("accelerate", "bitsandbytes", "peft", "torch", "transformers", "trl")


def checkpoint_dir(stage: str, input_paths: Sequence[Path], parameters: Any, modules: Sequence[str]) -> Path:
    """The folder for this very run of a stage, made if need be: checkpoints/STAGE-KEY.

    The key is a hash of the input files (folders count file by file), the parameters, the code of `llm` and of the stage, which
    `modules` names, and the libraries' versions. What was kept under another key is never looked at.
    """
    files = [file for path in input_paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
    code = [*sorted((CODE_DIR / "llm").glob("*.py")), CODE_DIR / "params.py", *(CODE_DIR / f"{module}.py" for module in modules)]
    identity = {
        "inputs": [[path.as_posix(), hash_file(path)] for path in files],
        "parameters": parameters,
        "code": [[path.relative_to(CODE_DIR).as_posix(), hash_file(path)] for path in code],
        "versions": {name: version(name) for name in LIBRARIES},
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = CHECKPOINTS_DIR / f"{stage}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def append_line(path: Path, value: Any) -> None:
    """Add a value to a file of JSON lines in one write; after a line that was torn by a kill it starts a new one."""
    with path.open("ab") as file:
        file.write(b"\n" + json.dumps(value).encode() + b"\n")


def read_lines(path: Path) -> Iterator[Any]:
    """The values in a file of JSON lines; a torn line is passed over."""
    for line in path.read_bytes().split(b"\n"):
        if line:
            try:
                yield json.loads(line)
            except ValueError:
                continue
