"""Check that files of answers are as their system wrote them: not edited, not another's."""

from collections.abc import Mapping, Sequence
from typing import Any

from library.errors import InputError
from library.files import hash_file, read_json, read_jsonl
from library.paths import (
    answerer_path,
    answers_name,
    other_name,
    predictions_path,
    seed_name,
)
from library.records import SFT, SYSTEMS, ZEROSHOT, Answerer

ANSWERS = {
    ZEROSHOT: (ZEROSHOT, f"{ZEROSHOT}_train", f"{ZEROSHOT}_general", "no_context"),
    SFT: (SFT, f"{SFT}_train", f"{SFT}_general"),
}


def check_written() -> None:
    """Raise InputError if a file of zero-shot or fine-tuned answers is not the one that its system
    wrote.
    """
    for system in SYSTEMS:
        record = read_json(answerer_path(system))
        for name in ANSWERS[system]:
            check_file(name, record, system)


def read_answers(systems: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read the answers of systems to the test rows, by system and row id.

    Raises InputError if a file is not the one that its system wrote.
    """
    answers = {}
    for system in systems:
        name = answers_name(system)
        check_file(name, read_json(answerer_path(name)), system)
        rows = read_jsonl(predictions_path(name))
        answers[system] = {row["id"]: row["prediction"] for row in rows}
    return answers


def list_answerers(metrics: Mapping[str, Any]) -> list[Answerer]:
    """Read the records of what gave the answers of the systems in metrics/evaluation.json beyond
    zero-shot and fine-tuned: the others, and further seeds.
    """
    names = [
        *map(other_name, metrics.get("others", {})),
        *(seed_name(system) for system in metrics.get("by_seed", {}) if system != SFT),
    ]
    return [read_json(answerer_path(name)) for name in names]


def check_file(name: str, record: Any, system: str) -> None:
    """Raise InputError if a file of answers is not the one in its system's record."""
    path = predictions_path(name)
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `dvc repro`")
    written = record.get("answers") if isinstance(record, dict) else None
    if (written or {}).get(name) != hash_file(path):
        raise InputError(f"{path}: not as {system} wrote it; run `dvc repro`")
