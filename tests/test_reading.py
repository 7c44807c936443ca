"""Files as they occur in the wild: read as they are meant, or an error with the command that mends
them.
"""

import gzip
import io
import json
import subprocess
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from conftest import edit_yaml, make_rows
from test_shapes import FIELDS, OURS, answer, read

from library.corpus.literals import find_packed, parse_literal
from library.corpus.reading import read_raw
from library.corpus.shapes import guess_columns
from library.errors import InputError
from library.files import read_jsonl
from library.params import DataParams
from stages import base, clean, format, profile

ROW = {"context": "A.", "question": "Q?", "answer": "R."}
COLUMNS = {"anchor": "context", "query": "question", "positive": "answer", "negative": None}
TWO = FIELDS | {"positive": ["R.", "S."]}
HEAD = "context,question,answer\n"
BOM = "\ufeff"


def lines(*rows, end="\n"):
    return "".join(json.dumps(row) + end for row in rows)


def parquet(table):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), file)
    return file.getvalue()


def table(**options):
    return pd.DataFrame([ROW, ROW | {"question": "P?"}]).to_json(**options)


@pytest.mark.parametrize(
    ("name", "content", "fields"),
    [
        # CSV
        ("a.csv", "context|question|answer\nA.|Q?|R.\n", FIELDS),
        ("a.csv", "question,context,answer,a|b|c|d|e\nQ?,A.,R.,a\n", FIELDS),
        ("a.csv", "sep=|\r\ncontext|question|answer\r\nA.|Q?|R.\r\n", FIELDS),
        ("a.csv", f'{BOM}"sep=;"\r\ncontext;question;answer\r\nA.;Q?;R.\r\n', FIELDS),
        ("a.csv", "context, question, answer\nA., Q?, R.\n", FIELDS),
        (
            "a.csv",
            'context, question, answer\nA., "Q, or P?", R.\n',
            FIELDS | {"query": "Q, or P?"},
        ),
        ("a.csv", "context,question,answer,,\nA.,Q?,R.,,\n,,,,\n", FIELDS),
        ("a.csv", ",context,question,answer\n0,A.,Q?,R.\n", FIELDS),
        ("a.CSV", HEAD + "A.,Q?,R.\n", FIELDS),
        ("a.csv", HEAD + f"A.,Q?,R.\n{BOM}A.,Q?,R.\n", FIELDS),
        ("a.csv", HEAD + "A.,Q?,00042\n", FIELDS | {"positive": ["00042"]}),
        ("a.csv", HEAD + '"A.\n\nB,""b"".",Q?,R.\n', FIELDS | {"anchor": 'A.\n\nB,"b".'}),
        # lists as text
        ("a.csv", HEAD + "A.,Q?,\"['R.', 'S.']\"\n", TWO),
        ("a.csv", HEAD + 'A.,Q?,"[""R."", ""S.""]"\n', TWO),
        ("a.csv", HEAD + "A.,Q?,\"['R.'\n 'S.']\"\n", TWO),
        ("a.csv", HEAD + "['A.'],Q?,R.\n", FIELDS),
        ("a.csv", HEAD + 'A.,Q?,"[1, 2]"\n', FIELDS | {"positive": ["[1, 2]"]}),
        ("a.csv", HEAD + "A.,Q?,R.\nA.,Q?,\"['R.']\"\n", FIELDS),
        # JSON
        ("a.json", json.dumps({"data": [ROW]}), FIELDS),
        ("a.json", json.dumps({"version": 1, "licence": ["x"], "examples": [ROW]}), FIELDS),
        ("a.json", table(), FIELDS),
        ("a.json", table(orient="split"), FIELDS),
        ("a.json", table(orient="table"), FIELDS),
        ("a.json", json.dumps({name: [value, value] for name, value in ROW.items()}), FIELDS),
        ("a.json", json.dumps({"q1": ROW, "q2": ROW}), FIELDS),
        ("a.json", '[{"context": "A.", "question": "Q?", "answer": "R.", "score": NaN}]', FIELDS),
        # JSON Lines
        ("a.ndjson", lines(ROW, ROW), FIELDS),
        ("a.jsonl", lines(ROW, ROW, end=",\n"), FIELDS),
        ("a.jsonl", BOM + lines(ROW, ROW, end="\r\n\r\n"), FIELDS),
        # contexts of several documents
        (
            "a.jsonl",
            lines(ROW | {"context": [["T", ["One.", " Two."]], ["U", ["Three."]]]}),
            FIELDS | {"anchor": "T\nOne. Two.\n\nU\nThree."},
        ),
        (
            "a.jsonl",
            lines(ROW | {"context": {"title": ["T"], "sentences": [["One.", " Two."]]}}),
            FIELDS | {"anchor": "T\nOne. Two."},
        ),
        (
            "a.jsonl",
            lines(ROW | {"context": [["One.", " Two."], ["Three."]]}),
            FIELDS | {"anchor": "One. Two.\n\nThree."},
        ),
        # Parquet
        (
            "a.parquet",
            parquet({"context": [["A.", "B."]], "question": ["Q?"], "answer": [["R.", "S."]]}),
            TWO | {"anchor": "A.\n\nB."},
        ),
        (
            "a.parquet",
            parquet({"context": [b"A."], "question": [b"Q?"], "answer": ["R."]}),
            FIELDS,
        ),
        # any script
        *(
            (
                "a.csv",
                f"{HEAD}{context},{question},{right}\n",
                {"anchor": context, "query": question, "positive": [right]},
            )
            for context, question, right in (
                ("المضخة رقم ٣ مصنوعة من الفولاذ.", "كم تزن المضخة؟", "٣ كغ"),
                ("\u200fהמשאבה עשויה פלדה.", "כמה היא שוקלת?", '3 ק"ג'),
                ("ปั๊มทำจากเหล็ก", "ปั๊มหนักเท่าไร", "๓ กิโลกรัม"),
                ("👩\u200d🔬 mixes 🧪.", "Who? 🤔", "👩\u200d🔬"),
            )
        ),
    ],
)
def test_a_file_of_the_wild_is_read_as_it_is_meant(tmp_path, name, content, fields):
    content = content.encode() if isinstance(content, str) else content
    _, found, problems = read(tmp_path / name, content, **COLUMNS)
    assert found[0] == fields
    assert set(problems) == {None}


