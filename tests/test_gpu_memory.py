"""The GPU benchmark, as far as it runs without a GPU: its tables, its order, and one case in a
process of its own.
"""

import json
import sys
from dataclasses import asdict, replace

import pytest
import torch
from conftest import ROOT

from benchmarks.gpu_memory import (
    FITS,
    LENGTHS,
    LIMIT_GIB,
    MODELS,
    OUT_OF_MEMORY,
    SEARCH_STEP,
    TRAINED,
    Case,
    key,
    main,
    measured_record,
    next_case,
    predict,
    predict_longest,
    read_records,
    run_case,
    search_bounds,
    table,
)
from library.llm.memory.measuring import CONTEXT_BYTES, fits, ran_out_of_memory
from library.units import GIB

SMALL, LARGE = "qwen2.5-0.5b-instruct", "qwen2.5-1.5b-instruct"
CASE = Case("training", SMALL, 2048, "none")


def record(case, outcome=FITS, **values):
    return {**asdict(case), "machine": {"device": "Some GPU"}, "outcome": outcome, **values}


def cells(text, *beginning):
    """The cells of the one table row that begins so."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    (row,) = [row for row in rows if row[: len(beginning)] == list(beginning)]
    return row[len(beginning) :]


def test_without_records_only_predictions_stand_in_the_tables():
    text = table([], [SMALL], [2048])
    for line in (
        line for line in text.splitlines() if SMALL in line and not line.startswith("| recipe")
    ):
        assert "not measured" in line
    training = next(line for line in text.splitlines() if line.startswith(f"| {SMALL} | 2,048 |"))
    predicted, *measured = [cell.strip() for cell in training.strip("|").split("|")][2:]
    assert predicted.endswith(" GiB")
    assert measured == ["not measured"] * 5


def test_a_table_shows_what_was_measured_and_says_what_was_not():
    records = [
        record(
            CASE, measured_bytes=2**30, tokens_per_second=1234.5, answer_tokens_per_second=211.0
        ),
        record(replace(CASE, limit="card"), OUT_OF_MEMORY),
        record(replace(CASE, limit="tensors"), measured_bytes=2**30),
        record(replace(CASE, what="original"), measured_bytes=3 * 2**30, tokens_per_second=600.0),
        record(replace(CASE, model=LARGE), "failed", why="no result"),
    ]
    del records[-1]["machine"]  # what failed may not have got so far
    training = table(records, [SMALL, LARGE], [2048]).split("| offloaded |")[0]
    _, *measured = cells(training, SMALL, "2,048")
    assert measured[0] == "1.00 GiB"
    assert measured[1].endswith("%")
    assert measured[2:] == ["1,234", "211", "without CUDA's context"]
    assert cells(training, LARGE, "2,048")[1:] == ["not measured"] * 5
    text = table(records, [SMALL, LARGE], [2048])
    assert cells(text, "the original study's") == ["3.00 GiB", "3.00", "600", "not measured"]
    assert cells(text, "this study's") == ["1.00 GiB", "1.00", "1,234", "without CUDA's context"]


def test_the_search_halves_what_is_left_and_ends():
    records = []
    while case := next_case([SMALL], [2048], True, records, set()):
        records.append(record(case, FITS if case.tokens <= 5000 else OUT_OF_MEMORY))
    for what in ("training", "offloaded"):
        assert search_bounds(SMALL, records, what) == (4864, 5120)
        assert sum(entry["tokens"] != 2048 for entry in records if entry["what"] == what) <= 7


def test_every_model_is_trained_and_answers_before_limits_and_offloading_are_tried():
    models, lengths, records = [SMALL, LARGE], [1024, 2048], []
    while len(records) < 12:
        records.append(record(next_case(models, lengths, True, records, set())))
    grid = {
        Case(what, model, tokens, "none")
        for what in ("training", "answering")
        for model in models
        for tokens in lengths
    }
    assert grid <= {key(entry) for entry in records}


def test_no_context_is_tried_only_where_the_context_made_it_fail():
    lengths = [2048]
    done = ("training", "original", "answering")
    records = [
        record(replace(CASE, what=what, limit=limit)) for what in done for limit in ("none", "card")
    ]
    assert next_case([SMALL], lengths, True, records, set()) == replace(CASE, what="offloaded")
    records[1] = record(replace(CASE, limit="card"), OUT_OF_MEMORY)
    assert next_case([SMALL], lengths, True, records, set()) == replace(CASE, limit="tensors")


def test_a_failed_case_is_tried_again_in_the_next_run_only():
    failed = [record(Case("original", SMALL, 2048, "none"), "failed")]
    first = next_case([SMALL], [2048], True, failed, set())
    assert first == Case("original", SMALL, 2048, "none")
    assert next_case([SMALL], [2048], True, failed, {first}) != first


def recorded():
    return read_records(ROOT / "benchmarks/gpu_memory.json")


def test_the_printed_table_says_what_the_records_and_the_formula_say():
    lines = (ROOT / "docs/memory.md").read_text(encoding="utf-8").splitlines()
    (first,) = [n for n, line in enumerate(lines) if "longest row that fits 3.45 GiB" in line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[first + 2 :]]
    records = recorded()
    for index, name in enumerate(MODELS):
        (title, *predicted), (_, *measured) = rows[2 * index : 2 * index + 2]
        assert title.lower().removesuffix(": predicted").replace(" ", "-") + "-instruct" == name
        cases = [Case("training", name, tokens, "none") for tokens in LENGTHS]
        taken = [measured_record(records, case).get("measured_bytes") for case in cases]
        assert measured[:4] == ["open" if size is None else f"{size / GIB:.2f}" for size in taken]
        assert predicted[:4] == [f"{predict(case).peak / GIB:.2f}" for case in cases]
        longest = [predict_longest(name, what) for what in TRAINED]
        assert predicted[4] == "{} ({})".format(*(f"{n:,}" if n else "none" for n in longest))
        bounds = [search_bounds(name, records, what) for what in TRAINED]
        found = [f"{low:,}" if high - low <= SEARCH_STEP else "open" for low, high in bounds]
        assert measured[4] == "{} ({})".format(*found)


def test_predictions_are_near_what_a_card_took_and_promise_no_row_that_it_refused():
    for entry in recorded():
        case = key(entry)
        if (predicted := predict(case)) is None:
            continue
        if entry["outcome"] == FITS:
            least = 0.99 if case.what == "training" else 0.98
            assert least < predicted.peak / entry["measured_bytes"] < 1.05, case
        else:
            assert not fits(predicted, LIMIT_GIB * GIB - CONTEXT_BYTES), case


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, expected):
    assert ran_out_of_memory(error, torch.device("cpu")) is expected


@pytest.mark.slow
@pytest.mark.parametrize("what", ["training", "offloaded"])
def test_a_case_runs_in_a_process_of_its_own(what):
    measured = run_case(Case(what, "toy", 64, "none"), "cpu")
    assert measured["outcome"] == FITS, measured
    assert measured["machine"]["device"] == "CPU"
    assert abs(measured["predicted_bytes"] / measured["measured_bytes"] - 1) < 0.1
    assert measured["tokens_per_second"] > measured["answer_tokens_per_second"] > 0


@pytest.mark.slow
def test_a_case_that_ends_badly_leaves_a_record_that_says_so():
    failed = run_case(Case("training", "no such model", 64, "none"), "cpu")
    assert failed["outcome"] == "failed"
    assert "no such model" in failed["why"]


def test_the_table_needs_no_gpu(tmp_path, monkeypatch, capsys):
    out = tmp_path / "records.json"
    out.write_text(json.dumps([]))
    options = ["--table", "--models", SMALL, "--lengths", "2048", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu_memory", *options])
    main()
    assert f"| {SMALL} | 2,048 |" in capsys.readouterr().out
