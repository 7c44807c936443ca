import gzip
import json

import pandas as pd
import pyarrow.parquet
import pytest

from library.corpus import reading
from library.corpus.reading import read_raw
from library.corpus.rows import find_problem, row_id
from library.corpus.shapes import find_shape
from library.errors import InputError
from library.files import open_atomic, write_json
from library.params import Columns, DataParams

COLUMNS = Columns(anchor="context", query="q", positive="good", negative="bad")
DATA = DataParams(path="rows.json", encoding="utf-8", columns=COLUMNS)
ROW = {
    "context": "Long text, with a comma.\nAnd a line.",
    "q": "Why?",
    "good": "Since “so”.",
    "bad": "No.",
}
OURS = {
    "anchor": ROW["context"],
    "query": ROW["q"],
    "positive": [ROW["good"]],
    "negative": ROW["bad"],
}

SHAPE = find_shape(ROW, COLUMNS)


def named(**columns):
    return DATA.model_copy(update={"columns": COLUMNS.model_copy(update=columns)})


def write(path, rows):
    suffix = path.name.removesuffix(".gz").rsplit(".", 1)[1]
    plain = path.with_name(path.name.removesuffix(".gz"))
    if suffix == "json":
        plain.write_text(json.dumps(rows))
    elif suffix == "jsonl":
        plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "csv":
        pd.DataFrame(rows).to_csv(plain, index=False)
    else:
        pd.DataFrame(rows).to_parquet(plain)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_every_format_gives_the_same_rows_under_our_names(tmp_path, suffix, packed):
    rows = list(read_raw(write(tmp_path / f"rows.{suffix}{packed}", [ROW, ROW]), DATA))
    assert [row.fields for row in rows] == [OURS, OURS]
    assert [row.problem for row in rows] == [None, None]


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("rows.json", ["index 0", "index 1"]),
        ("rows.jsonl", ["line 1", "line 2"]),
        ("rows.csv", ["line 2", "line 4"]),  # a cell of the first row holds a line end
        ("rows.parquet", ["index 0", "index 1"]),
    ],
)
def test_rows_are_named_by_where_they_stand(tmp_path, name, places):
    assert [row.place for row in read_raw(write(tmp_path / name, [ROW, ROW]), DATA)] == places


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_a_json_array_is_read_alike_in_chunks_of_any_size(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(reading, "CHUNK_CHARACTERS", chunk)
    elements = [
        ROW,
        12,
        -3.5e10,
        "a ] , [ é \U0001f600",
        {},
        [1, [2]],
        None,
        ROW | {"q": "x" * 300},
    ]
    path = tmp_path / "rows.json"
    for text in (
        json.dumps(elements),
        json.dumps(elements, indent=3),
        " \n" + json.dumps(elements, ensure_ascii=False) + "\n ",
    ):
        path.write_text(text, encoding="utf-8")
        with path.open("rb") as file:
            assert list(reading._json_array(path, file, "utf-8")) == [
                (f"index {i}", element) for i, element in enumerate(elements)
            ]


BAD_FILES = [
    (
        "rows.json",
        b'[{"q": "a"}\n{"q": "b"}]',
        r"rows\.json:2: invalid JSON or truncated: Expecting ',' delimiter",
    ),
    ("rows.json", b'[{"q": "a"},\n]', r"rows\.json:(1|2): invalid JSON or truncated"),
    ("rows.json", b'[{"q": "a"}]\n[1]', r"rows\.json:2: invalid JSON or truncated: Extra data"),
    ("rows.json", b"", "the file is empty"),
    ("rows.json", b"[]", "has no rows"),
    ("rows.jsonl", b"\n\n", "has no rows"),
    ("rows.json", b'[{"q": "a"},\n {"q": ', r"rows\.json:2: invalid JSON or truncated"),
    (
        "rows.json",
        b'{"q": "a"}',
        "or an object with one under a key, got dict",
    ),
    ("rows.json", b'["\xff"]', r"rows\.json:1: not UTF-8: byte 0xff"),
    ("rows.jsonl", b'{"q": "a"}\n{"q": "\xff"}', r"rows\.jsonl:2: not UTF-8"),
    ("rows.jsonl", b'{"q": "a"}\n{"q"', r"rows\.jsonl:2: invalid JSON"),
    ("rows.csv", b'q\n"open', r"rows\.csv:2: not valid CSV: unexpected end"),
    ("rows.csv", b"q,a,q\n1,2,3", r"rows\.csv:1: two columns are named 'q'"),
    ("rows.csv", b'q,a\n\n"c 1,"x","y"\n', r"rows\.csv:3: not valid CSV: .*by commas"),
    (
        "rows.jsonl",
        b'[{"q": "a"}]',
        r"rows\.jsonl: no row is an object with named fields; use \.json for an array",
    ),
    ("rows.json", b"[" + b"1" * 5000 + b"]", r"rows\.json: JSON that cannot be read"),
    ("rows.json", b"[" * 100_000, r"rows\.json: JSON that cannot be read"),
    ("rows.jsonl", b"[" * 100_000, r"rows\.jsonl:1: JSON that cannot be read"),
    (
        "rows.json.gz",
        gzip.compress(bytes(range(256)) * 99, mtime=0)[:60] + b"x" * 60,
        "not a complete gzip file",
    ),
    ("rows.parquet", b"PAR1 not really", "not Parquet"),
    ("rows.json.gz", b"not gzip", "not a complete gzip file"),
    ("rows.json.gz", gzip.compress(b"[]", mtime=0)[:-6], "not a complete gzip file"),
    (
        "rows.txt",
        b"",
        r"ends in \.json, \.jsonl, \.ndjson, \.csv, \.tsv, \.parquet.*; name it \.csv",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_a_bad_file_is_an_error_that_names_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_raw(tmp_path / name, DATA))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"absent\.json: no such file \(data\.path"):
        list(read_raw(tmp_path / "absent.json", DATA))


def test_parquet_that_is_not_text_or_names_a_column_twice_is_an_error(tmp_path):
    path = tmp_path / "rows.parquet"
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(),
        1,
        [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")],
    )
    pyarrow.parquet.write_table(pyarrow.table({"q": broken}), path)
    with pytest.raises(InputError, match=r"rows\.parquet: index 0 .*not UTF-8"):
        list(read_raw(path, DATA))
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([["a"], ["b"]], ["q", "q"]), path)
    with pytest.raises(InputError, match=r"rows\.parquet: two columns are named 'q'"):
        list(read_raw(path, DATA))


