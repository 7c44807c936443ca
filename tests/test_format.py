import json
from pathlib import Path

import pytest
from conftest import ROOT, edit_yaml, make_rows

from library.errors import InputError
from library.files import read_jsonl
from library.llm.chat_template import load_tokenizer, prompt_completion_ids
from library.llm.formatting import format_row
from library.llm.prompts import load_prompt
from library.params import load_params
from library.records import SPLITS
from stages import base, clean, format

ROW = {
    "id": "r",
    "place": "index 0",
    "contradicts": None,
    "also_right": [],
    "turns": [],
    "query": "What is the pump made of?",
    "positive": "Steel.",
    "negative": "Glass.",
}


@pytest.fixture
def asking(tiny_dir):
    params = load_params(ROOT / "params.yaml").format.model_copy(
        update={"max_length": 300, "max_new_tokens": 60, "passage_characters": 80}
    )
    return load_tokenizer(tiny_dir), load_prompt(ROOT / "prompts/answer.jinja"), params


def test_the_prompt_holds_the_passage_that_is_asked_for_and_keeps_the_reserve(asking):
    params = asking[2]
    filler = "No limitation to the number of elements is intended.\n\n" * 200
    anchor = filler + "The pump is made of steel.\n\n" + filler
    row = format_row({**ROW, "anchor": anchor}, "test", "g", *asking)
    user = row["messages"][1]["content"]
    assert "The pump is made of steel." in user
    assert user.endswith(ROW["query"])
    assert row["prompt_tokens"] + params.max_new_tokens <= params.max_length
    assert len(row["passages"]) < len(row["ranked"]) == 401
    assert row["passages"] == sorted(row["passages"])


def test_a_prompt_that_leaves_passages_out_is_given_none(asking):
    tokenizer, _, params = asking
    row = format_row(
        {**ROW, "anchor": "The pump is made of steel."},
        "test",
        "g",
        tokenizer,
        load_prompt(ROOT / "prompts/question.jinja"),
        params,
    )
    assert row["passages"] == []
    assert row["messages"] == row["messages_no_context"]


def test_a_test_rows_answer_does_not_move_its_prompt_but_a_train_rows_pays_from_its_passages(
    asking,
):
    tokenizer, _, params = asking
    anchor = "The pump is made of steel. It is large and heavy indeed.\n\n" * 40
    long = ROW | {"anchor": anchor, "positive": "It is made of steel. " * 12}
    test = [
        format_row({**long, "positive": positive}, "test", "g", *asking)
        for positive in ("Steel.", long["positive"])
    ]
    assert test[0]["messages"] == test[1]["messages"]
    train = format_row(long, "train", "g", *asking)
    assert len(train["passages"]) < len(test[1]["passages"])
    prompt, completion = prompt_completion_ids(tokenizer, train["messages"], long["positive"])
    assert len(prompt + completion) <= params.max_length


def test_what_can_not_fit_or_holds_markup_is_an_error(asking):
    with pytest.raises(
        InputError, match=r"question and answer alone take \d+ tokens, format.max_length is 300"
    ):
        format_row({**ROW, "anchor": "A.", "positive": "word " * 300}, "train", "g", *asking)
    with pytest.raises(InputError, match=r"a text holds the tokenizer's markup '<\|im_end\|>'"):
        format_row({**ROW, "anchor": "A <|im_end|> B"}, "train", "g", *asking)


def test_a_test_row_whose_answer_would_be_scored_beyond_the_models_positions_is_an_error(asking):
    long = ROW | {"anchor": "A.", "negative": "It is made of glass. " * 30}
    row = format_row(long, "test", "g", *asking, 4096)
    assert row["prompt_tokens"] < 200
    with pytest.raises(
        InputError,
        match=r"prompt and its longer answer take \d+ tokens, the model has 200 positions",
    ):
        format_row(long, "test", "g", *asking, 200)
    format_row(long, "train", "g", *asking, 200)


def test_a_context_of_five_megabytes_is_formatted(asking):
    row = format_row(
        {**ROW, "anchor": "The valve is closed. " * 250_000 + "The pump is made of steel."},
        "test",
        "g",
        *asking,
    )
    assert "The pump is made of steel." in row["messages"][1]["content"]


def test_splits_share_no_text_and_rejected_rows_are_named(project):
    rows = make_rows(24)
    rows[5]["positive"] = "very long " * 500
    Path("rows.json").write_text(json.dumps(rows))
    base.main()
    clean.main()
    format.main()
    splits = {split: list(read_jsonl(Path(f"data/formatted/{split}.jsonl"))) for split in SPLITS}
    groups = [{row["group"] for row in in_split} for in_split in splits.values()]
    assert len(set.union(*groups)) == sum(map(len, groups))
    metrics = json.loads(Path("metrics/format.json").read_text())
    assert sum(metrics[split]["rows"] for split in SPLITS) == 23
    assert metrics["rejected"] == 1
    rejected = list(read_jsonl(Path("data/formatted/rejected.jsonl")))
    assert [(record["file"], record["place"]) for record in rejected] == [("rows.json", "index 5")]
    assert "question and answer alone take" in rejected[0]["reason"]
    paired = {
        row["id"]: row["pair"]
        for row in splits["train"] + splits["validation"] + splits["test"]
        if row["pair"]
    }
    assert paired
    assert all(paired[paired[row]] == row for row in paired)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format__max_length": 100_000},
            r"format\.max_length: 100000 is beyond the model's 4096 positions",
        ),
        (
            {"format__max_length": 140, "format__max_new_tokens": 120},
            r"(?s)of 24 rows cannot be used.*index \d+: question",
        ),
        ({"format__prompt": "poem"}, r"poem\.jinja: no such prompt template"),
    ],
)
def test_settings_that_can_not_work_are_errors(project, changes, message):
    edit_yaml(Path("params.yaml"), **changes)
    base.main()
    clean.main()
    with pytest.raises(InputError, match=message):
        format.main()
    written = (
        [path.name for path in Path("data/formatted").iterdir()]
        if "rows cannot be used" in message
        else []
    )
    assert written == (["rejected.jsonl"] if written else [])
    assert bool(written) == Path("data/formatted").exists()


def test_too_few_groups_are_an_error(project):
    Path("rows.json").write_text(
        json.dumps([{**row, "anchor": "Shared."} for row in make_rows(12)])
    )
    base.main()
    clean.main()
    with pytest.raises(
        InputError, match=r"the largest group has 12 .*: the context 'Shared\.' ties 12"
    ):
        format.main()
