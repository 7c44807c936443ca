"""Read and write JSON and JSON Lines; every write is atomic."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from library.errors import InputError
from library.paths import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HASHES_PATH

RECHECKED_BYTES = 64 * 2**20  # up to here a file is read each time


@contextmanager
def open_atomic(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            yield file
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically."""
    with open_atomic(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with sorted keys, atomically. Raises ValueError on NaN and infinities."""
    write_text(
        path,
        json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n",
    )


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    with open_atomic(path) as file:
        for record in records:
            file.write(to_line(record))


def to_line(record: Mapping[str, Any]) -> str:
    """A record as one line of JSON, with its line end."""
    return json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a file that `write_json` wrote. Raises InputError if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise InputError(f"{path}: not JSON: {error}") from error


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file that `write_jsonl` wrote. Raises InputError naming the line that
    is not JSON.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}:{number}: not JSON: {error}") from error


def hash_file(path: Path) -> str:
    """SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_base(manifest: Mapping[str, Any]) -> str:
    """A hash that identifies a base model wherever its files are: SHA-256 of the manifest's file
    hashes.
    """
    return hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()


def hash_adapter(adapter_dir: Path) -> str:
    """A hash that identifies an adapter: SHA-256 of the hashes of its configuration and weights."""
    hashes = [hash_file(adapter_dir / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def look_at(path: Path) -> list[int]:
    """What changes when a file is written or replaced, without reading its content."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def hash_once(path: Path) -> str:
    """SHA-256 in hexadecimal digits; a large file is read again only if `look_at` differs.

    Known hashes are kept in HASHES_PATH.
    """
    look = look_at(path)
    if look[0] <= RECHECKED_BYTES:
        return hash_file(path)
    known: dict[str, Any] = {}
    with suppress(FileNotFoundError, InputError):
        known = read_json(HASHES_PATH)
    key = str(path.resolve())
    if known.get(key, {}).get("look") != look:
        known[key] = {"look": look, "sha256": hash_file(path)}
        write_json(HASHES_PATH, known)
    return str(known[key]["sha256"])
