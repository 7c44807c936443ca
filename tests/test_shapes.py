"""Rows as people have them: each shape under our names, or an error that says what would be."""

import codecs
import gzip
import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import edit_yaml, make_rows

from library.corpus.reading import find_file_shape, read_raw
from library.corpus.rows import find_problem
from library.corpus.shapes import UNANSWERABLE, look_up
from library.errors import InputError
from library.files import read_json, read_jsonl
from library.llm.lengths import RowLengths, advise_lengths, describe_advice
from library.params import Columns, DataParams, load_params
from library.paths import SPLITS_PATH, formatted_path
from stages import base, clean, evaluate, format, profile, review

OURS = Columns(anchor="anchor", query="query", positive="positive", negative="negative")
NOTHING = load_params().clean.nothing
FIELDS = {"anchor": "A.", "query": "Q?", "positive": ["R."]}


def read(path, content, encoding="utf-8", **columns):
    """A file's shape in words, its rows' fields, and why each can't be used."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    data = DataParams(path=str(path), encoding=encoding, columns=OURS.model_copy(update=columns))
    shape = find_file_shape(path, data)
    rows = list(read_raw(path, data))
    return (
        shape.describe(),
        [row.fields for row in rows],
        [find_problem(row, shape, NOTHING) for row in rows],
    )


def squad(*questions, context="A."):
    paragraphs = [{"context": context, "qas": list(questions)}]
    return {"version": "v2.0", "data": [{"title": "T", "paragraphs": paragraphs}]}


def answer(text):
    return {"text": text, "answer_start": 0}


@pytest.mark.parametrize("packed", [False, True])
def test_squads_own_file_is_read_with_all_right_answers_and_without_what_has_none(tmp_path, packed):
    content = squad(
        {"id": "1", "question": "Q?", "answers": [answer("R."), answer("R."), answer("S.")]},
        {"id": "2", "question": "None?", "is_impossible": True, "answers": []},
        {"id": "3", "question": "Plausible?", "is_impossible": True, "answers": [answer("x")]},
        {"id": "4", "question": "Forgotten?"},
    )
    path = tmp_path / ("dev.json.gz" if packed else "dev.json")
    raw = json.dumps(content).encode()
    said, fields, problems = read(path, gzip.compress(raw) if packed else raw)
    assert said == (
        "SQuAD: context = context, question = question, answer = answers.text, "
        "wrong answer = negative (optional); not read: id"
    )
    assert fields[0] == FIELDS | {"positive": ["R.", "S."]}
    assert problems == [None, UNANSWERABLE, UNANSWERABLE, UNANSWERABLE]


def test_rows_with_squads_answers_are_read_from_json_lines_and_parquet(tmp_path):
    rows = [
        {
            "context": "A.",
            "question": "Q?",
            "answers": {"text": ["R.", "S."], "answer_start": [0, 1]},
        },
        {"context": "A.", "question": "P?", "answers": {"text": [], "answer_start": []}},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / "rows.parquet"
    pd.DataFrame(rows).to_parquet(path)
    for name, content in (("rows.jsonl", lines), ("rows.parquet", path.read_bytes())):
        _, fields, problems = read(tmp_path / name, content)
        assert fields[0] == FIELDS | {"positive": ["R.", "S."]}
        assert problems == [None, UNANSWERABLE]


def test_a_nested_column_is_named_by_its_dots(tmp_path):
    row = {"doc": {"text": "A."}, "q": "Q?", "answers": [{"text": "R."}, {"text": "S."}]}
    columns = {"anchor": "doc.text", "query": "q", "positive": "answers.text"}
    _, fields, _ = read(tmp_path / "rows.json", [row], **columns)
    assert fields == [FIELDS | {"positive": ["R.", "S."]}]
    assert look_up({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert look_up({"a.b": {"c": 3}}, "a.b.c") == 3


def test_a_context_of_several_parts_is_their_paragraphs_and_of_wrong_answers_the_first_counts(
    tmp_path,
):
    row = FIELDS | {"anchor": ["A.", "B."], "negative": ["N.", "O."]}
    _, fields, _ = read(tmp_path / "rows.json", [row])
    assert fields == [FIELDS | {"anchor": "A.\n\nB.", "negative": "N."}]


@pytest.mark.parametrize("prompt", ["within", "beside", "text"])
def test_preference_rows_have_their_rejected_turn_as_the_wrong_answer(tmp_path, prompt):
    def said(role, content):
        return {"role": role, "content": content}

    question, right, wrong = said("user", "Q?"), said("assistant", "R."), said("assistant", "W.")
    row = {
        "within": {"chosen": [question, right], "rejected": [question, wrong]},
        "beside": {"prompt": [question], "chosen": [right], "rejected": [wrong]},
        "text": {"prompt": "Q?", "chosen": "R.", "rejected": "W."},
    }[prompt]
    shape, fields, problems = read(tmp_path / "rows.json", [row | {"score": 1}])
    assert shape.startswith("preferences")
    assert "rejected" in shape
    assert shape.endswith("not read: score")
    wanted = {"query": "Q?", "positive": ["R."], "negative": "W.", "anchor": ""}
    assert fields == [wanted if prompt == "text" else wanted | {"turns": []}]
    assert problems == [None]


@pytest.mark.parametrize("kind", ["messages", "preferences", "texts"])
def test_a_context_beside_a_conversation_is_read_unless_it_is_not_to(tmp_path, kind):
    question = {"role": "user", "content": "Q?"}
    right, wrong = ({"role": "assistant", "content": text} for text in ("R.", "W."))
    row = {
        "messages": {"messages": [question, right]},
        "preferences": {"chosen": [question, right], "rejected": [question, wrong]},
        "texts": {"prompt": "Q?", "chosen": "R.", "rejected": "W."},
    }[kind]
    said, (fields,), _ = read(tmp_path / "rows.json", [{"context": "A.", **row}])
    assert fields["anchor"] == "A."
    assert "context" in said
    assert "not read" not in said
    said, (fields,), _ = read(tmp_path / "rows.json", [{"context": "A.", **row}], anchor=None)
    assert fields["anchor"] == ""
    assert said.endswith("not read: context")


def test_a_system_text_beside_sharegpts_turns_is_its_system_message(tmp_path):
    turns = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "R."}]
    row = {"conversations": turns, "system": "Be brief."}
    said, (fields,), _ = read(tmp_path / "rows.json", [row])
    assert fields["turns"] == [{"role": "system", "content": "Be brief."}]
    assert "not read" not in said


def test_rows_without_a_context_get_a_command_without_one(tmp_path):
    with pytest.raises(
        InputError, match=r"data\.columns\.anchor=null -S data\.columns\.query=input"
    ):
        read(tmp_path / "rows.json", [{"input": "Q?", "output": "R."}])


def test_a_turn_that_calls_a_tool_is_no_answer(tmp_path):
    call = {"role": "assistant", "content": "I look it up.", "tool_calls": [{"name": "search"}]}
    row = {"messages": [{"role": "user", "content": "Q?"}, call]}
    _, _, (problem,) = read(tmp_path / "rows.json", [row])
    assert problem == '"messages" contains a tool call, which cannot be trained on'


@pytest.mark.parametrize(
    ("name", "content", "answers"),
    [
        ("blank_first.csv", "\n\nanchor;query;positive\nA.;Q?;R.\n", ["R."]),
        ("stray.tsv", 'anchor\tquery\tpositive\nA.\tQ?\t"R" is\nA.\tP?\tS\n', ['"R" is', "S"]),
        ("open.tsv", 'anchor\tquery\tpositive\n"A.\tQ?\tR\n"A.\tP?\tS\n', ["R", "S"]),
        ("quoted.tsv", 'anchor\tquery\tpositive\nA.\tQ?\t"R ""is"""\n', ['R "is"']),
        ("lines.tsv", 'anchor\tquery\tpositive\nA.\tQ?\t"R\n\tis"\n', ["R\n\tis"]),
    ],
)
def test_cells_are_told_apart_whatever_the_quotes_mean(tmp_path, name, content, answers):
    _, fields, problems = read(tmp_path / name, content.encode())
    assert [row["positive"] for row in fields] == [[answer] for answer in answers]
    assert set(problems) == {None}


