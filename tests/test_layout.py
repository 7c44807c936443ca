"""Where things are, and what runs again when one of them is edited."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, copy_code, copy_params
from ruamel.yaml import YAML

from library import imports
from library.files import write_text
from library.imports import PACKAGES, computing_modules, imported_modules
from library.llm import checkpoints
from library.llm.checkpoints import checkpoint_dir
from library.params import HubModel, LocalModel, ModelConfig, Params, Section, load_params
from standin.recipe import Recipe

DVC = YAML(typ="safe").load(ROOT / "dvc.yaml")
EMBEDDING = YAML(typ="safe").load(ROOT / "embedding/dvc.yaml")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
STAGE_LINES = 120


def test_a_module_stands_for_each_stage_and_nothing_else_beside_it():
    found = {path.stem for path in (ROOT / "stages").iterdir() if path.suffix == ".py"}
    assert found - {"__init__"} == {*DVC["stages"], *EMBEDDING["stages"]}
    for path in (ROOT / "stages").glob("*.py"):
        assert len(path.read_text().splitlines()) <= STAGE_LINES, path


def test_nobody_imports_a_stage_or_a_command_and_the_library_imports_neither_nor_the_stand_in():
    for path in MODULES:
        inside = path.relative_to(ROOT).parts[0]
        for other in imported_modules(path.relative_to(ROOT)) - {path.relative_to(ROOT)}:
            assert other.parts[0] != "stages", f"{path} imports {other}"
            assert other.parts[0] != "commands" or inside == "commands", f"{path} imports {other}"
            assert inside != "library" or other.parts[0] == "library", f"{path} imports {other}"


@pytest.mark.parametrize("path", sorted(path for path in MODULES if path.name == "__init__.py"))
def test_each_package_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text())), path


def sections(section):
    yield section
    for field in section.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation)


@pytest.mark.parametrize("section", [Params, HubModel, LocalModel, ModelConfig, Recipe])
def test_every_parameter_is_explained(section):
    for part in sections(section):
        for name, field in part.model_fields.items():
            assert field.description, f"{part.__name__}.{name}"


def test_imports_are_found_at_any_depth_and_within_functions(tmp_path):
    for name, text in {
        "stages/one.py": "from library.wing import two\n",
        "library/wing/two.py": "def later():\n    from library.wing.three import x\n",
        "library/wing/three.py": "import library.files, json\nx = 1\n",
        "library/files.py": "",
        "library/wing/four.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    # library/files.py computes nothing, and nobody imports four
    assert [path.as_posix() for path in computing_modules("one", tmp_path)] == [
        "library/wing/three.py",
        "library/wing/two.py",
        "stages/one.py",
    ]


def explain(path):
    """Edit the docstring of a module."""
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"""', '"""Edited. ', 1), encoding="utf-8")


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """The pipeline in a DVC repository that has recorded every stage, on stubs of its outputs."""

    def dvc(*arguments):
        command = [sys.executable, "-m", "dvc", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    monkeypatch.chdir(tmp_path)
    copy_code(".")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, name)
    copy_params(".")
    for name in ("prompts", "data/votes"):
        shutil.copytree(ROOT / name, name)
    data = load_params().data.path
    for stage in DVC["stages"].values():
        metrics = [name for entry in stage.get("metrics", []) for name in entry]
        for name in sorted([*stage["deps"], *stage["outs"], *metrics], reverse=True):
            path = Path(name.replace("${data.path}", data))
            if "${" not in name and not path.exists():
                write_text(path if path.suffix else path / "config.json", "{}\n")
    write_text(Path(data), "[]\n")
    subprocess.run(["git", "init", "--quiet"], check=True)
    dvc("init", "--quiet")
    dvc("commit", "--force")
    return lambda: set(YAML(typ="safe").load(dvc("status", "--json")) or {})


def test_an_edit_runs_again_only_the_stages_whose_output_could_change(recorded):
    # a page's words, a parameter's explanation, file I/O, how a stage starts: no model is asked
    # again
    for name in ("params.py", "files.py", "entry.py", "records.py", "paths.py"):
        explain(Path("library") / name)
    assert recorded() == set()
    explain(Path("library/pages/report.py"))
    assert recorded() == {"report"}
    explain(Path("library/corpus/reading.py"))
    assert recorded() == {"report", "cards", "clean", "profile"}
    explain(Path("library/llm/merging.py"))
    assert recorded() == {"report", "cards", "clean", "profile"}
    explain(Path("library/llm/trainer.py"))
    assert recorded() == {"report", "cards", "clean", "profile", "seeds", "sft", "dpo"}
    explain(Path("library/llm/generation.py"))
    # base tries the model out
    assert recorded() == {
        "report",
        "cards",
        "clean",
        "profile",
        "sft",
        "zeroshot",
        "predict",
        "seeds",
        "others",
        "dpo",
        "base",
    }


def test_other_weights_of_a_local_model_begin_with_base_again(recorded):
    assert recorded() == set()
    Path("models/tiny/model.safetensors").write_bytes(b"other weights")
    assert recorded() == {"base"}


def test_an_edit_keeps_a_killed_runs_checkpoint_unless_its_result_could_change(
    tmp_path, monkeypatch
):
    copy_code(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    monkeypatch.setattr(
        checkpoints, "computing_modules", lambda stage: imports.computing_modules(stage, tmp_path)
    )
    first = checkpoint_dir("sft", [], 1)
    for name in ("params.py", "pages/report.py", "llm/merging.py", "llm/generation.py"):
        explain(tmp_path / "library" / name)
    explain(tmp_path / "standin/pretrain.py")
    assert checkpoint_dir("sft", [], 1) == first
    assert checkpoint_dir("sft", [], 2) != first
    explain(tmp_path / "library/llm/trainer.py")
    assert checkpoint_dir("sft", [], 1) != first
