import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import edit_yaml, make_rows

from commands import ask
from library.errors import InputError
from library.files import read_json, read_jsonl
from library.llm.answering import answer_rows
from library.llm.chat_template import hash_ids, load_tokenizer
from library.llm.loading import load_merged, load_model
from library.llm.manifest import find_model_folder
from library.llm.merging import merge_adapter
from library.llm.prompts import load_prompt
from library.params import load_params
from library.paths import BASE_DIR, MANIFEST_PATH
from stages import base, clean, format, sft


@pytest.fixture
def asked(project):
    """The formatted test rows by the index of their raw row, which has defects, and of whose
    context a part alone fits.
    """
    rows = make_rows(24)
    for row in rows:
        row["anchor"] = (
            "\ufeff[0001] "
            + row["anchor"].replace(". ", "\u2062. \n\n(FIG. 2) ").replace("The", "&quot;The&quot;")
            + "\n"
        )
        row["query"] += ",\n"
    Path("rows.json").write_text(json.dumps(rows))
    edit_yaml(
        "params.yaml",
        format__max_length=320,
        format__max_new_tokens=128,
        format__passage_characters=80,
    )
    base.main()
    clean.main()
    format.main()
    places = {
        row["id"]: int(row["place"].removeprefix("index "))
        for row in read_jsonl(Path("data/clean/rows.jsonl"))
    }
    return rows, {places[row["id"]]: row for row in read_jsonl(Path("data/formatted/test.jsonl"))}


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ask", *map(str, arguments)])
    ask.main()


def test_the_prompt_is_the_one_that_format_made_of_the_same_raw_texts(asked):
    rows, formatted = asked
    params, tokenizer, template = (
        load_params(),
        load_tokenizer(BASE_DIR),
        load_prompt(Path("prompts/answer.jinja")),
    )
    assert all(0 < len(row["passages"]) < len(row["ranked"]) for row in formatted.values())
    for index, row in formatted.items():
        Path("context.txt").write_bytes(rows[index]["anchor"].encode())
        context = ask.read_context("context.txt")
        cleaned = ask.clean_question(rows[index]["query"], context, params)
        made = ask.prompt_for(*cleaned, tokenizer, template, params)
        assert made.messages == row["messages"]
        assert (hash_ids(made.ids), made.indices) == (row["prompt_hash"], row["passages"])
        alone = ask.prompt_for(cleaned[0], "", tokenizer, template, params)
        assert hash_ids(alone.ids) == row["prompt_hash_no_context"]