def test_utf_16_without_a_mark_is_named(tmp_path):
    for name in ("rows.jsonl", "rows.csv", "rows.json"):
        with pytest.raises(InputError, match="looks like UTF-16; save it as UTF-8"):
            read(tmp_path / name, json.dumps([FIELDS], indent=0).encode("utf-16-le"))


def test_a_column_that_a_command_can_not_name_is_set_in_the_file(tmp_path):
    row = {"context, if any": "A.", " question": "Q?", "answer #1": "R."}
    with pytest.raises(InputError) as error:
        read(tmp_path / "rows.json", [row])
    assert str(error.value).endswith(
        ", in params.yaml:\n  data:\n   columns:\n"
        '    anchor: "context, if any"\n    query: " question"\n    positive: "answer #1"\n'
        "    negative: null"
    )


def test_alpaca_has_no_context_where_its_input_is_empty(tmp_path):
    rows = [
        {"instruction": "Q?", "input": "A.", "output": "R."},
        {"instruction": "P?", "input": "", "output": "R."},
        {"instruction": "", "input": "A.", "output": "R."},
    ]
    said, fields, problems = read(tmp_path / "rows.json", rows)
    assert said.startswith("Alpaca: context = input, question = instruction, answer = output")
    assert fields[0] == FIELDS
    assert fields[1]["anchor"] == ""
    assert problems == [None, None, '"instruction" is empty']


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Q?"},
    {"role": "assistant", "content": "R."},
]
SHAREGPT = [
    {
        "from": {"user": "human", "assistant": "gpt"}.get(turn["role"], "system"),
        "value": turn["content"],
    }
    for turn in CHAT
]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"messages": CHAT},
            "messages in messages: answer = the last turn, context = anchor, or part of the",
        ),
        ({"conversations": SHAREGPT}, "ShareGPT conversations in conversations: answer = the last"),
    ],
)
def test_of_a_conversation_the_last_turn_is_the_answer(tmp_path, row, said):
    described, fields, problems = read(tmp_path / "rows.jsonl", json.dumps(row).encode())
    assert described.startswith(said)
    assert fields == [{"anchor": "", "query": "Q?", "positive": ["R."], "turns": CHAT[:3]}]
    assert problems == [None]


