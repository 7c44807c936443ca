"""Raw rows as an Arrow table on disk, so that memory stays constant and work spreads over
processes.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, Features, Value, disable_progress_bars

from library.corpus.reading import open_raw
from library.corpus.rows import FIELDS, LISTS, RawRow, find_problem, keep_texts
from library.corpus.shapes import Shape, is_text
from library.params import DataParams

log = logging.getLogger(__name__)

# Rows for which a further process pays off, and rows in memory at once.
ROWS_PER_PROCESS, ROWS_IN_MEMORY = 1000, 50
TEXTS = {field: Value("large_string") for field in (*FIELDS, *LISTS)}


def _generate(
    raw: Iterator[RawRow], shape: Shape, nothing: Collection[str]
) -> Iterator[dict[str, Any]]:
    for row in raw:
        problem = find_problem(row, shape, nothing)
        texts = {
            field: value if is_text(value := row.fields.get(field)) else None for field in FIELDS
        }
        right = [text for text in row.fields.get("positive") or [] if is_text(text)]
        right = keep_texts(right, nothing) or right  # show rows that cannot be used as they are
        texts["positive"] = right[0] if right else None
        negative = texts["negative"]
        if negative is not None and not keep_texts([negative], nothing):
            texts["negative"] = None
        yield {
            "place": row.place,
            "problem": problem,
            "wrong": row.wrong,
            **texts,
            "also_right": _to_json(right[1:]),
            "turns": _to_json(row.fields.get("turns")),
            "dropped": negative
            if negative and negative.strip() and not texts["negative"]
            else None,
        }


def _to_json(value: Any) -> str | None:
    return json.dumps(value, ensure_ascii=False) if value else None


def read_table(
    path: Path, data: DataParams, nothing: Collection[str], cache_dir: Path
) -> tuple[Shape, Dataset]:
    """The shape of a file, and a table of its rows with `place`, `problem` and the texts.

    Fields without a text are null; of several right answers the first is `positive`. A negative
    that counts as empty is in `dropped`, `wrong` is how many of them the file has in a list. Raises
    what `open_raw` raises.

    The table lies in `cache_dir`, which must outlive it.
    """
    disable_progress_bars()
    names = ("place", "problem", "dropped")
    schema = Features(
        {**dict.fromkeys(names, Value("string")), "wrong": Value("int64"), **TEXTS}
    ).arrow_schema
    shape, raw = open_raw(path, data)
    rows = _generate(raw, shape, nothing)
    with (
        pyarrow.OSFile(str(cache_dir / "rows.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, schema) as writer,
    ):
        while batch := list(islice(rows, ROWS_IN_MEMORY)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))
    return shape, Dataset.from_file(str(cache_dir / "rows.arrow"))


def log_several_wrong(rows: int) -> None:
    """Log how many rows have more wrong answers than the one that is used."""
    if rows:
        log.info(
            "%d row%s several wrong answers; the first of each is used, the others are not",
            *(rows, "s have" if rows > 1 else " has"),
        )


def map_table(
    table: Dataset,
    function: Callable[..., Mapping[str, Any]],
    features: Mapping[str, Any],
    **arguments: Any,
) -> Dataset:
    """Apply `function(row, **arguments)` to each row; returns a table with the given features.

    Uses as many processes as there are cores and enough rows; the order stays. Another process must
    be able to import the function.
    """
    processes = min(os.cpu_count() or 1, math.ceil(len(table) / ROWS_PER_PROCESS))
    return table.map(
        function,
        fn_kwargs=arguments,
        features=Features(features),
        remove_columns=[name for name in table.column_names if name not in features],
        num_proc=processes if processes > 1 else None,
        writer_batch_size=ROWS_IN_MEMORY,
        new_fingerprint=function.__name__,
    )
