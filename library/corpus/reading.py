"""Read rows from JSON, JSON Lines, CSV, TSV or Parquet, each also as .gz."""

import codecs
import csv
import gzip
import io
import json
import re
import shlex
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow.parquet

from library.corpus.literals import find_packed, parse_literal
from library.corpus.rows import RawRow
from library.corpus.shapes import (
    MISSING,
    Shape,
    UnusableError,
    count_wrong,
    find_shape,
    guess_columns,
    look_up,
    read_record,
)
from library.errors import InputError
from library.params import Columns, DataParams

CHUNK_CHARACTERS = 2**20
PEEKED_ROWS = 100
PACKED_ROWS = 20  # first rows that tell which columns hold lists written as text
SHOWN_CHARACTERS = 60  # of a cell
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# a first line for Excel, which is no row
_EXCEL_HINT = re.compile(r"\"?sep=([,;\t|])\"?\s*$")
_LONG_CELL = 60  # characters: more than a column's name has
_SENTENCE = re.compile(r"\w\W+\w.*[.?!。？！؟]\W*$", re.DOTALL)
_MAGIC = {
    b"PK\x03\x04": "a ZIP file, as Excel's workbooks are; save the sheet as CSV (UTF-8)",
    b"\x1f\x8b": "compressed by gzip; add .gz to its name",
    b"PAR1": "Parquet; name it .parquet",
}
_NOT_PLAIN = re.compile(r"[^\w.-]+")
_SUFFIX_HINTS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "in Excel, save the sheet as CSV UTF-8"),
    **dict.fromkeys((".zip", ".bz2", ".xz", ".zst", ".7z", ".tar"), "unpack it first"),
    **dict.fromkeys((".arrow", ".feather"), "save it as Parquet"),
    ".txt": "name it .csv, .tsv or .jsonl if that is what it holds",
}
# in a value that Hydra reads for DVC; blanks at its ends are stripped
_NOT_ON_A_COMMAND_LINE = re.compile(r"""[,=#:{}\[\]()'"\\$]|^\s|\s$""")
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


def find_file_shape(path: Path, data: DataParams) -> Shape:
    """The shape of a file, recognized from its first rows. Raises what `open_raw` raises."""
    return open_raw(path, data)[0]


def read_raw(path: Path, data: DataParams) -> Iterator[RawRow]:
    """Yield every row of a file under our names. Raises what `open_raw` raises."""
    return open_raw(path, data)[1]


def open_raw(path: Path, data: DataParams) -> tuple[Shape, Iterator[RawRow]]:
    """The shape of a file, and its rows under our names: anchor, query, positive, negative, turns.

    A row that cannot be used has its `problem`. Raises InputError, naming file and line or key, if
    the file cannot be read, has no row, or if neither `data.columns` nor a known shape fits any
    row.
    """
    records = _records(path, data)
    first = list(islice(records, PACKED_ROWS))
    packed = find_packed(
        (record for _, record in first if isinstance(record, dict)),
        [column for column in data.columns.model_dump().values() if column is not None],
        lists=_suffix(path) in (".csv", ".tsv"),  # other files have lists of their own
    )
    shape, records = _peek(path, _unpack(chain(first, records), packed), data)
    return replace(shape, packed=tuple(packed)), _read_rows(path, shape, records)


