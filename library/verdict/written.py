"""That answers are those that a system wrote: no file is another's, or was edited since."""

from collections.abc import Collection
from typing import Any

from library.errors import InputError
from library.files import hash_file, read_json
from library.paths import answerer_path, predictions_path
from library.records import SFT, SYSTEMS, ZEROSHOT

ANSWERS = {
    ZEROSHOT: (ZEROSHOT, f"{ZEROSHOT}_train", f"{ZEROSHOT}_general", "no_context"),
    SFT: (SFT, f"{SFT}_train", f"{SFT}_general"),
}


def check_written(names: Collection[str] = (*ANSWERS[ZEROSHOT], *ANSWERS[SFT])) -> None:
    """Raise InputError where one of some files of answers is not the one that its system wrote."""
    for system in SYSTEMS:
        record = read_json(answerer_path(system))
        for name in ANSWERS[system]:
            if name in names:
                check_file(name, record, system)


def check_file(name: str, record: Any, system: str) -> None:
    """Raise InputError where a file of answers is not the one that its system's record names."""
    path = predictions_path(name)
    written = record.get("answers") if isinstance(record, dict) else None
    if (written or {}).get(name) != hash_file(path):
        raise InputError(f"{path}: not as {system} wrote it; run `dvc repro`")
