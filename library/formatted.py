"""Read the formatted rows, and the contexts they belong to, for every stage after `format`."""

from collections.abc import Collection
from typing import cast

from library.errors import InputError
from library.files import read_jsonl
from library.paths import CLEAN_ROWS_PATH, formatted_path
from library.records import FormattedRow


def read_formatted(name: str) -> list[FormattedRow]:
    """The formatted rows of a split, or of `train_sample`.

    Raises InputError if there is none, or if an id occurs twice.
    """
    path = formatted_path(name)
    rows = [cast(FormattedRow, row) for row in read_jsonl(path)]
    if not rows:
        raise InputError(f"{path}: has no rows; run `dvc repro format`")
    if len({row["id"] for row in rows}) < len(rows):
        raise InputError(f"{path}: has a row twice; run `dvc repro format`")
    return rows


def read_contexts(ids: Collection[str]) -> dict[str, str]:
    """The whole contexts of the rows with these ids, by id, as `clean` wrote them."""
    return {row["id"]: row["anchor"] for row in read_jsonl(CLEAN_ROWS_PATH) if row["id"] in ids}
