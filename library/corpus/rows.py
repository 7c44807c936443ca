"""What a row is: its fields, its id, and why it can't be used."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from library.corpus.shapes import Shape, is_text
from library.errors import InputError

FIELDS = ("anchor", "query", "positive", "negative")
# kept as JSON beside them: right answers beyond the first, and the turns before the question
LISTS = ("also_right", "turns")
NOTHING = "a text for nothing (clean.nothing)"


@dataclass(frozen=True)
class RawRow:
    """One row as the file has it: where it stands, its fields by our names (`shapes.read_record`),
    and why it can't be used, if so.
    """

    place: str
    fields: dict[str, Any]
    problem: str | None = None


def find_problem(row: RawRow, shape: Shape, nothing: Collection[str]) -> str | None:
    """Why a raw row can't be used, naming the field as the user's file does; None where it can.

    A negative may be blank or one of the texts that stand for `nothing`, and so may right answers
    beside one that is neither.
    """
    if row.problem is not None:
        return row.problem
    for name, column in shape.columns.items():
        value = row.fields.get(name)
        if value is None or value == []:
            if name == "negative" or (name == "anchor" and shape.bare):
                continue
            if value == []:
                return f'"{column}" is empty'
            return f'"{column}" is null' if name in row.fields else f'"{column}" is missing'
        texts = value if isinstance(value, list) else [value]
        if not all(map(is_text, texts)):
            return f'"{column}" holds half of a surrogate pair: broken Unicode'
        if name != "negative" and not keep_texts(texts, nothing):
            if value == "" and name == "anchor" and shape.bare:
                continue
            text = texts[0].strip()
            return f'"{column}" is {f"{text!r}, {NOTHING}" if text else "empty"}'
    return None


def keep_texts(texts: Iterable[str], nothing: Collection[str]) -> list[str]:
    """Those of some texts that say something."""
    return [text for text in texts if (words := text.strip()) and words not in nothing]


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
    cleaning rules. `also_right` and `turns` are JSON, where a row has them.
    """
    text = "\x1f".join(
        [fields.get(name) or "" for name in FIELDS]
        + [fields[name] for name in LISTS if fields.get(name)]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]
