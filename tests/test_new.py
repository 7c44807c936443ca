import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, edit_yaml

from commands import new
from library.corpus.groups import context_id
from library.corpus.reading import find_file_shape, read_raw
from library.corpus.rows import find_problem, row_id
from library.corpus.splitting import check_split, find_ties, make_split
from library.errors import InputError
from library.params import load_params

PIPELINE = (
    *(
        ".ci",
        ".dvcignore",
        ".gitignore",
        "Makefile",
        "benchmarks",
        "dvc.yaml",
        "embedding",
        "models",
        "params.yaml",
        "prompts",
        "pyproject.toml",
    ),
    *("commands", "library", "requirements.lock", "stages", "standin", "tests"),
)
RESULTS = {
    *(
        ".ci/check_result.py",
        ".github/ISSUE_TEMPLATE/problem.yml",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LOG.md",
        "README.md",
        "benchmarks/speed.json",
        "data/raw/theirs.json.dvc",
        "data/votes/votes-a.json",
        "docs/data.md",
    ),
    *("dvc.lock", "embedding/dvc.lock", "metrics/evaluation.json", "tests/test_readme.py"),
}
LINK = "models/local/config.json"  # as docs/models.md puts it there for experiments in a queue


def git(folder, *arguments):
    return subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The pipeline in a repository of its own, with results and a remote that are nobody else's."""
    folder = tmp_path_factory.mktemp("source")
    for name in PIPELINE:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "local")
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / "models/local").mkdir()  # without the weights that somebody may have there
    shutil.copy(ROOT / "models/local/model.yaml", folder / "models/local")
    (folder / LINK).symlink_to("/theirs/config.json")
    # what a new project has changed already: these tests are its own, too
    edit_yaml(folder / "params.yaml", data__path="data/sample/patents.json")
    for name in RESULTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("ours alone")
    shutil.copytree(ROOT / "data/votes", folder / "data/votes", dirs_exist_ok=True)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text(
        "[core]\n    remote = ours\n['remote \"ours\"']\n    url = /ours\n"
    )
    git(folder, "init", "--quiet")
    git(folder, "config", "user.name", "Somebody")
    git(folder, "config", "user.email", "somebody@example.com")
    git(folder, "remote", "add", "origin", "https://name:secret@example.com/pipeline.git")
    git(folder, "add", "--all")
    git(folder, "add", "--force", LINK)
    git(folder, "commit", "--quiet", "--message", "Begin")
    (folder / "stages/unfinished.py").write_text("of the working tree alone")
    return folder


