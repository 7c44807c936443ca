"""The life of an experiment, with git and DVC as they are: run, apply, commit, push, and all of it
in another clone.
"""

import filecmp
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from all_stages import STAGES
from conftest import ROOT, copy_code
from ruamel.yaml import YAML


@pytest.fixture
def run(monkeypatch):
    """Run a command as in an activated environment, and return what it prints."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Somebody")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "somebody@example.com")

    def run_command(*command, folder=None):
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return run_command


@pytest.fixture
def elsewhere(project, run, tmp_path_factory):
    """The project measured and committed; returns a folder with origin.git, and shared, the remote
    of its outputs.

    Its stages have run in this process, where the libraries are loaded already; `dvc commit` writes
    what `dvc repro` would.
    """
    pipeline = YAML(typ="safe").load(ROOT / "dvc.yaml")
    del pipeline["stages"]["sample"]  # nothing here reads it
    YAML().dump(pipeline, project / "dvc.yaml")
    copy_code(".")
    Path("data/votes").mkdir(parents=True)
    Path("data/votes/README.md").write_text("votes")
    for stage in STAGES:
        stage.main()
    folder = tmp_path_factory.mktemp("elsewhere")
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(folder / "origin.git"))
    run("git", "init", "--quiet", "--initial-branch=main")
    run("git", "remote", "add", "origin", str(folder / "origin.git"))
    run("dvc", "init", "--quiet")
    run("dvc", "remote", "add", "--default", "shared", str(folder / "shared"))
    Path(".gitignore").write_text("__pycache__/\n/checkpoints/\n")
    run("dvc", "commit", "--force")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "Measure")
    run("git", "push", "--quiet", "--set-upstream", "origin", "main")
    return folder


@pytest.mark.slow
def test_an_experiment_comes_back_whole_in_another_clone(project, elsewhere, run):
    ran = run("dvc", "exp", "run", "--name", "surer", "--set-param", "evaluate.confidence=0.99")
    assert re.findall(r"Running stage '(\w+)'", ran) == ["evaluate", "report", "cards"]
    assert "surer" in run("dvc", "exp", "show", "--csv")

    # back to the commit, with its outputs, and to the experiment again
    run("git", "restore", "params.yaml", "dvc.lock", "metrics")
    assert "report.md" in run("dvc", "checkout")
    run("dvc", "exp", "apply", "surer")
    assert run("git", "status", "--porcelain").split() == [
        "M",
        "dvc.lock",
        "M",
        "metrics/evaluation.json",
        "M",
        "params.yaml",
    ]
    run("git", "commit", "--quiet", "--all", "--message", "Ask for more confidence")
    run("git", "push", "--quiet")

    # without dvc push another clone knows what it lacks
    clone = elsewhere / "clone"
    run("git", "clone", "--quiet", str(elsewhere / "origin.git"), str(clone))
    assert subprocess.run(["dvc", "pull"], cwd=clone, capture_output=True, check=False).returncode
    assert (
        "artifacts/adapter/"
        in json.loads(run("dvc", "data", "status", "--json", folder=clone))["not_in_cache"]
    )
    assert "up to date" in run("dvc", "repro", "--dry", "--allow-missing", folder=clone)

    run("dvc", "push")
    run("dvc", "exp", "push", "origin", "surer")
    run("dvc", "pull", folder=clone)
    for name in (
        "artifacts/base/manifest.json",
        "artifacts/adapter/adapter_model.safetensors",
        "data/predictions/sft.jsonl",
        "data/formatted/test.jsonl",
        "reports/report.md",
        "metrics/evaluation.json",
    ):
        assert filecmp.cmp(project / name, clone / name, shallow=False), name
    again = run("dvc", "repro", folder=clone)
    assert "Running stage" not in again
    assert "up to date" in again
    assert run("git", "status", "--porcelain", folder=clone) == ""

    # the experiment itself travels beside the branches, on the commit that it started from
    run("dvc", "exp", "pull", "origin", "surer", folder=clone)
    assert "surer" in run("dvc", "exp", "list", "--all-commits", folder=clone)