def test_a_conversation_can_have_a_context_and_any_name(tmp_path):
    row = {"talk": CHAT[3:], "doc": "A."}
    described, fields, _ = read(tmp_path / "rows.json", [row], positive="talk", anchor="doc")
    assert described == (
        "messages in talk: answer = the last turn, context = doc, or part of the question"
    )
    assert fields == [FIELDS | {"turns": []}]


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        (CHAT[:2], "has the turns system, user: expected user and assistant in turn"),
        (CHAT[2:], "has the turns assistant, user, assistant"),
        ([{"role": "tool", "content": "x"}, *CHAT[3:]], "has a turn of 'tool'"),
        ([{"role": "user", "content": None}, CHAT[4]], "has a turn without a text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, CHAT[4]], "something other than"),
        ("Q?", "is not a list of turns with role and content"),
    ],
)
def test_a_conversation_that_can_not_be_used_says_why(tmp_path, turns, problem):
    rows = [{"messages": CHAT}, {"messages": turns}]
    assert problem in read(tmp_path / "rows.json", rows)[2][1]


HEADER = ["context", "question", "answer"]
COLUMNS = {"anchor": "context", "query": "question", "positive": "answer", "negative": None}


@pytest.mark.parametrize(
    ("name", "separator"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")]
)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("quote", ["", '"'])
def test_cells_stand_between_commas_semicolons_or_tabs(tmp_path, name, separator, mark, quote):
    lines = [HEADER, ["Ein Ätztext, lang; sehr.", "Q?", "3"], ["A.", "Q?", "R."]]
    if not quote:
        lines[1][0] = "Ein Ätztext."
    text = "".join(
        separator.join(f"{quote}{cell}{quote}" for cell in cells) + "\r\n" for cells in lines
    )
    _, fields, problems = read(tmp_path / name, mark + text.encode(), **COLUMNS)
    assert fields[0]["anchor"] == lines[1][0]
    assert fields[1] == FIELDS
    assert problems == [None, None]


def test_excels_first_line_names_the_separator(tmp_path):
    content = b"sep=;\r\ncontext;question;answer\r\nA.;Q?;R.\r\n"
    assert read(tmp_path / "a.csv", content, **COLUMNS)[1] == [FIELDS]


def test_windows_1252_is_read_where_it_is_named_and_advised_where_it_is_not(tmp_path):
    content = "context;question;answer\nÄtzt „so“.;Q?;5 €\n".encode("windows-1252")
    _, fields, _ = read(tmp_path / "a.csv", content, "windows-1252", **COLUMNS)
    assert fields == [{"anchor": "Ätzt „so“.", "query": "Q?", "positive": ["5 €"]}]
    with pytest.raises(InputError, match=r"a\.csv:2: not UTF-8: byte 0xc4; .*windows-1252"):
        read(tmp_path / "a.csv", content, **COLUMNS)
    with pytest.raises(InputError, match="looks like UTF-16; save it as UTF-8"):
        read(tmp_path / "a.csv", "context;question;answer\n".encode("utf-16"), **COLUMNS)


def test_numbers_booleans_and_dates_are_answers_as_text(tmp_path):
    answers = [2019, 1.5, True, False, 0, float("nan"), None]
    rows = [FIELDS | {"positive": value} for value in answers]
    _, fields, problems = read(tmp_path / "rows.json", rows)
    texts = [["2019"], ["1.5"], ["true"], ["false"], ["0"], None, None]
    assert [row["positive"] for row in fields] == texts
    assert problems == [None] * 5 + ['"positive" is null'] * 2
    frame = pd.DataFrame([FIELDS | {"positive": pd.Timestamp("2019-03-01")}])
    frame.to_parquet(tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet", (tmp_path / "rows.parquet").read_bytes())[1][0][
        "positive"
    ] == ["2019-03-01T00:00:00"]


@pytest.mark.parametrize("word", ["None", "N/A", "NA", "null", "NaN", " n/a "])
def test_a_text_for_nothing_is_no_answer(tmp_path, word):
    rows = [FIELDS | {"positive": word}, FIELDS | {"positive": [word, "R."]}]
    rows += [FIELDS | {"negative": word}, FIELDS | {"positive": f"{word}: see above"}]
    _, _, problems = read(tmp_path / "rows.json", rows)
    assert problems == [
        f'"positive" is {word.strip()!r}, a text for nothing (clean.nothing)',
        None,
        None,
        None,
    ]


def test_where_nothing_fits_the_error_maps_the_columns_that_are_there(tmp_path):
    row = {"passage": "A.", "question": "Q?", "the answer": "R.", "id": 3}
    with pytest.raises(InputError) as error:
        read(tmp_path / "rows.json", [row])
    assert str(error.value).endswith(
        'no row has the columns "anchor" (data.columns.anchor), "query" (data.columns.query), '
        '"positive" (data.columns.positive); the first row\'s columns are passage, question, the '
        "answer, id. Replace each NAME by the right one: a nested column as answers.text, and "
        "null for anchor if there is no context:\n"
        "  dvc exp run -S data.columns.anchor=passage -S data.columns.query=question "
        "-S data.columns.positive='the answer' -S data.columns.negative=null"
    )
    with pytest.raises(InputError, match=r"-S data\.columns\.positive=NAME"):
        read(tmp_path / "rows.json", [{"sourceText": "A.", "Q": "Q?"}])


def test_squads_answers_can_be_plain_texts_or_both(tmp_path):
    row = {"context": "A.", "question": "Q?"}
    rows = [row | {"answers": answers} for answers in ([], ["R."], [answer("R.")], "R.")]
    _, fields, problems = read(tmp_path / "rows.json", rows)
    assert [row["positive"] for row in fields[1:]] == [["R."]] * 3
    assert problems == [UNANSWERABLE, None, None, None]
    mixed = row | {"answers": [answer("R."), "S."]}
    assert "expected a text" in read(tmp_path / "rows.json", [mixed])[2][0]
    cut = [row | {"answers": text} for text in ("{'text': ['R.'], 'answer_start': [0]}", "{'text'")]
    assert "is an object written as text" in read(tmp_path / "rows.json", cut)[2][1]


@pytest.mark.parametrize(
    ("first", "other", "column"),
    [
        ({"instruction": "P?", "output": "R."}, {"instruction": "Q?", "output": "R."}, "input"),
        ({"messages": CHAT[3:]}, {"messages": CHAT[3:]}, "anchor"),
    ],
)
def test_a_context_that_the_first_row_lacks_is_read_in_the_others(tmp_path, first, other, column):
    _, fields, problems = read(tmp_path / "rows.json", [first, other | {column: "A."}])
    assert [row["anchor"] for row in fields] == ["", "A."]
    assert problems == [None, None]


def test_columns_that_are_not_read_are_named(tmp_path):
    row = FIELDS | {"negatives": ["N."], "system": "Be brief."}
    assert read(tmp_path / "rows.json", [row])[0].endswith("; not read: negatives, system")


def test_a_name_of_the_users_own_that_is_not_there_is_an_error_whatever_else_fits(tmp_path):
    with pytest.raises(InputError, match=r'no row has the columns "ctx" \(data\.columns\.anchor\)'):
        read(tmp_path / "a.json", squad({"question": "Q?", "answers": []}), anchor="ctx")
    _, fields, _ = read(
        tmp_path / "a.json", squad({"question": "Q?", "answers": [answer("R.")]}), anchor=None
    )
    assert fields[0]["anchor"] == ""


@pytest.mark.parametrize(
    ("row", "path"),
    [
        (
            {"passage": "A.", "question": "Q?", "answer": {"value": "R.", "aliases": ["S."]}},
            "answer.value",
        ),
        ({"passage": "A.", "question": "Q?", "answer": [{"text": "R."}]}, "answer.text"),
        (
            {"passage": "A.", "question": "Q?", "answers_spans": {"spans": ["R."]}},
            "answers_spans.spans",
        ),
    ],
)
def test_the_mapping_of_a_nested_column_goes_to_its_text_and_reads_it(tmp_path, row, path):
    with pytest.raises(InputError) as error:
        read(tmp_path / "rows.json", [row])
    assert f"-S data.columns.positive={path} " in str(error.value)
    _, fields, problems = read(
        tmp_path / "rows.json", [row], anchor="passage", query="question", positive=path
    )
    assert fields[0]["positive"] == ["R."]
    assert problems == [None]


def test_no_context_is_advised_by_nobody_but_the_user(tmp_path):
    with pytest.raises(InputError, match=r"-S data\.columns\.anchor=NAME"):
        read(tmp_path / "rows.json", [{"Kontext": "A.", "Frage": "Q?", "Antwort": "R."}])


@pytest.mark.parametrize(
    ("name", "content", "encoding", "said"),
    [
        ("a.csv", b"a;b\r1;2\r", "utf-8", "lines end in CR only"),
        (
            "a.csv",
            codecs.BOM_UTF8 + b"a;b\n",
            "windows-1252",
            "is UTF-8; set it: -S data.encoding=utf-8",
        ),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', "utf-8", "name it .jsonl if each line is an object"),
    ],
)
def test_a_file_of_another_kind_than_it_says_is_told_which(tmp_path, name, content, encoding, said):
    with pytest.raises(InputError, match=said):
        read(tmp_path / name, content, encoding)


def run(rows, name="rows.json", **changes):
    Path(name).write_text(json.dumps(rows))
    edit_yaml("params.yaml", data__path=name, **changes)
    base.main()
    profile.main()
    clean.main()
    format.main()
    names = ("train", "validation", "test")
    return [row for split in names for row in read_jsonl(Path(f"data/formatted/{split}.jsonl"))]


def test_turns_before_the_question_stand_where_they_belong(project):
    rows = [
        {"messages": [*CHAT[:3], {"role": "user", "content": f"Q{index}?"}, CHAT[4]]}
        for index in range(30)
    ]
    (row, *_) = run(rows)
    *before, asked = row["messages"]
    assert before == CHAT[:3]
    assert asked["content"] == row["question"]
    assert row["messages_no_question"][0] == CHAT[0]
    assert len(row["messages_no_question"]) == len(row["messages_bare"]) == 2
    assert "hold no room" not in Path("reports/profile.html").read_text()


def test_unanswerable_questions_are_left_out_and_counted(project, caplog):
    questions = [
        {"id": str(index), "question": f"Q{index}?", "answers": [answer(f"R{index}.")]}
        for index in range(30)
    ]
    questions += [
        {"id": f"n{index}", "question": f"N{index}?", "answers": [], "is_impossible": True}
        for index in range(20)
    ]
    articles = [squad(question, context=f"A{question['id']}.") for question in questions]
    content = {"data": [article["data"][0] for article in articles]}
    caplog.set_level("INFO")
    assert len(run(content)) == 30
    metrics = json.loads(Path("metrics/clean.json").read_text())
    assert (metrics["kept"], metrics["unanswerable"]) == (30, 20)
    assert json.loads(Path("metrics/profile.json").read_text())["unanswerable"] == 20
    assert "20 unanswerable questions are left out" in caplog.text


def test_a_wrong_answer_for_nothing_is_no_wrong_answer_and_on_record(project):
    rows = make_rows(24)
    rows[3]["negative"] = "N/A"
    made = {row["question"]: row for row in run(rows)}
    assert made[rows[3]["query"]]["negative"] is None
    changes = list(read_jsonl(Path("data/clean/changes.jsonl")))
    assert [row["before"] for row in changes if row["rule"] == "nothing"] == ["N/A"]


def test_an_answer_counts_by_the_right_one_that_it_is_most_like(judged):
    judged()
    review.main()
    path = Path("data/formatted/test.jsonl")
    rows = list(read_jsonl(path))
    rows[0]["also_right"] = ["something else r0"]  # what zero-shot says
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate.main()
    scores = {row["id"]: row for row in read_jsonl(Path("data/predictions/scores.jsonl"))}
    assert scores["r0"]["zeroshot"]["rouge_l"] == scores["r0"]["sft"]["rouge_l"] == 1
    assert scores["r1"]["zeroshot"]["rouge_l"] < 1
    assert json.loads(Path("metrics/evaluation.json").read_text())["several_right"] == 1


def test_which_lengths_take_how_many_rows():
    # 90 short rows, 9 with a long answer, one with a longer question
    rows = [RowLengths(40, 1000, 30, 30)] * 90 + [RowLengths(40, 1000, 100, 150)] * 9
    rows += [RowLengths(700, 1500, 30, 30)]
    nine, most, every = advise_lengths(rows, None)
    # 40 + 48, 40 + 112, and 700 + 112, in steps of 64; up to the whole of their contexts
    assert nine == (0.9, 48, 1088, 128)
    assert most == (0.99, 112, 1152, 192)
    assert every == (1.0, 112, 1664, 832)
    assert nine.command() == ("dvc exp run -S format.max_length=1088 -S format.max_new_tokens=48")


def test_short_references_leave_a_zero_shot_sentence_its_room_and_the_same_advice_is_said_once():
    advice = advise_lengths([RowLengths(60, 800, 4, 4)] * 12, None)
    assert {entry[1:] for entry in advice} == {(48, 896, 128)}
    assert describe_advice(advice, None) == (
        "\n  enough for 100% of the rows: dvc exp run -S format.max_length=896 "
        "-S format.max_new_tokens=48 (max_length=128 is enough without any of their contexts)"
    )


def test_prompts_without_room_are_said_with_shorter_passages_only_where_these_would_fit(
    project, caplog
):
    sentence = "The pump of this part is made of steel and weighs twelve kilograms."
    rows = [
        {**row, "anchor": f"{row['anchor']} {' '.join([sentence] * 7)}"} for row in make_rows(24)
    ]
    made = run(rows, format__passage_characters=10_000)
    least = max(row["question_tokens"] for row in made)
    said = "shorter passages, with room for one in"
    for room, shorter in ((4, False), (60, True)):
        caplog.clear()
        run(
            rows,
            format__passage_characters=480,
            format__max_new_tokens=128,
            format__max_length=least + 128 + room,
        )
        assert "test prompts have no room for a passage" in caplog.text
        assert (said in caplog.text) == shorter, room
    size = int(caplog.text.split("format.passage_characters=")[1].split()[0])
    run(rows, format__passage_characters=size)
    assert not any(
        row["ranked"] and not row["passages"] for row in read_jsonl(formatted_path("test"))
    )


def test_a_template_that_leaves_passages_out_is_not_said_to_lack_room(project, caplog):
    run(make_rows(24), format__prompt="question")
    assert "no room for a passage" not in caplog.text
    assert read_json(SPLITS_PATH)["test"]["without_passages"] == 0


def test_the_models_positions_and_longer_wrong_answers_bound_the_lengths():
    # a prompt is cut to max_length - 112, and the longest answer of 600 must follow it
    (_, _, every) = advise_lengths([RowLengths(60, 5000, 110, 600)] * 10, 4096)
    assert every == (1.0, 112, 3584, 192)
    assert every.max_length - 112 + 600 <= 4096 < every.max_length + 64 - 112 + 600
    assert [entry.max_length for entry in advise_lengths([RowLengths(500, 500, 90, 90)], 512)] == [
        0
    ] * 3


def test_format_says_which_lengths_would_take_the_rows_and_they_do(project):
    rows = make_rows(24)
    with pytest.raises(InputError) as error:
        run(rows, format__max_length=100, format__max_new_tokens=40)
    (line,) = (line for line in str(error.value).splitlines() if "enough for 100%" in line)
    length, reserve = (int(part.split("=")[1].split()[0]) for part in line.split(" -S ")[1:])
    assert len(run(rows, format__max_length=length, format__max_new_tokens=reserve)) == 24
    assert "format.max_length" in Path("reports/profile.html").read_text()
