"""Begin a project of its own for other data: the pipeline as it is committed here, without what was found here.

`make new DIR=../mine`. What is copied is the commit, not the working tree, so that the commit named in the new README says it all.
Left out are results, their log, votes, recorded measurements and where this project's outputs are kept.
"""

import argparse
import io
import json
import random
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from stages.corpus import inventions
from stages.corpus.rows import write_text
from stages.params import load_params
from stages.run import InputError, run_stage

DATA_PATH = Path("data/raw/mine.json")
EXAMPLE_ROWS = 60
# by path; `*` stands for any text, slashes included
OURS = (
    ".ci/check_result.py",
    ".dvc/*",
    "LOG.md",
    "README.md",
    "benchmarks/*.json",
    "data/raw/*",
    "data/votes/*.json",
    "dvc.lock",
    "metrics/*",
    "tests/test_readme.py",
)

README = """\
# Does fine-tuning a small model help on these rows?

Begun from the commit `{commit}` of the pipeline{origin}; its README says how everything works.

```sh
make repro    # builds .venv, then from {data_path} to reports/report.html
make test     # of the pipeline's code; none of the tests is about your rows
make doctor   # what is in order here and what is not
```

`{data_path}` holds {rows} short generated rows: an example of the columns, and enough to see the pipeline run. Put yours
in its place:

```sh
source .venv/bin/activate
cp ~/mine.json {data_path} && dvc add {data_path}    # .jsonl, .csv or .parquet: set data.path in params.yaml
dvc repro profile                                    # reports/profile.html: what is in them, before anything is trained
dvc repro && git add --all && git commit -m "Measure my rows"
```

| column | holds |
| --- | --- |
| `anchor` | the context that the answer is in |
| `query` | the question |
| `positive` | the right answer |
| `negative` | a wrong one; without any, set `data.columns.negative` to null |

Other names: `data.columns` in `params.yaml`. A real model: `model` there. `dvc remote add --default NAME URL && dvc push` keeps
outputs elsewhere.
"""


