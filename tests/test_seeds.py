"""The fine-tuned model trained again with other seeds, and the verdict over all of them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from all_stages import STAGES
from conftest import ROOT, edit_yaml

from library.errors import InputError
from library.files import hash_adapter, hash_file, read_json, read_jsonl, write_json, write_text
from library.llm.seeds import is_whole
from library.pages.statements import others_statements
from library.params import EvaluateParams, load_params
from library.paths import ADAPTER_DIR
from library.records import ScoredRow
from library.verdict.scoring import judge
from stages import evaluate, predict, report, review, seeds, sft

AGAIN = Path("data/predictions/seeds/sft@1.jsonl")


def test_another_seed_is_the_run_that_has_that_seed_and_is_judged_with_the_first(project, caplog):
    edit_yaml("params.yaml", sft__seed=7, sft__seeds=[7, 1])
    for stage in STAGES:
        stage.main()
    assert read_json(Path("data/predictions/seeds/seeds.json")) == {"seeds": [1]}
    metrics = read_json(Path("metrics/evaluation.json"))
    assert metrics["training_seeds"] == metrics["primary"]["seeds"] == 2
    by_seed = metrics["by_seed"]
    assert by_seed.keys() == {"sft", "sft@1"}
    assert metrics["rouge_l"]["sft"] == pytest.approx(sum(by_seed.values()) / 2, abs=1e-6)
    scored = list(read_jsonl(Path("data/predictions/scores.jsonl")))
    of_first = sum(row["sft"]["rouge_l"] for row in scored) / len(scored)
    assert by_seed["sft"] == pytest.approx(of_first, abs=1e-6)
    # learned by heart is what the first learned: its own test rows stand against its train rows
    overfitting = metrics["overfitting"]
    assert overfitting["gap"]["rouge_l"]["sft"] == pytest.approx(
        overfitting["train"]["sft"]["rouge_l"] - of_first, abs=1e-5
    )
    text = Path("reports/report.md").read_text()
    assert "**It was trained with 2 seeds**" in text
    assert "trained with one seed" not in text

    answers, record = hash_file(AGAIN), read_json(Path("data/predictions/seeds/sft@1_model.json"))
    caplog.clear()
    with caplog.at_level("INFO"):
        seeds.main()
    assert "training with seed" not in caplog.text
    assert "resuming, 8 are done" in caplog.text
    assert hash_file(AGAIN) == answers
    edit_yaml("params.yaml", sft__seed=1)
    for stage in (sft, predict):
        stage.main()
    assert hash_adapter(ADAPTER_DIR) == record["adapter"]
    assert hash_file(Path("data/predictions/sft.jsonl")) == answers
    assert load_params().sft.more_seeds == [7]


def test_answers_of_another_seed_are_judged_as_they_were_written(judged):
    predictions = judged(rows=4)
    rows = [row | {"prediction": "edited"} for row in predictions["sft"]]
    AGAIN.parent.mkdir(parents=True, exist_ok=True)
    AGAIN.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("data/predictions/seeds/seeds.json").write_text('{"seeds": [1]}')
    record = read_json(Path("data/predictions/sft_model.json"))
    place = Path("data/predictions/seeds/sft@1_model.json")
    place.write_text(json.dumps(record | {"answers": {"seeds/sft@1": "another"}}))
    with pytest.raises(InputError, match=r"sft@1\.jsonl: not as sft@1 wrote it; run `dvc repro`"):
        evaluate.main()
    place.write_text(
        json.dumps(record | {"base": "another", "answers": {"seeds/sft@1": hash_file(AGAIN)}})
    )
    with pytest.raises(InputError, match=r"sft@1\.jsonl: its answers are of another base"):
        evaluate.main()


def test_dpo_is_compared_with_the_seed_that_it_went_on_from():
    # it changes nothing, and other seeds do
    params = EvaluateParams.model_construct(primary="rouge_l", seed=1, draws=1000, confidence=0.95)
    values = np.random.default_rng(0).normal(size=40) / 10
    rows = [
        ScoredRow(
            f"r{at}",
            f"g{at}",
            None,
            {
                name: {"rouge_l": 0.5 + value + shift}
                for name, shift in {
                    "zeroshot": -0.3,
                    "sft": 0.0,
                    "sft@1": 0.2,
                    "sft@2": 0.1,
                    "dpo": 0.0,
                    "few_shot": -0.1,
                }.items()
            },
        )
        for at, value in enumerate(values)
    ]
    judged = judge(rows, params, ["dpo", "few_shot"], {}, ["sft@1", "sft@2"])
    assert judged["rouge_l"]["sft"] == pytest.approx(0.6 + values.mean())
    against = {name: judged["others"][name]["tuned"] for name in ("dpo", "few_shot")}
    assert against["dpo"]["rouge_l"]["delta"] == 0
    assert against["dpo"]["verdict"] == 0
    assert against["few_shot"]["rouge_l"]["delta"] == pytest.approx(0.2)
    assert against["few_shot"]["rouge_l"]["seeds"] == 3
    dpo, few_shot = map(str, others_statements(judged, "rouge_l"))
    assert "Both are of the first seed: DPO started from its adapter." in dpo
    assert "first seed" not in few_shot


def test_runs_are_compared_by_the_mean_over_their_seeds():
    row = ScoredRow(
        "r", "g", None, {"zeroshot": {"f": 9}, "sft": {"f": 1, "g": 5}, "sft@3": {"f": 2}}
    )
    assert row.tuned == {"f": 1.5}  # what says nothing of one of them is left out


def test_a_kept_adapter_that_is_damaged_is_trained_again(tmp_path):
    adapter = tmp_path / "adapter"
    assert not is_whole(adapter)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        write_text(adapter / name, "{}")
    write_json(adapter / "made.json", {"adapter": hash_adapter(adapter)})
    assert is_whole(adapter)
    write_text(adapter / "adapter_model.safetensors", "torn")
    assert not is_whole(adapter)


def test_one_seed_is_said_to_be_one(judged):
    judged(rows=8)
    for stage in (review, evaluate, report):
        stage.main()
    metrics = read_json(Path("metrics/evaluation.json"))
    assert metrics["training_seeds"] == 1
    assert "by_seed" not in metrics
    assert (
        "It was trained with one seed: the interval covers" in Path("reports/report.md").read_text()
    )


def test_without_further_seeds_the_stage_loads_no_model(tmp_path):
    code = "import sys, stages.seeds as s; s.main(); sys.exit('torch' in sys.modules)"
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "models/tiny/model.yaml").write_bytes(
        (ROOT / "models/tiny/model.yaml").read_bytes()
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert read_json(tmp_path / "data/predictions/seeds/seeds.json") == {"seeds": []}
