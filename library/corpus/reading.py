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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow.parquet

from library.corpus.rows import RawRow
from library.corpus.shapes import (
    MISSING,
    Shape,
    UnusableError,
    find_shape,
    guess_columns,
    look_up,
    read_record,
)
from library.errors import InputError
from library.params import Columns, DataParams

CHUNK_CHARACTERS = 2**20
PEEKED_ROWS = 100
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_EXCEL_HINT = re.compile(
    r"sep=([,;\t])\s*$"
)  # a first line that Excel reads, and writes nothing of
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
    shape, records = _peek(path, _records(path, data), data.columns)
    return shape, _read_rows(path, shape, records)


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
        yield RawRow(place, fields, problem)
    if not negative and shape.name == "columns" and shape.negative not in (None, "negative"):
        raise InputError(
            f'{path}: no row has the column "{shape.negative}" (data.columns.negative in '
            "params.yaml); set it to null if the data has no wrong answers"
        )


def _peek(
    path: Path, records: Iterator[tuple[str, Any]], columns: Columns
) -> tuple[Shape, Iterator[tuple[str, Any]]]:
    """The shape of the first record that has one, and all records."""
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
    packed = path.suffix == ".gz"
    suffix = Path(path.stem).suffix if packed else path.suffix
    if suffix not in _READERS:
        raise InputError(
            f"{path}: expected a file that ends in {', '.join(_READERS)}, each also with .gz"
        )
    try:
        # gzip.open is typed for text and bytes alike
        with cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb") as file:
            yield from _READERS[suffix](path, file, data.encoding)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a complete gzip file: {error}") from error


def _decode(path: Path, line: int, data: bytes, encoding: str) -> str:
    if encoding != "utf-8" and line == 1 and data.startswith(codecs.BOM_UTF8):
        raise InputError(f"{path}: is UTF-8; set it: -S data.encoding=utf-8")
    if 4 * data.count(0) > len(data):
        raise InputError(f"{path}:{line}: looks like UTF-16; save it as UTF-8")
    try:
        if encoding != "utf-8":
            return data.decode(encoding)
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
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
    rows = loaded.get("data")
    if not isinstance(rows, list):
        raise _json_error(path, file, encoding)
    for number, row in enumerate(rows):
        if isinstance(row, dict) and isinstance(row.get("paragraphs"), list):
            yield from _squad_article(f"data {number}", row["paragraphs"])
        else:
            yield f"data {number}", row


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
        return InputError(
            f"{path}:{error.lineno}: invalid JSON or truncated: {error.msg} (column {error.colno})"
            + lines
        )
    except (ValueError, RecursionError) as error:
        return InputError(f"{path}: JSON that cannot be read: {error}")
    return InputError(
        f"{path}: expected an array of objects, or an object with one under data, got "
        f"{type(loaded).__name__}; name it .jsonl if each line is an object"
    )


def _json_lines(path: Path, file: BinaryIO, encoding: str) -> Iterator[tuple[str, Any]]:
    for number, data in enumerate(file, 1):
        line = _decode(path, number, data, encoding)
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}:{number}: invalid JSON or truncated: {error.msg} (column {error.colno})"
            ) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: JSON that cannot be read: {error}") from error


def _csv(path: Path, file: BinaryIO, encoding: str) -> Iterator[tuple[str, Any]]:
    # contexts run to megabytes; the default stops at 131,072 characters
    csv.field_size_limit(2**31 - 1)
    lines: Iterator[str] = (
        _decode(path, number, data, encoding) for number, data in enumerate(file, 1)
    )
    blank = 0
    while (first := next(lines, "")) and not first.strip(" \r\n"):
        blank += 1
    if "\r" in first.rstrip("\r\n"):
        raise InputError(f"{path}: lines end in CR only; save it with LF or CR LF")
    hint = _EXCEL_HINT.match(first)
    delimiter = hint[1] if hint else _find_delimiter(first)
    # the hint is no row, but a line
    lines = chain(["\n"] * blank, ["\n" if hint else first], lines)
    unquoted = False
    if delimiter == "\t":
        whole = list(lines)
        unquoted, lines = _is_unquoted(whole), iter(whole)
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        strict=True,
        quoting=csv.QUOTE_NONE if unquoted else csv.QUOTE_MINIMAL,
    )
    end = 0  # quoted cells can contain line ends: a row starts where the last one ended
    names: list[str] = []
    try:
        for cells in reader:
            place, end = end + 1, reader.line_num
            if not cells:
                continue
            if not names:
                names = cells
                _refuse_twice(f"{path}:{place}", names)
                continue
            record: dict[str | None, Any] = {
                name: cell for name, cell in zip(names, cells, strict=False) if cell != ""
            }
            if len(cells) > len(names):
                record[None] = "more cells than the header has columns"
            yield f"line {place}", record
    except csv.Error as error:
        raise InputError(
            f"{path}:{end + 1}: not valid CSV: {error} (the first line separates cells by "
            f"{_DELIMITERS[delimiter]}; a cell that contains some needs quotes)"
        ) from error


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
    """The delimiter of a CSV, from its first line: the one that gives most cells outside quotes."""

    def count(delimiter: str) -> int:
        return len(next(csv.reader([header], delimiter=delimiter), []))

    return max(_DELIMITERS, key=count)


def _refuse_twice(place: str, names: Sequence[str]) -> None:
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise InputError(f"{place}: two columns are named {', '.join(map(repr, twice))}")


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
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
