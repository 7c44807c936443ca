"""The user's rows out of JSON, JSON Lines, CSV or Parquet, each also as .gz."""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow.parquet

from library.corpus.rows import FIELDS, RawRow
from library.errors import InputError
from library.params import Columns

CHUNK_CHARACTERS = 2**20
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


def read_raw(path: Path, columns: Columns) -> Iterator[RawRow]:
    """Yield every row of a file, its columns renamed to anchor, query, positive, negative.

    A row that has no usable shape is yielded with its `problem`. Raises InputError, naming file and
    line or key, where the file itself can't be read, holds no row, or lacks a mapped column in
    every row.
    """
    names = {
        field: getattr(columns, field) for field in FIELDS if getattr(columns, field) is not None
    }
    if not path.is_file():
        raise InputError(
            f"{path}: {'a folder' if path.is_dir() else 'no such file'} (data.path in params.yaml)"
        )
    seen: set[str] = set()
    rows = 0
    for place, record in _records(path):
        rows += 1
        if not isinstance(record, dict):
            yield RawRow(
                place, {}, f"expected an object with named fields, got {type(record).__name__}"
            )
            continue
        seen.update(key for key in record if isinstance(key, str))
        yield RawRow(
            place,
            {field: record.get(name) for field, name in names.items() if name in record},
            record.get(None),
        )
    if rows == 0:
        raise InputError(f"{path}: holds no row")
    if not seen:
        raise InputError(
            f"{path}: no row is an object with named fields; a JSON array of objects is .json, one "
            "object a line .jsonl"
        )
    for field, name in names.items():
        if name not in seen:
            hint = "; set it to null where the data has no negatives" if field == "negative" else ""
            raise InputError(
                f'{path}: no row has the column "{name}" (data.columns.{field} in '
                f"params.yaml){hint}; columns are: {', '.join(sorted(seen)) or 'none'}"
            )


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Each record with its place, as `index 3` or `line 17`; under None stands why it can't be
    used, if so. Cells of a CSV that are empty or missing are left out.
    """
    packed = path.suffix == ".gz"
    suffix = Path(path.stem).suffix if packed else path.suffix
    if suffix not in _READERS:
        raise InputError(
            f"{path}: expected a file that ends in {', '.join(_READERS)}, each also with .gz"
        )
    try:
        # gzip.open is typed for text and bytes alike
        with cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb") as file:
            yield from _READERS[suffix](path, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a complete gzip file: {error}") from error


def _decode(path: Path, line: int, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise InputError(f"{path}:{line}: not UTF-8: byte 0x{data[error.start]:02x}") from error


def _json_array(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """One element at a time.

    Streaming parsers (yajl, by ijson) turn half a surrogate pair into "?"; Python's own keeps it.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
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
    except (ValueError, RecursionError) as error:  # what is not UTF-8 is a ValueError, too
        raise _json_error(path, file) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str | None, Any]:
    """A JSON object. Python would keep the last value of a key that stands in it twice."""
    record: dict[str | None, Any] = dict(pairs)
    if len(record) < len(pairs):
        name = next(
            name for name, number in Counter(name for name, _ in pairs).items() if number > 1
        )
        record[None] = f'"{name}" stands in the object twice'
    return record


def _json_error(path: Path, file: BinaryIO) -> InputError:
    """Why a file is no JSON array, with the line: read whole, since the reader that goes row by row
    knows no lines.
    """
    file.seek(0)
    text = _decode(path, 1, file.read())
    if not text.strip():
        return InputError(f"{path}: the file is empty")
    try:
        loaded = json.loads(text)
    except json.JSONDecodeError as error:
        return InputError(
            f"{path}:{error.lineno}: not JSON, or cut off: {error.msg} (column {error.colno})"
        )
    except (ValueError, RecursionError) as error:
        return InputError(f"{path}: not JSON that can be read: {error}")
    return InputError(
        f"{path}: expected an array of objects, got {type(loaded).__name__}; one object a line is "
        ".jsonl"
    )


def _json_lines(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    for number, data in enumerate(file, 1):
        line = _decode(path, number, data)
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}:{number}: not JSON, or cut off: {error.msg} (column {error.colno})"
            ) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not JSON that can be read: {error}") from error


def _csv(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    # contexts run to megabytes; the default stops at 131,072 characters
    csv.field_size_limit(2**31 - 1)
    lines = (_decode(path, number, data) for number, data in enumerate(file, 1))
    reader = csv.reader(lines, strict=True)
    end = 0  # a quoted cell may hold line ends: a row stands where the one before it ended
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
            f"{path}:{end + 1}: not CSV: {error} (cells stand between commas, and in quotes where "
            "they hold some)"
        ) from error


def _refuse_twice(place: str, names: Sequence[str]) -> None:
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise InputError(f"{place}: two columns are called {', '.join(map(repr, twice))}")


def _parquet(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    try:
        # a gzip stream can't seek backwards at will; Arrow needs to
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


_READERS = {".json": _json_array, ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