@pytest.mark.parametrize(
    "text",
    [
        "{'text': ['R.', 'S.'], 'answer_start': [0, 5]}",
        '{"text": ["R.", "S."], "answer_start": [0, 5]}',
        "{'text': array(['R.', 'S.'], dtype=object), 'answer_start': array([0, 5], dtype=int32)}",
    ],
)
def test_squads_answers_are_read_from_a_cell(tmp_path, text):
    path = tmp_path / "rows.csv"
    pd.DataFrame([{"context": "A.", "question": "Q?", "answers": text}]).to_csv(path, index=False)
    said, (fields,), problems = read(path, path.read_bytes())
    assert fields == TWO
    assert problems == [None]
    assert said.endswith("; lists written as text: answers")


def test_a_list_as_text_that_is_cut_makes_its_row_unusable(tmp_path):
    content = HEAD + "A.,Q?,\"['R.', 'S.']\"\n" * 20 + "A.,Q?,\"['R.', 'S\"\nA.,Q?,T.\n"
    _, fields, problems = read(tmp_path / "a.csv", content.encode(), **COLUMNS)
    assert problems[20] == '"answer" starts like a list as text, but is cut or broken'
    assert fields[21]["positive"] == ["T."]
    assert problems[21] is None


def test_a_list_that_is_empty_in_the_first_rows_is_no_text(tmp_path):
    content = f"{HEAD.strip()},wrong\n" + "A.,Q?,R.,[]\n" * 20 + "A.,Q?,R.,['S.']\n"
    _, fields, problems = read(
        tmp_path / "a.csv", content.encode(), **COLUMNS | {"negative": "wrong"}
    )
    assert [row["negative"] for row in fields] == [None] * 20 + ["S."]
    assert set(problems) == {None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['it\\'s', nan, None, True, -1.5]", ["it's", None, None, True, -1.5]),
        ("[\"it's\" 'b'\n 'c']", ["it's", "b", "c"]),
        ("[('T', ['a'])]", [["T", ["a"]]]),
        ("['a', ...]", None),  # NumPy leaves the middle of a long array out
        ("[__import__('os').getcwd()]", None),
        ("[f'{1}']", None),
        ("['\\d']", ["\\d"]),
        ("{1: 'a'}", None),
        ("[0001] The pump [12]", None),
        ("[" * 9999 + "]" * 9999, None),
        ("plain", None),
    ],
)
def test_a_literal_is_read_and_never_run(text, value):
    assert parse_literal(text) == value