def short_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Generated rows with short contexts; every second description has two rows that swap their answers."""
    rng = random.Random(seed)
    rows: list[dict[str, str]] = []
    for title in rng.sample(inventions.titles("sample"), count):
        invention = inventions.invent(rng, title)
        anchor = "\n\n".join(inventions.fact_paragraphs(rng, invention))
        asked = [rng.sample(invention.facts[aspect], 1) for aspect in rng.sample(inventions.ASPECTS, 2)]
        answers = [inventions.answer(invention, facts) for facts in asked]
        if len(rows) % 3 == 0:
            for facts, positive, negative in zip(asked, answers, reversed(answers), strict=True):
                query = inventions.question(rng, invention, facts)
                rows.append({"anchor": anchor, "query": query, "positive": positive, "negative": negative})
        else:
            wrong = inventions.answer(invention, inventions.contradict(rng, invention, asked[0]))
            query = inventions.question(rng, invention, asked[0])
            rows.append({"anchor": anchor, "query": query, "positive": answers[0], "negative": wrong})
    return rows[:count]


def _run(command: Sequence[str], folder: Path) -> bytes:
    ended = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if ended.returncode:
        raise InputError(f"{' '.join(command)}: {ended.stderr.decode(errors='replace').strip()}")
    return ended.stdout


def _git(folder: Path, *arguments: str) -> str:
    return _run(["git", *arguments], folder).decode().strip()


def check_target(target: Path, source: Path) -> None:
    """Raise InputError where a new project can't begin in `target`, or by whoever asks."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: is there already and not empty; name a new folder: make new DIR=../mine")
    if target.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{target}: is inside this project; name a folder beside it: make new DIR=../mine")
    try:
        _git(source, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT")
    except InputError:
        raise InputError(
            "git does not know who commits: git config --global user.name NAME && git config --global user.email ADDRESS"
        ) from None


def find_origin(source: Path) -> str:
    """Where the pipeline was cloned from, without a password, as the README says it; empty where that is only on this disk."""
    try:
        url = _git(source, "remote", "get-url", "origin")
    except InputError:
        return ""
    return f" at {re.sub(r'//[^@/]*@', '//', url)}" if re.match(r"https?://|ssh://|[\w.-]+@[\w.-]+:", url) else ""


def copy_commit(source: Path, target: Path) -> None:
    """Unpack the files of the commit that is checked out, but those that are ours alone."""
    with tarfile.open(fileobj=io.BytesIO(_run(["git", "archive", "--format=tar", "HEAD"], source))) as archive:
        members = [
            member for member in archive if not member.isdir() and not any(fnmatch(member.name, pattern) for pattern in OURS)
        ]
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # which Python has from 3.11.4 on
        archive.extractall(target, members=members)


def adapt(project: Path, readme: str) -> None:
    """Turn the copy into a project of its own: its data, its README, and no check of numbers that it does not have."""
    params_path = project / "params.yaml"
    params = params_path.read_text(encoding="utf-8")
    path = load_params(params_path).data.path
    changed = re.sub(
        rf"^(\s+path:\s*)['\"]?{re.escape(path)}['\"]?(?=\s|$)", rf"\g<1>{DATA_PATH.as_posix()}", params, count=1, flags=re.M
    )
    write_text(params_path, changed)
    if load_params(params_path).data.path != DATA_PATH.as_posix():
        raise InputError(f"params.yaml: data.path: {path!r} could not be replaced; write it on a line of its own")
    write_text(project / "README.md", readme)
    write_text(project / DATA_PATH, json.dumps(short_rows(EXAMPLE_ROWS, seed=1), indent=1) + "\n")
    script = project / ".ci/run"
    if script.is_file():
        lines = [line for line in script.read_text().splitlines(keepends=True) if "check_result" not in line]
        script.write_text(
            "".join(lines).replace(", the whole pipeline, and whether its result still holds", " and the whole pipeline")
        )


def begin(project: Path, message: str) -> None:
    """Put the project under git and DVC, its rows under DVC, and commit all that."""
    dvc = [sys.executable, "-m", "dvc"]
    _git(project, "init", "--quiet")
    _git(project, "symbolic-ref", "HEAD", "refs/heads/main")
    _run([*dvc, "init", "--quiet"], project)
    _run([*dvc, "config", "core.analytics", "false"], project)
    _run([*dvc, "add", "--quiet", DATA_PATH.as_posix()], project)
    _git(project, "add", "--all")
    _git(project, "commit", "--quiet", "--message", message)


def make_project(source: Path, target: Path) -> str:
    """Begin a project in `target` from the commit that is checked out in `source`; it appears whole or not at all.

    Returns that commit. Raises InputError where `source` has none, where `target` is in use, or where git can't commit.
    """
    check_target(target, source)
    commit = _git(source, "rev-parse", "HEAD")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        project = Path(folder) / "project"
        project.mkdir()
        copy_commit(source, project)
        readme = README.format(commit=commit, origin=find_origin(source), data_path=DATA_PATH.as_posix(), rows=EXAMPLE_ROWS)
        adapt(project, readme)
        begin(project, f"Begin from {commit[:12]} of does-fine-tuning-help")
        if target.exists():
            target.rmdir()
        project.replace(target)
    return commit


def main() -> None:
    """Make the project and say what comes next."""
    parser = argparse.ArgumentParser(prog="make new", description="Begin a project for other data in a new folder.")
    parser.add_argument("folder", nargs="?", help="a folder that is not there yet, or empty: make new DIR=../mine")
    folder = parser.parse_args().folder
    if not folder:
        raise InputError("which folder? make new DIR=../mine")
    target = Path(folder)
    if _git(Path(), "status", "--porcelain"):
        print("note: what is not committed here is not copied")
    commit = make_project(Path(), target)
    print(f"{target}: begun from {commit[:12]}\nnext: cd {shlex.quote(str(target))} && make repro")
    print(f"your rows go to {DATA_PATH}: see README.md there")


if __name__ == "__main__":
    run_stage(main)
