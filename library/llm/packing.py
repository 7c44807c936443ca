"""Write a model as a GGUF file with llama.cpp's own converter.

The converter, convert_hf_to_gguf.py, is not a package: it comes with llama.cpp's source.
"""

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from library.errors import InputError

log = logging.getLogger(__name__)

CONVERTER = "convert_hf_to_gguf.py"
TYPES = ("bf16", "f16", "q8_0")
UNKNOWN_TOKENIZER = "pre-tokenizer was not recognized"


@dataclass(frozen=True)
class Packing:
    """How to make a GGUF file: the converter, and the weights' type as llama.cpp names it."""

    converter: Path
    kind: str


def read_packing() -> Packing | None:
    """What GGUF and LLAMA_CPP in the environment ask for; None if they ask for nothing.

    Raises InputError if a type is unknown, or the converter is missing.
    """
    kind, source = os.environ.get("GGUF", ""), os.environ.get("LLAMA_CPP", "")
    if not kind and not source:
        return None
    kind = kind or TYPES[0]
    if kind not in TYPES:
        raise InputError(f"GGUF={kind}: expected {', '.join(TYPES)}")
    if not source:
        raise InputError(
            "LLAMA_CPP is not set: name a folder with llama.cpp's source, whose "
            f"{CONVERTER} writes the GGUF file"
        )
    converter = Path(source).expanduser().resolve() / CONVERTER
    if not converter.is_file():
        raise InputError(f"LLAMA_CPP={source}: no {CONVERTER} in it; it is in llama.cpp's source")
    return Packing(converter, kind)


def pack(folder: Path, path: Path, packing: Packing) -> None:
    """Write a GGUF file of the model in a folder.

    Raises InputError with the converter's last line if it fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, packing.converter, folder.resolve(), "--outtype", packing.kind]
    log.info("converting to %s by %s", path.name, packing.converter)
    ended = subprocess.run(
        [*map(str, command), "--outfile", str(path.resolve())],
        cwd=packing.converter.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode == 0 and path.is_file():
        return
    last = (ended.stderr.strip() or ended.stdout.strip() or "it wrote nothing").splitlines()[-1]
    advice = ""
    if UNKNOWN_TOKENIZER in last:
        advice = ": llama.cpp does not know this model's tokenizer, and can't run the model"
    elif "No module named" in last:
        advice = ": install it with pip install -e '.[gguf]'"
    raise InputError(f"{packing.converter}: {last}{advice}")
