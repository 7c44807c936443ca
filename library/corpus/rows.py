"""What a row is: its fields, its id, and why it can't be used."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from library.errors import InputError

FIELDS = ("anchor", "query", "positive", "negative")


@dataclass(frozen=True)
class RawRow:
    """One row as the file has it: where it stands, its fields by our names, and why it can't be
    used, if so.
    """

    place: str
    fields: dict[str, Any]
    problem: str | None = None


def find_problem(row: RawRow, columns: Mapping[str, str | None]) -> str | None:
    """Why a raw row can't be used, naming the field as the user's file does; None where it can.

    A negative may be blank.
    """
    if row.problem is not None:
        return row.problem
    for name, column in columns.items():
        value = row.fields.get(name)
        if value is None:
            if name != "negative":
                return f'"{column}" is null' if name in row.fields else f'"{column}" is missing'
        elif not isinstance(value, str):
            return f'"{column}" is of type {type(value).__name__}, expected a string'
        elif not value.strip():
            if name == "negative":
                continue
            return f'"{column}" is empty'
        elif not is_text(value):
            return f'"{column}" holds half of a surrogate pair: broken Unicode'
    return None


def is_text(value: Any) -> bool:
    """Whether a value is a string, and one that can be written: half of a surrogate pair can't."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_rejected_share(rejected: Sequence[Mapping[str, Any]], total: int, limit: float) -> None:
    """Raise InputError, naming the first rejected rows, where more than the share `limit` of
    `total` rows were rejected.

    A rejected row is on record as `file`, `place` and `reason`.
    """
    if len(rejected) > limit * total:
        examples = "".join(
            f"\n  {record['file']}: {record['place']}: {record['reason']}"
            for record in rejected[:5]
        )
        raise InputError(
            f"{len(rejected)} of {total} rows can't be used, more than clean.max_rejected_share "
            f"({limit:g}) allows; the first:{examples}"
        )


def row_id(fields: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of a row's raw text: the same whatever the file's order and the
    cleaning rules.
    """
    text = "\x1f".join(fields.get(name) or "" for name in FIELDS)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
