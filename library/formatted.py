"""The formatted rows, as every stage after `format` reads them."""

from typing import cast

from library.errors import InputError
from library.files import read_jsonl
from library.paths import formatted_path
from library.records import FormattedRow


def read_formatted(name: str) -> list[FormattedRow]:
    """Formatted rows: of a split, or `train_sample`. Raises InputError where there is none, or one
    stands there twice.
    """
    path = formatted_path(name)
    rows = [cast(FormattedRow, row) for row in read_jsonl(path)]
    if not rows:
        raise InputError(f"{path}: holds no row; run `dvc repro format`")
    if len({row["id"] for row in rows}) < len(rows):
        raise InputError(f"{path}: holds a row twice; run `dvc repro format`")
    return rows