def test_a_folder_is_no_file_and_blank_lines_of_a_csv_count(tmp_path):
    with pytest.raises(InputError, match=r"a folder \(data\.path"):
        list(read_raw(tmp_path, DATA))
    path = tmp_path / "rows.csv"
    path.write_text('context,q,good,bad\n\n\na,b,c,d\n\n"a\nb",b,c,d\n\na,b,c,d\n')
    assert [row.place for row in read_raw(path, DATA)] == ["line 4", "line 6", "line 9"]


def test_a_column_that_no_row_has_is_an_error_that_names_key_and_columns(tmp_path):
    path = write(tmp_path / "rows.json", [ROW])
    with pytest.raises(
        InputError,
        match=r'no row has the column "qq" \(data\.columns\.query\); .*are context, q, good, bad',
    ):
        list(read_raw(path, named(query="qq")))
    with pytest.raises(InputError, match="set it to null if the data has no wrong answers"):
        list(read_raw(path, named(negative="n")))
    # the field's own name is no more than a default
    assert len(list(read_raw(path, named(negative="negative")))) == 1


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_an_object_that_names_a_key_twice_is_a_row_that_cannot_be_used(tmp_path, suffix):
    twice = '{"context": "a", "q": "b", "good": "right", "good": "wrong", "bad": "d"}'
    once = '{"context": "a", "q": "b", "good": "c", "bad": {"x": 1, "x": 2}}'
    path = tmp_path / f"rows{suffix}"
    path.write_text(f"[{twice}, {once}]" if suffix == ".json" else f"{twice}\n{once}\n")
    first, second = read_raw(path, DATA)
    assert find_problem(first, SHAPE, []) == '"good" stands in the object twice'
    assert find_problem(second, SHAPE, []) == '"bad" is an object with x, expected a text'


def test_a_byte_order_mark_and_a_column_too_many_are_seen(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbfcontext,q,good,bad\na,b,c,d\na,b,c,d,e\na,b,,d\n")
    rows = list(read_raw(path, DATA))
    assert rows[0].fields == {"anchor": "a", "query": "b", "positive": ["c"], "negative": "d"}
    assert rows[1].problem == (
        "5 cells, but the header has 4 columns; a cell that contains commas needs quotes"
    )
    assert find_problem(rows[2], SHAPE, []) == '"good" is missing'


def test_a_context_of_five_megabytes_is_read_from_csv(tmp_path):
    path = write(tmp_path / "rows.csv", [ROW | {"context": "word " * 1_000_000}])
    assert len(next(read_raw(path, DATA)).fields["anchor"]) == 5_000_000


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"bad": None}, None),
        ({"bad": " "}, None),
        ({"q": None}, '"q" is null'),
        ({"q": " \n"}, '"q" is empty'),
        ({"bad": 3}, None),
        ({"good": [3]}, None),
        ({"good": []}, '"good" is empty'),
        ({"q": ["a", "b"]}, '"q" is a list of 2, expected one text'),
        ({"good": "\ud800"}, '"good" holds half of a surrogate pair: broken Unicode'),
    ],
)
def test_a_bad_row_is_told_by_field_and_reason(tmp_path, change, problem):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROW | change, ROW]))
    row = next(read_raw(path, DATA))
    assert find_problem(row, SHAPE, []) == problem


def test_an_element_that_is_no_object_is_a_bad_row(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([ROW, 3]))
    assert (
        list(read_raw(tmp_path / "rows.json", DATA))[1].problem
        == "expected an object with named fields, got int"
    )


def test_ids_tell_rows_apart_by_text_and_by_field():
    texts = OURS | {"positive": ROW["good"]}
    assert row_id(texts) == row_id(dict(reversed(texts.items())))
    assert row_id(texts) != row_id(texts | {"positive": ROW["bad"], "negative": ROW["good"]})
    assert row_id(texts) != row_id(texts | {"also_right": '["Steel."]'})


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "out.json"
    write_json(path, {"a": 1})

    def fail():
        with open_atomic(path) as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, float("nan"))
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
