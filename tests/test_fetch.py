import json
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from commands.fetch import fetch, main
from library.corpus.reading import read_raw
from library.errors import InputError
from library.params import Columns, DataParams

ROWS = [
    {"anchor": f"Text {index}.", "query": "Why?", "positive": "So.", "negative": "Not so."}
    for index in range(5)
]
COLUMNS = Columns(anchor="anchor", query="query", positive="positive", negative="negative")
DATA = DataParams(path="mine.parquet", encoding="utf-8", columns=COLUMNS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set as a folder: one JSON Lines file a split."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "dataset"
    made.mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:2])):
        (made / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def test_a_split_of_a_local_data_set_becomes_a_file_that_the_stages_read(
    folder, tmp_path, monkeypatch, capsys
):
    out_path = tmp_path / "raw/mine.parquet"
    monkeypatch.setattr(sys, "argv", ["fetch", str(folder), str(out_path), "--split", "test"])
    main()
    rows = [row | {"positive": [row["positive"]]} for row in ROWS[:2]]
    assert [row.fields for row in read_raw(out_path, DATA)] == rows
    assert list(out_path.parent.iterdir()) == [out_path]
    assert fetch(str(folder), None, "train", None, out_path) == 5


def test_one_of_several_configurations_is_named_and_nested_columns_are_read_by_their_path(
    folder, tmp_path
):
    # as qiaojin/PubMedQA is laid out
    row = {
        "pubid": 1,
        "question": "Why?",
        "context": {"contexts": ["One.", "Two."], "labels": ["AIM", "RESULTS"]},
        "long_answer": "So.",
        "final_decision": "yes",
    }
    listed = ""
    for name in ("pqa_artificial", "pqa_labeled"):
        (folder / name).mkdir()
        made = [row | {"pubid": number} for number in range(3)]
        Dataset.from_list(made).to_parquet(folder / name / "train-00000-of-00001.parquet")
        listed += f"- config_name: {name}\n  data_files: [{{split: train, path: {name}/train-*}}]\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    out_path = tmp_path / "raw/mine.parquet"
    with pytest.raises(InputError, match="--config is missing; choose one of: pqa_artificial, pqa"):
        fetch(str(folder), None, "train", None, out_path)
    assert fetch(str(folder), None, "train", "pqa_labeled", out_path) == 3
    columns = Columns(
        anchor="context.contexts", query="question", positive="long_answer", negative=None
    )
    (first, *_) = read_raw(
        out_path, DataParams(path="m.parquet", encoding="utf-8", columns=columns)
    )
    assert first.fields == {
        "anchor": "One.\n\nTwo.",
        "query": "Why?",
        "positive": ["So."],
    }


@pytest.mark.parametrize("revision", [None, "main", "0123"])
def test_a_hub_data_set_must_be_pinned_to_a_commit(tmp_path, revision):
    with pytest.raises(InputError, match="expected a commit of 40 hexadecimal digits"):
        fetch("someone/rows", revision, "train", None, tmp_path / "x.parquet")


def test_what_can_not_be_had_is_an_error_that_names_it(folder, tmp_path):
    with pytest.raises(InputError, match=r"someone/rows, split train: "):
        fetch("someone/rows", "0" * 40, "train", None, tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"dataset, split dev: .*dev"):
        fetch(str(folder), None, "dev", None, tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"ends in \.parquet"):
        fetch(str(folder), None, "train", None, Path("x.csv"))
    assert not (tmp_path / "x.parquet").exists()