def test_the_answer_alone_is_printed_and_is_that_of_the_model_asked_for(
    asked, monkeypatch, capfd, caplog
):
    rows, formatted = asked
    # room for the answers that train
    edit_yaml("params.yaml", sft__learning_rate=0.05, format__max_length=512)
    format.main()
    sft.main()
    adapter_dir, merged_dir = Path("artifacts/adapter"), Path("merged")
    merge_adapter(BASE_DIR, adapter_dir, merged_dir)
    index = min(formatted)
    row = next(
        row
        for row in read_jsonl(Path("data/formatted/test.jsonl"))
        if row["id"] == formatted[index]["id"]
    )
    expected = {
        (): load_model(BASE_DIR, "nf4", adapter_dir),
        ("--base",): load_model(BASE_DIR, "nf4"),
        ("--model", merged_dir): load_merged(merged_dir),
    }
    Path("context.txt").write_bytes(rows[index]["anchor"].encode())
    capfd.readouterr()
    caplog.set_level("INFO")
    answers = {}
    for options, model in expected.items():
        answers[options] = answer_rows(model, load_tokenizer(BASE_DIR), [row], 24)[0]["prediction"]
        arguments = [
            rows[index]["query"],
            "--context",
            "context.txt",
            "--max-new-tokens",
            24,
            "--show-passages",
            *options,
        ]
        run(monkeypatch, *arguments)
        assert capfd.readouterr().out == answers[options] + "\n"
    assert answers[()] != answers["--base",]
    assert f"passage {row['passages'][-1] + 1} of {len(row['ranked'])}: " in caplog.text
    assert "cut off at 24 tokens; allow more with --max-new-tokens" in caplog.text

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows[index]["anchor"].encode())))
    run(monkeypatch, rows[index]["query"], "--context", "-", "--max-new-tokens", 24)
    assert capfd.readouterr().out == answers[()] + "\n"


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        ("\u200b", "cleaning leaves nothing of it"),
        ("x" * 4000, "the question leaves no room for a whole passage"),
    ],
)
def test_a_context_of_which_nothing_is_read_is_said(project, monkeypatch, caplog, context, reason):
    base.main()
    Path("context.txt").write_text(context)
    run(
        monkeypatch,
        "What is it made of?",
        "--context",
        "context.txt",
        "--base",
        "--max-new-tokens",
        4,
    )
    assert f"no passage of the context is in the prompt: {reason}" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Why?", "--context", "none.txt"], r"^none\.txt: no such file \(--context\)$"),
        (["Why?", "--context", "."], r"^\.: a folder \(--context\)$"),
        (
            ["Why?", "--context", "latin.txt"],
            r"^latin\.txt: not UTF-8 at byte 4; save it as UTF-8$",
        ),
        (
            ["Why?", "--context", "blank.txt"],
            r"^blank\.txt: the context is empty; leave --context out",
        ),
        (
            ["Why?", "--context", "markup.txt"],
            r"^question or context: contains the tokenizer's markup '<\|im_end\|>'; remove it",
        ),
        (["\u200b "], "^the question is empty; ask one"),
        (["\udce9t\udce9"], "^the question is not UTF-8"),
        (
            ["Why? " * 400],
            r"^the question takes \d+ tokens, but question and passages may take 384 .*; ask a sh",
        ),
        (
            ["Why?", "--max-new-tokens", "0"],
            "^--max-new-tokens: expected a positive whole number, got 0$",
        ),
        (
            ["Why?", "--max-new-tokens", "4096"],
            r"^--max-new-tokens: 4096 after a prompt of \d+ tokens exceed the model's 4096$",
        ),
        (["Why?", "--model", "none"], "^none: no such folder"),
        (["Why?", "--model", "prompts"], "^prompts: no config.json$"),
        (["Why?"], r"^artifacts/adapter/base\.json: no such file; run `dvc repro sft`$"),
    ],
)
def test_what_can_not_be_asked_is_an_error_with_its_name_and_a_remedy(
    project, monkeypatch, arguments, message
):
    base.main()
    Path("latin.txt").write_bytes(b"cafe\xe9")
    Path("blank.txt").write_text(" \n")
    Path("markup.txt").write_text("The pump.<|im_end|>")
    needs_model = "adapter" not in message and "--model" not in arguments
    with pytest.raises(InputError, match=message):
        run(monkeypatch, *arguments, *(["--base"] if needs_model else []))


@pytest.mark.parametrize("options", [["--base"], ["--model", "folder"], []])
def test_what_does_not_fit_is_refused_with_what_would_before_anything_is_loaded(
    project, monkeypatch, caplog, options
):
    base.main()
    shutil.copytree(find_model_folder(read_json(MANIFEST_PATH)["source"]), "folder")
    monkeypatch.setattr(ask, "check_artifacts", lambda *_: None)  # no adapter is loaded either
    for load in ("load_model", "load_merged"):
        monkeypatch.setattr(ask, load, lambda *_, **__: pytest.fail("a model was loaded"))
    asked = ["Of what material is the valve that was described?", "--max-new-tokens", "2048"]
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "0.0001")
    nothing = "No single change makes it fit. Combine a shorter prompt with a smaller model"
    with pytest.raises(InputError, match=nothing):
        run(monkeypatch, *asked, *options)
    caplog.set_level("INFO")
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "64")
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        run(monkeypatch, *asked, *options)
    (said,) = [line for line in caplog.messages if "a batch of" in line and "tokens needs" in line]
    needed = float(re.search(r"needs (\d+) MiB", said)[1])
    monkeypatch.setenv("MEMORY_LIMIT_GIB", str(needed / 1024))
    with pytest.raises(InputError) as error:
        run(monkeypatch, *asked, *options)
    first, head, *ways = str(error.value).splitlines()
    assert re.match(r"answering a prompt of \d+ tokens needs \d+ MiB \(weights ", first)
    assert head == "what would fit:"
    assert any(re.match(r"  --max-new-tokens \d+: \d+ MiB ", way) for way in ways)
