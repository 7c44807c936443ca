"""Embedding models compared: by hand-made runs, by real DVC experiments, and in a browser."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EVALUATE, copy_params, edit_yaml
from ruamel.yaml import YAML
from test_compare import make_run
from test_pages import HOSTILE, check_charts, fits, needs_browser, open_page

from commands import compare
from commands.compare import embedding_rows, group_runs, render_comparison
from library.errors import InputError
from library.files import write_text
from library.repository.experiments import (
    EmbeddingRun,
    list_embedding_runs,
    list_revisions,
    list_runs,
)

PARAMS = {"embed.model": "minilm", "embed.seed": 7, "embed.primary": "passage", "split.seed": 0}


def make_metrics(sft, verdict=1, task="passage", against=1):
    """Zero-shot 0.5, BM25 0.4, an interval of 0.1 to both sides, on 20 questions."""
    result = {"zeroshot": 0.5, "sft": sft, "bm25": 0.4, "delta": sft - 0.5, "p": 0.01}
    result |= {"low": sft - 0.6, "high": sft - 0.4, "n": 20, "groups": 9}
    beside = {"bm25": 0.4, "sft": sft, "delta": sft - 0.4, "p_holm": 0.02, "verdict": against}
    return {"verdict": verdict, task: {"ndcg_at_10": result}, "against_bm25": {task: beside}}


def make_embedding(name, sft=0.7, test="rows", task="passage", verdict=1, against=1, **params):
    params = {**PARAMS, "embed.primary": task, **params}
    metrics = make_metrics(sft, verdict, task, against)
    return EmbeddingRun(name, params, metrics, None, test, None)


def test_the_table_has_the_parameters_that_differ_and_what_tuning_changed():
    file = "models/embedding/minilm.yaml:learning_rate"
    other = "models/embedding/e5.yaml:learning_rate"
    runs = [
        make_embedding("low", 0.55, verdict=0, **{file: 1e-4}),
        make_embedding("high", 0.75, **{"embed.seed": 8, file: 1e-4}),
        make_embedding("e5", 0.6, **{"embed.model": "e5", other: 2e-5}),
    ]
    head, *rows = embedding_rows(runs)
    # each model's own file differs from the other's: that says no more than embed.model
    assert head[1:5] == ["embed.model", "embed.seed", "task", "BM25"]
    judged = ["0.500", "0.750", "+0.250", "+0.150", "+0.350", "better"]
    assert rows[0] == ["high", "minilm", "8", "question → passage", "0.400", *judged]
    assert [row[0] for row in rows] == ["high", "e5", "low"]
    assert rows[2][-1] == "no evidence"
    runs[1] = make_embedding("high", 0.75, **{"embed.seed": 8, file: 1e-3})
    assert file in embedding_rows(runs)[0]


def test_two_runs_are_undecided_and_other_rows_or_tasks_are_not_ordered():
    runs = [
        make_embedding("a", 0.6),
        make_embedding("b", 0.9, against=-1, **{"embed.seed": 8}),
        make_embedding("c", test="others"),
        make_embedding("d", task="answer"),
    ]
    assert [[run.name for run in group] for group in group_runs(runs)] == [["b", "a"], ["c"], ["d"]]
    said, page = render_comparison([make_run("main")], EVALUATE, runs)
    for text in (
        "The runs form 3 groups (2, 1, 1) with different test rows, texts to search or primary "
        "task. Runs of different groups are not compared",
        "Which of two embedding runs is better stays undecided",
        # of 0.6 and 0.9
        "Runs that differ in embed.seed alone have a standard deviation of up to 0.212.",
        "Against BM25, fine-tuning is better in 1 of 2 runs, worse in 1, and in 0",
    ):
        assert text in said
        assert text in page.replace("&#39;", "'")
    assert said.startswith("experiment  seeds  metric ")
    assert "\n\nEmbedding models (make embed), by nDCG@10:\n\nexperiment  embed.seed" in said
    assert "<tr><td>1. b<td>BM25<td>0.400<td>\n" in page
    assert "undecided: not paired" not in page


def test_without_an_embedding_nothing_is_said_of_it_and_without_a_language_model_of_that():
    assert "mbedding" not in "".join(render_comparison([make_run("main")], EVALUATE))
    said, page = render_comparison([], EVALUATE, [make_embedding("main")])
    assert said.startswith("Embedding models")
    assert "validation loss" not in said + page
    assert "undecided" not in said


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


STAGE = {
    "wdir": "..",
    "cmd": "python embed.py",
    "params": ["split", "embed.model", "embed.seed", "embed.primary"],
    "deps": ["data/clean/rows.jsonl"],
    "outs": [{"data/rankings/bm25.jsonl": {"cache": False}}],
    "metrics": [{"metrics/embedding.json": {"cache": False}}],
}
# what the seed and the split say stands in for what training would make of them
EMBED = f"""
import json
from pathlib import Path
from ruamel.yaml import YAML
params = YAML(typ="safe").load(Path("params.yaml"))
metrics = json.loads({json.dumps(json.dumps(make_metrics(0.7)))})
metrics["passage"]["ndcg_at_10"]["sft"] = params["embed"]["seed"] / 10
Path("data/rankings").mkdir(exist_ok=True)
Path("data/rankings/bm25.jsonl").write_text(str(params["split"]["seed"]))
Path("metrics").mkdir(exist_ok=True)
Path("metrics/embedding.json").write_text(json.dumps(metrics))
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A Git and DVC repository with the result of one run of `make embed`, committed."""
    copy_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "A")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@example.com")
    run("git", "init", "--quiet", "--initial-branch", "main")
    run("dvc", "init", "--quiet")
    write_text(Path(".gitignore"), "/data/rankings/\n/reports/\n")
    write_text(Path("data/clean/rows.jsonl"), "{}\n")
    write_text(Path("embed.py"), EMBED)
    # the language model's, in short
    train = {"cmd": "true", "params": ["sft.seed"]}
    YAML().dump({"stages": {"train": train}}, Path("dvc.yaml"))
    Path("embedding").mkdir()
    YAML().dump({"stages": {"embed_evaluate": STAGE}}, Path("embedding/dvc.yaml"))
    run("dvc", "repro", "--quiet", "dvc.yaml", "embedding/dvc.yaml")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "Measure")


def found():
    return {made.name: made for made in list_embedding_runs(list_revisions())}


@pytest.mark.slow
def test_experiments_of_dvc_are_its_own_results_alone(repository, capsys):
    def experiment(name, pipeline, *changes):
        sets = [part for change in changes for part in ("--set-param", change)]
        run("dvc", "exp", "run", "--quiet", "--name", name, *sets, pipeline)
        run("git", "reset", "--quiet", "--hard")

    experiment("other-seed", "embedding/dvc.yaml", "embed.seed=9")
    experiment("other-split", "embedding/dvc.yaml", "split.seed=1")
    # these carry metrics/embedding.json on, the second beside an `embed` that it is not of
    experiment("tuned", "dvc.yaml", "sft.seed=8")
    experiment("not-embedded", "dvc.yaml", "sft.seed=9", "embed.seed=3")
    runs = found()
    assert runs.keys() == {"main", "other-seed", "other-split"}
    assert runs["other-seed"].metrics["passage"]["ndcg_at_10"]["sft"] == 0.9
    assert runs["other-seed"].test == runs["main"].test != runs["other-split"].test
    assert {made.name for made in list_runs(list_revisions())} >= {"main", "tuned"}
    assert "other-seed" not in {made.name for made in list_runs(list_revisions())}
    compare.main()
    said = capsys.readouterr().out
    table = [line.split() for line in said.splitlines() if line.startswith(("main", "other"))]
    assert [row[:2] for row in table] == [["other-seed", "9"], ["main", "7"], ["other-split", "7"]]
    assert "2 groups (2, 1) with different test rows, texts to search" in said
    assert not said.strip().startswith("experiment"), "the language model has no result"

    edit_yaml("params.yaml", embed__seed=5)
    assert found().keys() == runs.keys(), "not run"
    run("dvc", "repro", "--quiet", "embedding/dvc.yaml")
    assert found().keys() == runs.keys() | {"workspace"}


def test_a_bad_file_of_metrics_is_named(repository):
    lacking = {"passage": {"ndcg_at_10": {"n": 3}}}
    for text, fault in (
        ("no", "not JSON"),
        ("[]", "expected an object of numbers"),
        ('{"verdict": "1"}', "verdict: expected a number, got '1'"),
        ('{"verdict": 1}', r"against_bm25\.passage\.verdict is missing; run `make embed`"),
        (json.dumps(make_metrics(0.7, verdict=2)), "verdict: expected -1, 0 or 1"),
        (json.dumps(make_metrics(0.7) | lacking), r"passage\.ndcg_at_10\.bm25 is missing"),
    ):
        write_text(Path("metrics/embedding.json"), text)
        with pytest.raises(InputError, match=rf"^metrics/embedding\.json in workspace: {fault}"):
            found()


@needs_browser
@pytest.mark.parametrize("width", [1300, 390])
def test_the_page_draws_embeddings_and_fits_a_phone(tmp_path, context, width):
    runs = [
        make_embedding(HOSTILE, 0.8),
        make_embedding("one", 0.6, verdict=0, **{"embed.seed": 8}),
        make_embedding("other-rows", test="others"),
    ]
    page_text = render_comparison([make_run("main"), make_run("b", 0.6)], EVALUATE, runs)[1]
    write_text(tmp_path / "compare.html", page_text)
    page, errors = open_page(context, tmp_path / "compare.html")
    page.set_viewport_size({"width": width, "height": 900})
    assert len(check_charts(page, tmp_path / "compare.html")) == 3
    drawn = page.locator(".plot >> nth=1")
    # zero-shot, fine-tuned and BM25 of two runs, and an interval each
    assert drawn.locator(".mark-symbol.role-mark path").count() == 6
    assert drawn.locator(".mark-rule.role-mark line").count() == 2
    assert fits(page)
    assert errors == []
    if shots := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{shots}/compare-embedding-{width}.png", full_page=True)