@pytest.fixture(autouse=True)
def name_and_address(monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Somebody")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "somebody@example.com")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """A project begun from it, in an empty folder that was there already."""
    folder = tmp_path_factory.mktemp("projects") / "mine"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Somebody")
            patch.setenv(f"GIT_{role}_EMAIL", "somebody@example.com")
        new.make_project(source, folder)
    return folder


def test_a_new_project_has_the_pipeline_and_none_of_our_results(source, made):
    kept = {
        name
        for name in git(source, "ls-files").splitlines()
        if not name.startswith("benchmarks/") or name.endswith(".py")
    }
    kept -= {*RESULTS, LINK}
    begun = set(git(made, "ls-files").splitlines())
    assert kept - begun == set()
    own = {"README.md", ".dvc/.gitignore", "data/raw/.gitignore", "data/raw/mine.json.dvc"}
    assert begun - kept == own
    changed = {name for name in kept if (source / name).read_bytes() != (made / name).read_bytes()}
    assert changed == {".dvc/config", "params.yaml"}
    assert "ours" not in (made / ".dvc/config").read_text()
    # what CI checks of our results and pages is passed over where there are none
    script = (made / ".ci/run").read_text()
    checks = [line for line in script.splitlines() if line.startswith("if [ ")]
    assert len(checks) == 2
    for check in checks:
        assert subprocess.run(["bash", "-ec", check], cwd=made, check=False).returncode == 0
    assert {path.name for path in made.parent.iterdir()} == {"mine"}


def test_it_is_committed_and_says_where_it_comes_from(source, made):
    commit = git(source, "rev-parse", "HEAD")
    assert git(made, "status", "--porcelain") == ""
    assert git(made, "log", "--format=%s") == f"Begin from {commit[:12]} of does-fine-tuning-help"
    readme = (made / "README.md").read_text()
    assert f"`{commit}` of the pipeline at https://example.com/pipeline.git. The" in readme
    assert "secret" not in readme


def test_its_rows_are_usable_and_known_to_dvc(made):
    params = load_params(made / "params.yaml")
    assert params.data.path == "data/raw/mine.json"
    rows = list(read_raw(made / params.data.path, params.data))
    assert len(rows) == new.EXAMPLE_ROWS
    shape = find_file_shape(made / params.data.path, params.data)
    assert all(find_problem(row, shape, params.clean.nothing) is None for row in rows)
    texts = [row.fields | {"positive": row.fields["positive"][0]} for row in rows]
    clean = [
        text
        | {
            "id": row_id(text),
            "context_id": context_id(text["anchor"], text["query"]),
            "also_right": [],
            "turns": [],
        }
        for text in texts
    ]
    ties = find_ties(clean, params.split)
    assert check_split(make_split(ties, params.split), ties, params.split) == []
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "data", "status"],
        cwd=made,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "No changes" in status.stdout


@pytest.mark.slow
def test_it_passes_its_own_lint_and_the_tests_of_the_pipeline(made):
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PYTEST_ADDOPTS": ""
    }
    quick = "deps or declares or every_parameter or shipped"
    for command in (
        ["ruff", "check"],
        ["pytest", "-q", "-n0", "tests/test_params.py", "tests/test_pipeline.py", "-k", quick],
    ):
        ended = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=made,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout


def test_a_folder_in_use_is_refused_and_left_alone(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        new.make_project(source, tmp_path / "mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        new.make_project(source, tmp_path / "mine/notes.txt")
    with pytest.raises(InputError, match="is inside this project"):
        new.make_project(source, source / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_nothing_is_begun_by_nobody(source, tmp_path, monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        for part in ("NAME", "EMAIL"):
            monkeypatch.delenv(f"GIT_{role}_{part}")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    with pytest.raises(InputError, match=r"git config --global user\.name"):
        new.make_project(shutil.copytree(ROOT / "prompts", tmp_path / "source"), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_folder_without_a_commit_is_no_source(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "source").mkdir()
    with pytest.raises(InputError, match=r"git rev-parse: .*not a git repository"):
        new.make_project(tmp_path / "source", tmp_path / "mine")


def commit_params(source, tmp_path, old, new_text):
    folder = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(source), "clone")
    params = (folder / "params.yaml").read_text()
    assert old in params
    (folder / "params.yaml").write_text(params.replace(old, new_text))
    git(folder, "commit", "--quiet", "--all", "--message", "Edit")
    return folder


def test_what_fails_on_the_way_leaves_nothing(source, tmp_path):
    folder = commit_params(source, tmp_path, "  max_length: ", "  max_lenght: ")
    with pytest.raises(InputError, match=r"params\.yaml: format\.max_lenght: unknown parameter"):
        new.make_project(folder, tmp_path / "mine")
    assert {path.name for path in tmp_path.iterdir()} == {"clone"}


def test_the_path_of_the_data_is_replaced_however_it_is_written_and_nothing_else(source, tmp_path):
    folder = commit_params(source, tmp_path, "  path: data/sample", '  "path": data/sample')
    new.make_project(folder, tmp_path / "mine")
    before, after = (
        (path / "params.yaml").read_text().splitlines() for path in (folder, tmp_path / "mine")
    )
    changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert [pair[1].split(":")[0].strip() for pair in changed] == ['"path"']
    assert "data/sample/patents.json" in changed[0][0]
    assert "data/raw/mine.json" in changed[0][1]


def test_the_columns_are_those_of_the_example(source, tmp_path):
    folder = commit_params(source, tmp_path, "    negative: negative", "    negative: null")
    new.make_project(folder, tmp_path / "mine")
    params = load_params(tmp_path / "mine/params.yaml")
    rows = list(read_raw(tmp_path / "mine" / params.data.path, params.data))
    assert params.data.columns.model_dump() == {column: column for column in rows[0].fields}


def test_the_command_says_what_is_missing():
    for arguments in ([], [""]):
        ended = subprocess.run(
            [sys.executable, "-m", "commands.new", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode
        assert "make new DIR=../mine" in ended.stderr