def test_a_column_holds_lists_as_text_only_if_each_of_its_texts_is_one():
    rows = [
        {"a": "['x']", "b": "[1]", "c": "{'a': 'x'}", "d": "['x']", "e": "[]", "f": "[[1]]"},
        {"a": "[]", "b": "['x']", "c": "", "d": "x", "e": "[]", "f": "[[2]]"},
    ]
    assert find_packed(rows) == ["a", "e"]
    assert find_packed(rows, ["c.a"]) == ["a", "c", "e"]
    assert find_packed(rows, ["c.a"], lists=False) == ["c"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((f"a.{suffix}", '{"name": "Ann", "city": "Ulm"}') for suffix in ("csv", "jsonl")),
        *((f"a.{suffix}", '[{"name": "Ann", "city": "Ulm"}]') for suffix in ("csv", "jsonl")),
        ("a.jsonl", '["red", "blue"]'),
    ],
)
def test_json_that_is_the_answer_stays_a_text(tmp_path, name, text):
    rows = pd.DataFrame([ROW | {"answer": text}] * 25)
    content = rows.to_csv(index=False) if name == "a.csv" else lines(*rows.to_dict("records"))
    said, fields, problems = read(tmp_path / name, content.encode(), **COLUMNS)
    assert "as text" not in said
    assert fields == [FIELDS | {"positive": [text]}] * 25
    assert set(problems) == {None}


@pytest.mark.parametrize(
    "content",
    [
        '{"train": [{"question": "Q?"}], "train": [{"question": "P?"}]}',
        '{"question": {"0": "Q?", "0": "P?"}, "answer": {"0": "R."}}',
    ],
)
def test_json_that_names_rows_twice_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r'a\.json: "\w+" stands in the object twice; rows would'):
        read(tmp_path / "a.json", content.encode(), **COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.xlsx",
            "PK\3\4",
            r"expected a file that ends in .*; in Excel, save the sheet as CSV UTF-8",
        ),
        ("a.csv", "PK\3\4", r"is a ZIP file, as Excel's workbooks are; save the sheet as CSV"),
        ("a.json", "PAR1", r"is Parquet; name it \.parquet"),
        ("a.jsonl", b"\x1f\x8b\x08", r"compressed by gzip; add \.gz to its name"),
        ("a.zip", "", r"; unpack it first"),
        ("a.jsonl", "[\n" + lines(ROW), r"a\.jsonl:1: .*; name it \.json if it is one array"),
        (
            "a.jsonl",
            json.dumps(ROW, indent=1),
            r"each line must be an object: jq -c \. .*a\.jsonl > rows\.jsonl",
        ),
        ("a.json", f"[{lines(ROW)},]", r"a\.json:2: .*; remove the comma before \]"),
        (
            "a.json",
            json.dumps({"train": [ROW], "test set": [ROW]}),
            r"several lists of rows: train, test set\. Take .*\n  cat .*a\.json \| jq "
            r"'\.\[\"train\"\]' > .*a-train\.json\n  dvc exp run -S data\.path=.*a-train\.json$",
        ),
        (
            "a.csv",
            HEAD + r'"A.","Q?","He said \"R, S\""',
            r"""a\.csv:2: .*a backslash:\n  cat .* \| sed 's/\\\\"/""/g' > .*-quoted\.csv$""",
        ),
        ("a.csv", "context,question,answer,answer\n", r"'answer'; rename one in the file"),
    ],
)
def test_a_file_that_can_not_be_read_says_what_to_do(tmp_path, name, content, message):
    content = content.encode() if isinstance(content, str) else content
    with pytest.raises(InputError, match=message):
        read(tmp_path / name, content, **COLUMNS)


LONG = "The pump is made of steel, and it weighs 12 kg and was built in the workshop of the town."