def _unpack(
    records: Iterable[tuple[str, Any]], columns: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """The records, with the lists and objects that these columns hold as text.

    A plain text among them stays; one that starts like a list and is none makes its row unusable.
    """
    for place, record in records:
        if isinstance(record, dict):
            for column in columns:
                if isinstance(text := record.get(column), str):
                    value = parse_literal(text)
                    if value is not None:
                        record[column] = value
                    elif text.lstrip().startswith(("[", "{")):
                        record[None] = (
                            f'"{column}" starts like a list as text, but is cut or broken'
                        )
        yield place, record


def _read_rows(path: Path, shape: Shape, records: Iterator[tuple[str, Any]]) -> Iterator[RawRow]:
    negative = False
    for place, record in records:
        if not isinstance(record, dict):
            yield RawRow(
                place, {}, f"expected an object with named fields, got {type(record).__name__}"
            )
            continue
        fields, problem = {}, record.get(None)
        try:
            fields = read_record(record, shape)
        except UnusableError as error:
            problem = problem or str(error)
        negative = negative or "negative" in fields
        yield RawRow(place, fields, problem, count_wrong(record, shape))
    if not negative and shape.name == "columns" and shape.negative not in (None, "negative"):
        raise InputError(
            f'{path}: no row has the column "{shape.negative}" (data.columns.negative in '
            "params.yaml); set it to null if the data has no wrong answers"
        )


def _peek(
    path: Path, records: Iterator[tuple[str, Any]], data: DataParams
) -> tuple[Shape, Iterator[tuple[str, Any]]]:
    """The shape of the first record that has one, and all records."""
    columns = data.columns
    seen = []
    first: dict[Any, Any] | None = None
    for place, record in records:
        seen.append((place, record))
        if isinstance(record, dict):
            first = record if first is None else first
            if (shape := find_shape(record, columns)) is not None:
                return shape, chain(seen, records)
        if len(seen) == PEEKED_ROWS:
            break
    if not seen:
        raise InputError(f"{path}: has no rows")
    if first is None:
        raise InputError(
            f"{path}: no row is an object with named fields; use .json for an array of objects, "
            ".jsonl for one object per line"
        )
    if _suffix(path) in (".csv", ".tsv"):
        _refuse_headless(path, data)
    names = [str(name) for name in first if name is not None]
    asked = {"anchor": columns.anchor, "query": columns.query, "positive": columns.positive}
    lacking = [
        f'"{column}" (data.columns.{field})'
        for field, column in asked.items()
        if column is not None and look_up(first, column) is MISSING
    ]
    guessed = guess_columns(first)
    raise InputError(
        f"{path}: no row has the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}; the "
        f"first row's columns are {', '.join(names)}. Replace each NAME by the right one: a "
        "nested column as answers.text, and null for anchor if there is no context"
        + _describe_columns(guessed, len(names) > sum(map(bool, guessed.values())))
    )


def _describe_columns(guessed: Mapping[str, str | None], others: bool) -> str:
    """How to name the columns: a command, or params.yaml if DVC would misread a name's characters.

    `others` says whether further columns have to be named.
    """
    known = {field: name for field, name in guessed.items() if name is not None}
    # a row can do without these; a question and an answer it has
    missing = {
        field: "null" if field == "negative" or (field == "anchor" and not others) else "NAME"
        for field in guessed.keys() - known.keys()
    }
    if any(_NOT_ON_A_COMMAND_LINE.search(name) for name in known.values()):
        values = {field: json.dumps(name, ensure_ascii=False) for field, name in known.items()}
        lines = (f"    {field}: {(values | missing)[field]}" for field in guessed)
        return ", in params.yaml:\n  data:\n   columns:\n" + "\n".join(lines)
    values = {field: shlex.quote(name) for field, name in known.items()}
    settings = (f"-S data.columns.{field}={(values | missing)[field]}" for field in guessed)
    return f":\n  dvc exp run {' '.join(settings)}"


def _records(path: Path, data: DataParams) -> Iterator[tuple[str, Any]]:
    """Yield each record with its place, as `index 3` or `line 17`; under None, why it cannot be
    used.

    Empty and missing CSV cells are left out.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: {'a folder' if path.is_dir() else 'no such file'} (data.path in params.yaml)"
        )
    suffix = _suffix(path)
    if suffix not in _READERS:
        hint = _SUFFIX_HINTS.get(suffix)
        raise InputError(
            f"{path}: expected a file that ends in {', '.join(_READERS)}, each also with .gz"
            + (f"; {hint}" if hint else "")
        )
    with _open(path) as file:
        if suffix != ".parquet":
            start = file.read(4)
            file.seek(0)
            for magic, kind in _MAGIC.items():
                if start.startswith(magic):
                    raise InputError(f"{path}: is {kind}")
        yield from _READERS[suffix](path, file, data.encoding)


def _suffix(path: Path) -> str:
    """What a file's name says it holds, without .gz."""
    return (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix).casefold()


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked. Raises InputError if it is no complete gzip file."""
    try:
        # gzip.open is typed for text and bytes alike
        packed = path.suffix == ".gz"
        with cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a complete gzip file: {error}") from error


def _decode(path: Path, line: int, data: bytes, encoding: str) -> str:
    if encoding != "utf-8" and line == 1 and data.startswith(codecs.BOM_UTF8):
        raise InputError(f"{path}: is UTF-8; set it: -S data.encoding=utf-8")
    if 4 * data.count(0) > len(data):
        raise InputError(f"{path}:{line}: looks like UTF-16; save it as UTF-8")
    try:
        # a byte order mark stands at the start, or where one file was appended to another
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        remedy = ""
        if encoding == "utf-8":
            remedy = (
                "; it looks like UTF-16: save it as UTF-8"
                if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
                else "; from Windows it may be -S data.encoding=windows-1252"
            )
        raise InputError(
            f"{path}:{line}: not {encoding.upper()}: byte 0x{data[error.start]:02x}{remedy}"
        ) from error


def _json(path: Path, file: BinaryIO, encoding: str) -> Iterator[tuple[str, Any]]:
    """The rows of an array, or of the single object of a SQuAD file."""
    start = b""
    while not start and (piece := file.read(64)):
        start = piece.removeprefix(codecs.BOM_UTF8).lstrip()
    file.seek(0)
    if not start.startswith(b"{"):
        yield from _json_array(path, file, encoding)
        return
    try:
        loaded = json.loads(_decode(path, 1, file.read(), encoding), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise _json_error(path, file, encoding) from error
    for part in (loaded, *loaded.values()):
        if isinstance(part, dict) and None in part and (part is loaded or _is_column(part)):
            raise InputError(f"{path}: {part[None]}; rows would be lost")
    key, rows = _find_rows(path, loaded)
    if rows is None:
        raise _json_error(path, file, encoding)
    for number, row in enumerate(rows):
        if isinstance(row, dict) and isinstance(row.get("paragraphs"), list):
            yield from _squad_article(f"{key} {number}", row["paragraphs"])
        else:
            yield f"{key} {number}", row


def _is_column(values: Mapping[Any, Any]) -> bool:
    """Whether an object is a table's column as pandas writes it: values by number."""
    return all(name is None or name.isdecimal() for name in values)


def _find_rows(path: Path, loaded: Mapping[Any, Any]) -> tuple[str, list[Any] | None]:
    """The rows in a JSON object, and what to name their places by; None if there are none.

    They stand in a list under a key, or as pandas writes a table: by column, by index, or with
    columns and data apart. Raises InputError if several keys have lists of rows.
    """
    values = list(loaded.values())
    lists = {key: rows for key, rows in loaded.items() if isinstance(rows, list) and rows}
    columns, data = loaded.get("columns"), loaded.get("data")
    if isinstance(data, list):
        if isinstance(columns, list) and all(isinstance(row, list) for row in data):
            return "data", [dict(zip(columns, row, strict=False)) for row in data]
        return "data", data
    held = {key: rows for key, rows in lists.items() if all(isinstance(row, dict) for row in rows)}
    whole = len(values) > 1 and len(lists) == len(values) and len(set(map(len, values))) == 1
    if whole and len(held) < len(lists):
        return "row", [dict(zip(loaded, row, strict=True)) for row in zip(*values, strict=True)]
    if len(held) > 1:
        key = next(iter(held))
        copy = shlex.quote(str(_copy_path(path, key)))
        taken = shlex.quote(f".[{json.dumps(key)}]")
        raise InputError(
            f"{path}: has several lists of rows: {', '.join(held)}. Take one out, and use that:\n"
            f"  {_read_command(path)} | jq {taken} > {copy}\n"
            f"  dvc exp run -S data.path={copy}"
        )
    if held:
        ((key, rows),) = held.items()
        return key, rows
    if values and all(isinstance(value, dict) and value for value in values):
        if all(map(_is_column, values)):
            index = dict.fromkeys(name for value in values for name in value)
            return "row", [
                {column: value[row] for column, value in loaded.items() if row in value}
                for row in index
            ]
        return "row", values
    return "", None


def _squad_article(place: str, paragraphs: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """The questions of a SQuAD article, 1.1 or 2.0, each with its paragraph."""
    for number, paragraph in enumerate(paragraphs):
        inner = paragraph if isinstance(paragraph, dict) else {}
        questions = inner.get("qas")
        for at, question in enumerate(questions if isinstance(questions, list) else [None]):
            here = f"{place}, paragraph {number}, question {at}"
            if isinstance(question, dict):
                yield here, {"context": inner.get("context"), "answers": [], **question}
            else:
                yield here, question


def _json_array(path: Path, file: BinaryIO, encoding: str) -> Iterator[tuple[str, Any]]:
    """Yield one element at a time.

    Streaming parsers (yajl, by ijson) turn half a surrogate pair into "?"; Python's own keeps it.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig" if encoding == "utf-8" else encoding)
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    buffer, position = "", 0

    def fill() -> bool:
        nonlocal buffer, position
        more = text.read(max(CHUNK_CHARACTERS, len(buffer) - position))
        buffer, position = buffer[position:] + more, 0
        return bool(more)

    def next_sign() -> str:
        nonlocal position
        while True:
            position = cast(re.Match[str], _JSON_SPACE.match(buffer, position)).end()
            if position < len(buffer) or not fill():
                return buffer[position : position + 1]

    def next_element() -> Any:
        nonlocal position
        next_sign()
        while True:
            with suppress(json.JSONDecodeError):
                record, end = decoder.raw_decode(buffer, position)
                if end < len(buffer):  # else a number may go on
                    position = end
                    return record
            if not fill():
                raise ValueError

    try:
        index, sign = 0, next_sign()
        if sign != "[":
            raise ValueError
        position += 1
        if next_sign() == "]":
            sign = "]"
            position += 1
        while sign != "]":
            yield f"index {index}", next_element()
            index, sign = index + 1, next_sign()
            position += 1
            if sign not in (",", "]"):
                raise ValueError
        if next_sign():
            raise ValueError
    except (ValueError, RecursionError) as error:  # invalid UTF-8 is a ValueError, too
        raise _json_error(path, file, encoding) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str | None, Any]:
    """A JSON object that rejects duplicate keys; Python would keep the last value."""
    record: dict[str | None, Any] = dict(pairs)
    if len(record) < len(pairs):
        name = next(
            name for name, number in Counter(name for name, _ in pairs).items() if number > 1
        )
        record[None] = f'"{name}" stands in the object twice'
    return record


def _json_error(path: Path, file: BinaryIO, encoding: str) -> InputError:
    """Why a file is not a JSON array, with the line.

    Reads the whole file, because the reader by rows does not count lines.
    """
    file.seek(0)
    text = _decode(path, 1, file.read(), encoding)
    if not text.strip():
        return InputError(f"{path}: the file is empty")
    try:
        loaded = json.loads(text)
    except json.JSONDecodeError as error:
        lines = "; name it .jsonl if each line is an object" if error.msg == "Extra data" else ""
        if text[: error.pos].rstrip().endswith(",") and text[error.pos :].lstrip()[:1] in (
            "]",
            "}",
        ):
            lines = f"; remove the comma before {text[error.pos :].lstrip()[0]}"
        return InputError(
            f"{path}:{error.lineno}: invalid JSON or truncated: {error.msg} (column {error.colno})"
            + lines
        )
    except (ValueError, RecursionError) as error:
        return InputError(f"{path}: JSON that cannot be read: {error}")
    return InputError(
        f"{path}: expected an array of objects, or an object with one under a key, got "
        f"{type(loaded).__name__}; name it .jsonl if each line is an object"
    )


def _json_lines(path: Path, file: BinaryIO, encoding: str) -> Iterator[tuple[str, Any]]:
    for number, data in enumerate(file, 1):
        line = _decode(path, number, data, encoding)
        if not line.strip():
            continue
        try:
            # whoever took the lines from an array may have left its commas
            text = line.rstrip().removesuffix(",")
            yield f"line {number}", json.loads(text, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            hint = ""
            if number == 1 and line.lstrip().startswith("["):
                hint = "; name it .json if it is one array"
            elif number == 1 and line.strip() == "{":
                hint = (
                    f"; each line must be an object: jq -c . {shlex.quote(str(path))} > rows.jsonl"
                )
            raise InputError(
                f"{path}:{number}: invalid JSON or truncated: {error.msg} (column {error.colno})"
                + hint
            ) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: JSON that cannot be read: {error}") from error


def _csv(path: Path, file: BinaryIO, encoding: str) -> Iterator[tuple[str, Any]]:
    # contexts run to megabytes; the default stops at 131,072 characters
    csv.field_size_limit(2**31 - 1)
    latest = ""

    def decode() -> Iterator[str]:
        nonlocal latest
        for number, data in enumerate(file, 1):
            latest = _decode(path, number, data, encoding)
            yield latest

    start, delimiter, lines = _find_start(path, decode())
    unquoted = False
    if delimiter == "\t":
        whole = list(lines)
        unquoted, lines = _is_unquoted(whole), iter(whole)
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        strict=True,
        skipinitialspace=delimiter != "\t" and _is_spaced(start, delimiter),
        quoting=csv.QUOTE_NONE if unquoted else csv.QUOTE_MINIMAL,
    )
    end = 0  # quoted cells can contain line ends: a row starts where the last one ended
    names: list[str] = []
    try:
        for cells in reader:
            place, end = end + 1, reader.line_num
            if not any(cells):  # Excel writes delimiters for rows that were emptied
                continue
            if not names:
                names = cells
                _refuse_twice(f"{path}:{place}", [name for name in names if name])
                continue
            # a column without a name cannot be asked for
            record: dict[str | None, Any] = {
                name: cell for name, cell in zip(names, cells, strict=False) if name and cell
            }
            if len(cells) > len(names):
                record[None] = (
                    f"{len(cells)} cells, but the header has {len(names)} columns; a cell that "
                    f"contains {_DELIMITERS[delimiter]} needs quotes"
                )
            yield f"line {place}", record
    except csv.Error as error:
        hint = ""
        if '\\"' in latest:
            hint = (
                ". In CSV, a quotation mark in a cell is written twice, not with a backslash:\n  "
            )
            copy = shlex.quote(str(_copy_path(path, "quoted")))
            hint += f"""{_read_command(path)} | sed 's/\\\\"/""/g' > {copy}"""
        raise InputError(
            f"{path}:{end + 1}: not valid CSV: {error} (the first line separates cells by "
            f"{_DELIMITERS[delimiter]}; a cell that contains some needs quotes){hint}"
        ) from error


def _find_start(path: Path, lines: Iterator[str]) -> tuple[str, str, Iterator[str]]:
    """The first line of a CSV that is not for Excel, the delimiter, and all lines again."""
    before = []
    while (first := next(lines, "")) and not first.strip(" \r\n"):
        before.append("\n")
    if "\r" in first.rstrip("\r\n"):
        raise InputError(f"{path}: lines end in CR only; save it with LF or CR LF")
    hint = _EXCEL_HINT.match(first)
    if hint:
        before.append("\n")  # it is no row, but a line
        first = next(lines, "")
    return first, hint[1] if hint else _find_delimiter(first), chain([*before, first], lines)


def _is_spaced(header: str, delimiter: str) -> bool:
    """Whether a blank follows each delimiter of a header: then blanks are no part of the cells."""
    return bool(rest := header.split(delimiter)[1:]) and all(cell[:1] == " " for cell in rest)


def _refuse_headless(path: Path, data: DataParams) -> None:
    """Raise InputError if the first line of a CSV seems to be a row, with a command that names the
    columns.
    """
    with _open(path) as file:
        decoded = (_decode(path, at, line, data.encoding) for at, line in enumerate(file, 1))
        _, delimiter, lines = _find_start(path, decoded)
        reader = csv.reader(lines, delimiter=delimiter)
        end = 0
        for cells in reader:
            place, end = end + 1, reader.line_num
            if any(cells):
                break
    if not any(len(cell) > _LONG_CELL or _SENTENCE.search(cell) for cell in cells):
        return
    header = delimiter.join(_guess_names(cells, data.columns))
    copy = shlex.quote(str(_copy_path(path, "named")))
    printed = json.dumps(header, ensure_ascii=False)[1:-1].replace("%", "%%") + r"\n"
    shown = [
        f"\n  {at}: {cell[:SHOWN_CHARACTERS]!r}{'…' * (len(cell) > SHOWN_CHARACTERS)}"
        for at, cell in enumerate(cells, 1)
    ]
    no_context = " -S data.columns.anchor=null" * (len(cells) == 2)
    raise InputError(
        f"{path}:{place}: seems to have no header line: the first line's cells are"
        f"{''.join(shown)}\nIf these are names, set data.columns in params.yaml to them. If they "
        "are a row, name the columns in a copy, and use that; correct their order if it is another "
        f"({data.columns.anchor or 'anchor'}: context, {data.columns.query}: question, "
        f"{data.columns.positive}: right answer, {data.columns.negative or 'negative'}: wrong one):"
        f"\n  {{ printf {shlex.quote(printed)}; {_read_command(path)} | tail -n +{place}; }}"
        f" > {copy}\n  dvc exp run -S data.path={copy}{no_context}"
    )


def _guess_names(cells: Sequence[str], columns: Columns) -> list[str]:
    """Names for the columns of a row: the question ends in a question mark, the longest of the
    other cells is the context, and then come the right answer and the wrong one. A number in the
    first cell counts rows.
    """
    names = [f"column_{at}" for at in range(1, len(cells) + 1)]
    left = sorted(range(len(cells)), key=lambda at: -len(cells[at]))
    asked = next((at for at in left if cells[at].rstrip().endswith(("?", "？", "؟"))), left[-1])
    left.remove(asked)
    names[asked] = columns.query
    if len(cells) > 2:
        names[left.pop(0)] = columns.anchor or "anchor"
    answers = [at for at in sorted(left) if at or not cells[at].isdecimal()]
    for at, name in zip(answers, (columns.positive, columns.negative or "negative"), strict=False):
        names[at] = name
    return names


def _copy_path(path: Path, mark: str) -> Path:
    """Where a command of an error message writes a mended copy: beside the file, unpacked."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    return path.with_name(_NOT_PLAIN.sub("-", f"{plain.stem}-{mark}") + plain.suffix)


def _read_command(path: Path) -> str:
    return f"{'gzip -dc' if path.suffix == '.gz' else 'cat'} {shlex.quote(str(path))}"


def _is_unquoted(lines: Sequence[str]) -> bool:
    """Whether quotation marks in a TSV belong to the text.

    They do if every line has as many cells as the first without CSV's quoting rules, but not with
    them.
    """
    filled = [line for line in lines if line.strip("\r\n")]
    cells = {line.count("\t") for line in filled}
    if len(cells) != 1:
        return False
    try:
        quoted = list(csv.reader(filled, delimiter="\t", strict=True))
    except csv.Error:
        return True
    return len(quoted) < len(filled)


def _find_delimiter(header: str) -> str:
    """The delimiter of a CSV, from its first line: the one that gives most cells outside quotes.

    Vertical bars only if nothing else gives any: names contain them.
    """

    def count(delimiter: str) -> int:
        return len(next(csv.reader([header], delimiter=delimiter), []))

    usual = max((delimiter for delimiter in _DELIMITERS if delimiter != "|"), key=count)
    return usual if count(usual) > 1 else "|" if count("|") > 1 else usual


def _refuse_twice(place: str, names: Sequence[str]) -> None:
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise InputError(
            f"{place}: two columns are named {', '.join(map(repr, twice))}; rename one in the file"
        )


def _parquet(path: Path, file: BinaryIO, encoding: str) -> Iterator[tuple[str, Any]]:
    try:
        # Arrow seeks backwards, which a gzip stream cannot do freely
        source = pyarrow.BufferReader(file.read()) if path.suffix == ".gz" else file
        index = 0
        table = pyarrow.parquet.ParquetFile(source)
        _refuse_twice(str(path), table.schema_arrow.names)
        for batch in table.iter_batches(batch_size=64):
            for record in batch.to_pylist():
                yield f"index {index}", record
                index += 1
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: index {index} or one of the 63 after it: not UTF-8: {error.reason}"
        ) from error
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not Parquet: {error}") from error


_READERS = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
