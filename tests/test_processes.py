"""Stages as processes of their own: several at a time, and killed."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, edit_yaml, find_split_seed, make_rows
from safetensors.torch import load_file

from library.errors import InputError
from library.files import read_jsonl
from library.llm.processes import start_processes
from library.llm.sharding import find_sharding
from stages import base, clean, format, predict, sft

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TWO = f"{shlex.quote(sys.executable)} -m torch.distributed.run --standalone --nproc-per-node 2"


@pytest.fixture
def formatted(project, monkeypatch):
    monkeypatch.setenv("TOKENS_PER_BATCH", "500")  # several batches
    # two processes can't halve the test rows
    seed = find_split_seed(
        lambda counts: counts["test"][0] % 2 and min(counts.values())[0] > 2, make_rows(24)
    )
    edit_yaml("params.yaml", split__seed=seed)
    base.main()
    clean.main()
    format.main()


def outputs():
    predictions = {
        name: list(read_jsonl(Path(f"data/predictions/{name}.jsonl")))
        for name in ("sft", "sft_train")
    }
    return load_file("artifacts/adapter/adapter_model.safetensors"), predictions


@pytest.mark.slow
def test_two_processes_give_what_one_gives(formatted):
    assert len(list(read_jsonl(Path("data/formatted/test.jsonl")))) % 2, (
        "the rows should not divide"
    )
    sft.main()
    predict.main()
    adapter, predictions = outputs()
    for stage in ("sft", "predict"):
        command = [sys.executable, "-m", f"stages.{stage}"]
        subprocess.run(
            command, env=ENVIRONMENT | {"LAUNCHER": TWO, "TOKENS_PER_BATCH": "500"}, check=True
        )
    other, again = outputs()
    for name, value in adapter.items():
        assert (value - other[name]).norm() < 1e-3 * value.norm(), name
    for name, records in predictions.items():
        assert [record["id"] for record in again[name]] == [record["id"] for record in records]
        for record, same in zip(records, again[name], strict=True):
            for way, scored in record["likelihood"]["positive"].items():
                assert same["likelihood"]["positive"][way]["sum"] == pytest.approx(
                    scored["sum"], rel=1e-3
                )


@pytest.mark.slow
def test_sharded_layers_give_what_whole_ones_give(formatted):
    """A process holds a share of the layers of a model too large for a card, or alone keeps them in
    the computer's memory.
    """
    made = {}
    for name, variables in {
        "whole": {"LAUNCHER": TWO},
        "shared": {"LAUNCHER": TWO, "FSDP": "full_shard"},
        "alone": {},
        "elsewhere": {"FSDP": "offload"},
    }.items():
        for stage in ("sft", "predict"):
            done = subprocess.run(
                [sys.executable, "-m", f"stages.{stage}"],
                env=ENVIRONMENT | {"TOKENS_PER_BATCH": "500"} | variables,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            sharded = re.search(
                r"3 layers are sharded over (\d) processes; each keeps (\d+) MiB of their "
                r"weights (in|on)",
                done.stderr,
            )
            assert (sharded is not None) == ("FSDP" in variables), done.stderr
        paths = [
            "artifacts/adapter/adapter_model.safetensors",
            "data/predictions/sft.jsonl",
            "data/predictions/sft_train.jsonl",
        ]
        made[name] = [Path(path).read_bytes() for path in paths]
    assert made["elsewhere"] == made["alone"]
    assert made["shared"][0] == made["whole"][0]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"FSDP": "zero3"}, "FSDP in the environment: expected full_shard or offload, got 'zero3'"),
        ({"FSDP": "full_shard"}, "FSDP=full_shard in the environment needs several processes"),
        ({"ACCELERATE_USE_FSDP": "true"}, "the accelerate config turns FSDP on"),
    ],
)
def test_what_can_not_be_sharded_is_said(monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said):
        find_sharding()


def test_a_launcher_with_an_open_quote_is_named(monkeypatch):
    monkeypatch.setenv("LAUNCHER", "torchrun 'x")
    with pytest.raises(InputError, match="LAUNCHER in the environment: No closing quotation"):
        start_processes()


def test_a_launcher_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("LAUNCHER", "nowhere --fast")
    with pytest.raises(InputError, match="LAUNCHER in the environment: 'nowhere' is not found"):
        start_processes()


def kill_when(stage, pattern):
    """Start a stage and kill it, with no chance to clean up, as soon as a file is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}"],
        env=ENVIRONMENT | {"TOKENS_PER_BATCH": "500"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(Path("checkpoints").glob(pattern)):
        assert process.poll() is None, "the stage ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_stages_go_on_and_end_in_the_same_bytes(formatted, caplog):
    caplog.set_level("INFO")
    edit_yaml("params.yaml", sft__num_train_epochs=12.0, sft__early_stopping_patience=50)
    paths = [
        Path("artifacts/adapter/adapter_model.safetensors"),
        Path("reports/sft_history.csv"),
        Path("data/predictions/sft.jsonl"),
    ]
    sft.main()
    predict.main()
    undisturbed = [path.read_bytes() for path in paths]
    assert not list(Path("checkpoints").iterdir())
    kill_when("sft", "sft-*/checkpoint-*/complete")
    sft.main()
    assert "resuming from checkpoints/sft-" in caplog.text
    kill_when("predict", "predict-*/sft-answers-*.jsonl")
    predict.main()
    assert ": resuming, " in caplog.text
    assert [path.read_bytes() for path in paths] == undisturbed