@pytest.mark.parametrize(
    ("name", "start", "row", "header"),
    [
        ("a.csv", "", f'"{LONG}",How heavy is it?,12 kg\n', "anchor,query,positive"),
        ("a.csv", BOM, f"7;12 kg;How heavy is it?;{LONG}\n", "column_1;positive;query;anchor"),
        ("a.tsv", "", f"How heavy is it?\t12 kg\t{LONG}\n", r"query\tpositive\tanchor"),
        ("a.csv", "", "How heavy is it?,12 kg\n", "query,positive"),
        ("a.csv", "", f'"{LONG}",How heavy?,12 kg,120 kg\n', "anchor,query,positive,negative"),
        ("b 1.csv.gz", "\n", f'"{LONG}\n",How heavy?,12 kg 100%\n', "anchor,query,positive"),
        ("a.csv", f"{BOM}sep=|\r\n", f"{LONG}|How heavy?|12 kg\r\n", "anchor|query|positive"),
    ],
)
def test_a_csv_without_a_header_gets_one_by_the_errors_command(tmp_path, name, start, row, header):
    path = tmp_path / name
    raw = (start + row * 2).encode()
    with pytest.raises(InputError) as error:
        read(path, gzip.compress(raw) if name.endswith(".gz") else raw)
    said = str(error.value)
    assert f":{2 if start.strip(BOM) else 1}: seems to have no header line" in said
    assert "How heavy" in said
    assert LONG not in said
    command, experiment = said.splitlines()[-2:]
    assert header in command
    assert ("data.columns.anchor=null" in experiment) == (header == "query,positive")
    subprocess.run(["sh", "-c", command], check=True)
    (copy,) = tmp_path.glob("*-named*")
    columns = OURS if LONG in row else OURS.model_copy(update={"anchor": None})
    rows = list(read_raw(copy, DataParams(path=str(copy), encoding="utf-8", columns=columns)))
    assert [row.problem for row in rows] == [None, None]
    assert {row.fields["query"][:9] for row in rows} == {"How heavy"}
    assert {row.fields["positive"][0][:5] for row in rows} == {"12 kg"}


def test_a_header_of_short_names_is_one(tmp_path):
    with pytest.raises(InputError, match="the first row's columns are Frage, Antwort des Kunden"):
        read(tmp_path / "a.csv", b"Frage,Antwort des Kunden\nWas?,Das.\n")


def test_an_object_where_a_text_is_expected_names_the_path_to_its_text(tmp_path):
    row = {"context": "A.", "question": "Q?", "answers": answer("R.")}
    columns = COLUMNS | {"positive": "answers"}
    _, _, (problem,) = read(tmp_path / "a.json", [row], **columns)
    assert problem == (
        '"answers" is an object with text, answer_start, expected a text; its text may be '
        "answers.text"
    )


@pytest.mark.parametrize(
    ("without", "advice"),
    [
        (8, r"8 of the 24 rows have no context in \"anchor\"\. Fill it in, .*instruction"),
        (
            24,
            r"No row has a context in \"anchor\"\. .*\n  dvc exp run -S data\.columns\.anchor=null",
        ),
    ],
)
def test_rows_without_a_context_are_refused_with_what_to_do(project, without, advice):
    rows = make_rows(24)
    for row in rows[:without]:
        row["anchor"] = ""
    Path("rows.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=rf"(?s)more than clean\.max_rejected_share.*{advice}"):
        clean.main()
    edit_yaml("params.yaml", data__path="alpaca.json")
    names = {"query": "instruction", "anchor": "input", "positive": "output"}
    alpaca = [{names.get(name, name): text for name, text in row.items()} for row in rows]
    Path("alpaca.json").write_text(json.dumps(alpaca))
    clean.main()  # as the advice says
    assert json.loads(Path("metrics/clean.json").read_text())["kept"] == 24


def test_lists_in_a_csv_reach_the_prompts(project):
    rows = [
        row | {"positive": [row["positive"], f"Or {at}."]} for at, row in enumerate(make_rows(24))
    ]
    pd.DataFrame(rows).to_csv("rows.csv", sep="|", index=False)
    edit_yaml("params.yaml", data__path="rows.csv")
    base.main()
    profile.main()
    clean.main()
    format.main()
    made = read_jsonl(Path("data/formatted/test.jsonl"))
    right = {row["query"]: row["positive"] for row in rows}
    for row in made:
        assert [row["positive"], *row["also_right"]] == right[row["question"]]


@pytest.mark.parametrize(
    ("names", "positive", "negative"),
    [
        (("Right answers", "Wrong answer"), "Right answers", "Wrong answer"),
        (("Wrong answer", "Right answers"), "Right answers", "Wrong answer"),
        (("good answers", "bad answer"), "good answers", "bad answer"),
        (("correct_answer", "incorrect_answer"), "correct_answer", "incorrect_answer"),
        (("chosen", "rejected"), "chosen", "rejected"),
        (("wrong_answers", "answer"), "answer", "wrong_answers"),
        (("false answer", "reply"), None, "false answer"),
    ],
)
def test_a_wrong_answer_is_never_suggested_as_the_right_one(names, positive, negative):
    guessed = guess_columns(
        {"Policy document": "A.", "Customer question": "Q?"} | dict.fromkeys(names, "R.")
    )
    assert guessed == {
        "anchor": "Policy document",
        "query": "Customer question",
        "positive": positive,
        "negative": negative,
    }
    assert list(guessed) == ["anchor", "query", "positive", "negative"]
