"""The fields of a row, its id, and why a row cannot be used."""

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
    """A row as the file has it: its place, its fields under our names, and its problem, if any.

    The fields are those of `shapes.read_record`. `wrong` is the number of wrong answers that the
    file has for it; the first one counts.
    """

    place: str
    fields: dict[str, Any]
    problem: str | None = None
    wrong: int = 0


def find_problem(row: RawRow, shape: Shape, nothing: Collection[str]) -> str | None:
    """Why a raw row cannot be used, naming the field as in the user's file; None if it can.

    A negative may be empty or one of the texts in `nothing`, and so may further right answers.
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
    """The texts that are neither empty nor in `nothing`."""
    return [text for text in texts if (words := text.strip()) and words not in nothing]


def check_rejected_share(rejected: Sequence[Mapping[str, Any]], total: int, limit: float) -> None:
    """Raise InputError, naming the first rejected rows, if more than `limit` of `total` are
    rejected.

    A rejected row has `file`, `place` and `reason`.
    """
    if len(rejected) > limit * total:
        examples = "".join(
            f"\n  {record['file']}: {record['place']}: {record['reason']}"
            for record in rejected[:5]
        )
        raise InputError(
            f"{len(rejected)} of {total} rows cannot be used, which is more than "
            f"clean.max_rejected_share ({limit:g}) allows; the first ones:{examples}"
        )


def advise_on_contexts(shape: Shape, contexts: Iterable[str | None]) -> str:
    """What to do about rows without a context where others have one; empty if there are none."""
    if shape.anchor is None or shape.bare:
        return ""
    without = total = 0
    for context in contexts:
        total += 1
        without += not (context or "").strip()
    if not without:
        return ""
    if without == total:
        return (
            f'\nNo row has a context in "{shape.anchor}". If there is none:\n'
            "  dvc exp run -S data.columns.anchor=null"
        )
    return (
        f'\n{without} of the {total} rows have no context in "{shape.anchor}". Fill it in, or '
        "leave these rows out. If they are to be asked without one, name the columns instruction "
        "(the question), input (the context) and output (the right answer), as in Alpaca, and "
        "leave data.columns as it is: there, a context is optional."
    )


def row_id(fields: Mapping[str, Any]) -> str:
    """12 hexadecimal digits of a row's raw text, independent of the file's order and the cleaning
    rules.

    `also_right` and `turns` are JSON, if a row has them.
    """
    text = "\x1f".join(
        [fields.get(name) or "" for name in FIELDS]
        + [fields[name] for name in LISTS if fields.get(name)]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]
