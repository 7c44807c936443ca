"""The benchmark of determinism and speed on a GPU, with toys on a CPU."""

import json
import sys

import pytest
import torch

from benchmarks import cuda
from benchmarks.cuda import CASES, TOY, Bench, Case, main, missing_variants, summarize


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["cuda", "--toy", "--device", "cpu", *map(str, arguments)])
    main()
    return capsys.readouterr().out


def test_results_are_kept_as_they_come_and_a_second_call_goes_on(tmp_path, monkeypatch, capsys):
    out = tmp_path / "toy.json"
    said = call(monkeypatch, capsys, "--only", "one row", "--minutes", "0.1", "--out", out)
    assert not out.exists()  # no case begins that late
    asked = "--only", "3B, other", "--out", out
    call(monkeypatch, capsys, *asked)
    whole = json.loads(out.read_text())
    (record,) = whole["records"]
    assert (record["case"], record["limited"]) == ("3B, other allocator", "fits")
    assert whole["machine"]["versions"]["torch"]
    monkeypatch.setattr(cuda, "run", lambda *_: pytest.fail("it was measured again"))
    said = call(monkeypatch, capsys, *asked)
    assert "3B, other allocator, expandable segments: fits" in said
    assert json.loads(out.read_text()) == whole


def test_a_case_that_ends_badly_is_said_and_tried_again(tmp_path, monkeypatch, capsys):
    # the process knows no such case, and ends
    monkeypatch.setattr(cuda, "CASES", [Case("unknown", {"one": None, "two": None})])
    out = tmp_path / "toy.json"
    said = call(monkeypatch, capsys, "--out", out)
    assert "unknown, one: exit status 1: StopIteration" in said
    records = json.loads(out.read_text())["records"]
    assert [record["outcome"] for record in records] == ["failed"]
    assert missing_variants(cuda.CASES[0], records) == ["one", "two"]


def test_an_error_is_a_result_and_the_next_is_measured(capfd):
    def fail(bench):
        raise ValueError("no kernel\nand more")

    case = Case("some", {"bad": fail, "good": lambda bench: {"tokens": 3}})
    cuda.work(case, ["bad", "good"], Bench(TOY, torch.device("cpu")))
    bad, good = map(json.loads, capfd.readouterr().out.splitlines())
    assert (bad["outcome"], bad["why"]) == ("failed", "ValueError: no kernel")
    assert good == {"case": "some", "variant": "good", "outcome": "done", "tokens": 3}


def test_the_summary_says_what_is_equal_and_what_it_costs():
    def record(case, variant, **values):
        return {"case": case, "variant": variant, "outcome": "done", **values}

    lines = summarize(
        [
            record("repeat, first", "alone", adapter="a", tokens_per_second=100.0),
            record("repeat, second", "alone", adapter="a", tokens_per_second=99.0),
            record("repeat, not deterministic", "alone", adapter="b", tokens_per_second=125.0),
            record("repeat, not deterministic", "alone again", adapter="c", tokens_per_second=1.0),
            record("stages", "sft", adapter="d"),
            record("stages", "sft again", adapter="e"),
            record("one row", "as is", rows=["f"], tokens=[1, 2, 3], tokens_per_second=8.0),
            record(
                *("one row, compiled", "static cache, compiled"),
                **{"rows": ["g"], "tokens": [1, 2, 4], "tokens_per_second": 80.0},
            ),
            record("training", "ours, 8 at a time", tokens_per_second=1234.4),
            record("one row", "context", context_bytes=690_000_000),
            {"case": "3B", "variant": "usual allocator", "outcome": "failed", "why": "no result"},
        ]
    )
    assert lines == [
        "training twice, rows alone: same bytes deterministically, DIFFERENT otherwise; it takes "
        "1.25 times as long",
        "training twice, rows padded: not measured deterministically, not measured otherwise",
        "stages, sft again: DIFFERENT",
        "stages, sft stopped and gone on with: not measured",
        "stages, zeroshot again: not measured",
        "one row, as is: 8.0 tokens/s, 1 of 1 answers are those of 'as is'",
        "CUDA's context: 690,000,000 bytes",
        "training, ours, 8 at a time: 1,234 tokens/s",
        "one row, compiled, static cache, compiled: 80.0 tokens/s, 0 of 1 answers are those of "
        "'as is', up to token 2",
        "3B, usual allocator: no result",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_runs_on_a_cpu_and_gives_the_same_there(case, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    cuda.work(case, list(case.variants), Bench(TOY, torch.device("cpu")))
    said = capfd.readouterr().out.splitlines()  # here among what the trainer prints
    records = [json.loads(line) for line in said if line.startswith('{"case"')]
    assert [(record["variant"], record["outcome"]) for record in records] == [
        (name, "done") for name in case.variants
    ]
    for key in ("rows", "answers", "nats"):
        assert len({json.dumps(record[key]) for record in records if key in record}) <= 1
    if case.name == "stages":
        assert len({record["adapter"] for record in records if "adapter" in record}) == 1
