"""Start a new project for other data: the pipeline as committed here, without the results.

`make new DIR=../mine`. It copies the commit, not the working tree, so that the commit named in the
new README identifies the code. It leaves out results, log, votes, recorded measurements, the pages
about them, and the address where this project keeps its outputs.
"""

import argparse
import json
import re
import shlex
import tarfile
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from ruamel.yaml import YAML

from library.entry import run_main
from library.errors import InputError
from library.files import open_atomic, write_text
from library.params import load_params
from library.paths import PARAMS_PATH
from library.repository.client import read_dvc, read_git
from standin.sample_rows import short_rows

DATA_PATH = Path("data/raw/mine.json")
EXAMPLE_ROWS = 60

# by path; `*` stands for any text, slashes included
OURS = (
    ".ci/check_result.py",
    ".dvc/*",
    ".github/ISSUE_TEMPLATE/*",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LOG.md",
    "README.md",
    "benchmarks/*.json",
    "data/raw/*",
    "data/votes/*.json",
    "docs/*",
    "dvc.lock",
    "embedding/dvc.lock",
    "metrics/*",
    "retrievers/embedding.json",
    "retrievers/tuned.json",
    "tests/test_readme.py",
)

README = """\
# Does fine-tuning a small model help on these rows?

Started from commit `{commit}` of the pipeline{origin}. The
README and `docs/` there explain everything.

```sh
make repro    # builds .venv, runs the pipeline on {data_path}, writes reports/report.html
make test     # tests the pipeline's code, not your rows
make doctor   # what works here and what does not
```

`{data_path}` holds {rows} short generated rows as an example. Replace them with yours:

```sh
source .venv/bin/activate
cp ~/mine.json {data_path} && dvc add {data_path}    # other formats: data.path in params.yaml
dvc repro profile    # reports/profile.html: what is in your rows, before anything is trained
dvc repro && git add --all && git commit -m "Measure my rows"
```

| column | holds |
| --- | --- |
| `anchor` | the context that the answer is in |
| `query` | the question |
| `positive` | the right answer |
| `negative` | a wrong answer; if you have none, set `data.columns.negative` to null |

`params.yaml` sets other column names (`data.columns`) and a real model (`model`).
`dvc remote add --default NAME URL && dvc push` stores the outputs elsewhere.
"""


def check_target(target: Path, source: Path) -> None:
    """Raise InputError if a new project cannot start in `target`, or git does not know the user."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(
            f"{target}: exists and is not empty; name a new folder: make new DIR=../mine"
        )
    if target.resolve().is_relative_to(source.resolve()):
        raise InputError(
            f"{target}: is inside this project; name a folder beside it: make new DIR=../mine"
        )
    try:
        read_git("-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT", folder=source)
    except InputError:
        raise InputError(
            "git does not know who commits: git config --global user.name NAME && git config "
            "--global user.email ADDRESS"
        ) from None


def find_origin(source: Path) -> str:
    """The address that the pipeline was cloned from, as text for the README, without a password.

    Empty if it was cloned from a local folder.
    """
    try:
        url = read_git("remote", "get-url", "origin", folder=source).strip()
    except InputError:
        return ""
    if not re.match(r"https?://|ssh://|[\w.-]+@[\w.-]+:", url):
        return ""
    return f" at {re.sub(r'//[^@/]*@', '//', url)}"


def is_ours(member: tarfile.TarInfo) -> bool:
    """Whether a file belongs to this project only: by its path, or as a link to a file on this
    disk.
    """
    elsewhere = member.issym() and Path(member.linkname).is_absolute()
    return elsewhere or any(fnmatch(member.name, name) for name in OURS)


def copy_commit(source: Path, target: Path) -> None:
    """Unpack the files of HEAD, except those that belong to this project only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "commit.tar"
        read_git("archive", "--format=tar", f"--output={path}", "HEAD", folder=source)
        with tarfile.open(path) as archive:
            members = [member for member in archive if not member.isdir() and not is_ours(member)]
            # exists since Python 3.11.4
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(target, members=members)


def adapt(project: Path, readme: str) -> None:
    """Give the copy its own data path, columns, example rows and README."""
    path = project / PARAMS_PATH
    load_params(path)  # do not copy invalid parameters
    yaml = YAML()
    yaml.width = 10_000  # no line is folded
    yaml.preserve_quotes = True
    params = yaml.load(path)
    params["data"]["path"] = DATA_PATH.as_posix()
    params["data"]["columns"].update({column: column for column in short_rows(1, seed=1)[0]})
    with open_atomic(path) as file:
        yaml.dump(params, file)
    write_text(project / "README.md", readme)
    write_text(project / DATA_PATH, json.dumps(short_rows(EXAMPLE_ROWS, seed=1), indent=1) + "\n")


def begin(project: Path, message: str) -> None:
    """Put the project under git and DVC, track its rows with DVC, and commit."""
    read_git("init", "--quiet", folder=project)
    read_git("symbolic-ref", "HEAD", "refs/heads/main", folder=project)
    read_dvc("init", "--quiet", folder=project)
    read_dvc("config", "core.analytics", "false", folder=project)
    read_dvc("add", "--quiet", DATA_PATH.as_posix(), folder=project)
    read_git("add", "--all", folder=project)
    read_git("commit", "--quiet", "--message", message, folder=project)


def make_project(source: Path, target: Path) -> str:
    """Create a project in `target` from the HEAD commit of `source`; returns that commit.

    The folder appears complete or not at all. Raises InputError if `source` has no commit, `target`
    is in use, or git cannot commit.
    """
    check_target(target, source)
    commit = read_git("rev-parse", "HEAD", folder=source).strip()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        project = Path(folder) / "project"
        project.mkdir()
        copy_commit(source, project)
        readme = README.format(
            commit=commit,
            origin=find_origin(source),
            data_path=DATA_PATH.as_posix(),
            rows=EXAMPLE_ROWS,
        )
        adapt(project, readme)
        begin(project, f"Begin from {commit[:12]} of does-fine-tuning-help")
        if target.exists():
            target.rmdir()
        project.replace(target)
    return commit


def main() -> None:
    """Create the project and say what comes next."""
    parser = argparse.ArgumentParser(
        prog="make new", description="Start a project for other data in a new folder."
    )
    parser.add_argument(
        "folder", nargs="?", help="a folder that does not exist or is empty: make new DIR=../mine"
    )
    folder = parser.parse_args().folder
    if not folder:
        raise InputError("which folder? make new DIR=../mine")
    target = Path(folder)
    if read_git("status", "--porcelain"):
        print("note: uncommitted changes are not copied")
    commit = make_project(Path(), target)
    print(
        f"{target}: created from {commit[:12]}\nnext: cd {shlex.quote(str(target))} && make repro"
    )
    print(f"put your rows into {DATA_PATH}: see README.md there")


if __name__ == "__main__":
    run_main(main)
