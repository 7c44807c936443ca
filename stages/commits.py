"""Commits as git and DVC know them: their files, what dvc.lock names of them, and whether it is current."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.corpus.rows import read_jsonl
from stages.run import InputError

ABSENT = {"deleted", "not in cache"}  # what `dvc status` says of data that is only not here


def run_git(*arguments: str) -> str:
    """What git prints. Raises InputError with the first line of what went wrong."""
    done = subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        raise InputError(f"git {arguments[0]}: {next(iter(done.stderr.splitlines()), 'failed')}")
    return done.stdout


def run_dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A dvc command of this environment."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False
    )


def read_dvc(*arguments: str) -> dict[str, Any]:
    """The JSON that a dvc command prints. Raises InputError with what it said where it failed."""
    done = run_dvc(*arguments)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        said = done.stderr.strip().splitlines() or ["no output"]
        raise InputError(f"dvc {' '.join(arguments)}: {said[0]}") from None


def check_numbers(values: Mapping[str, Any], name: str, prefix: str = "") -> None:
    """Raise InputError, naming the key, where a file of metrics holds anything but numbers: sentences are made of them."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            check_numbers(value, name, f"{prefix}{key}.")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name}: {prefix}{key}: expected a number, got {value!r}")


def find_cache() -> Path:
    """The folder of DVC's cache."""
    done = run_dvc("cache", "dir")
    if done.returncode:
        raise InputError(f"dvc cache dir: {next(iter(done.stderr.strip().splitlines()), 'failed')}")
    return Path(done.stdout.strip())


@dataclass(frozen=True)
class Revision:
    """A commit: its files by git, and what its dvc.lock names, as far as the cache has it."""

    commit: str
    cache_dir: Path

    def text(self, path: str) -> str | None:
        """A file that git has, or None."""
        try:
            return run_git("show", f"{self.commit}:{path}")
        except InputError:
            return None

    def metrics(self, path: str) -> dict[str, Any]:
        """A file of metrics; empty where the commit has none."""
        try:
            values = json.loads(self.text(path) or "{}")
        except ValueError:
            raise InputError(f"{path} in {self.commit[:7]}: not JSON") from None
        if not isinstance(values, dict):
            raise InputError(f"{path} in {self.commit[:7]}: expected an object of numbers")
        check_numbers(values, f"{path} in {self.commit[:7]}")
        return values

    @cached_property
    def stages(self) -> dict[str, Any]:
        """The stages of dvc.lock; empty where the commit has none."""
        try:
            lock = YAML(typ="safe", pure=True).load(self.text("dvc.lock") or "{}")
        except YAMLError as error:
            raise InputError(f"dvc.lock in {self.commit[:7]}: not YAML: {error}") from error
        stages = lock.get("stages") or {} if isinstance(lock, dict) else None
        if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
            raise InputError(f"dvc.lock in {self.commit[:7]}: expected stages by name")
        return stages

    def _files(self, kind: str) -> dict[str, str]:
        return {str(file["path"]): str(file.get("md5")) for stage in self.stages.values() for file in stage.get(kind, [])}

    @cached_property
    def outs(self) -> dict[str, str]:
        """What the stages wrote: hash by path."""
        return self._files("outs")

    @cached_property
    def inputs(self) -> dict[str, str]:
        """What the stages read and none wrote, such as code, prompts and raw rows: hash by path."""
        made = tuple(f"{path}/" for path in self.outs)
        return {path: md5 for path, md5 in self._files("deps").items() if path not in self.outs and not path.startswith(made)}

    def hash(self, path: str) -> str | None:
        """The hash that dvc.lock has of a file or folder, or None."""
        return (self._files("deps") | self.outs).get(path)

    def _cached(self, md5: str) -> Path | None:
        # no path is made of what is no hash: dvc.lock may be anybody's
        if not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", md5):
            return None
        path = self.cache_dir / "files" / "md5" / md5[:2] / md5[2:]
        return path if path.is_file() else None

    def data(self, path: str) -> Path | None:
        """Where the cache has a file, also one of a folder that a stage wrote; None where it doesn't."""
        md5 = self.hash(path)
        folder = str(Path(path).parent)
        if md5 is None and (listing := self._cached(self.outs.get(folder, ""))):
            files = json.loads(listing.read_text(encoding="utf-8"))
            md5 = next((str(file["md5"]) for file in files if f"{folder}/{file['relpath']}" == path), None)
        return self._cached(md5) if md5 else None

    def rows(self, path: str) -> list[dict[str, Any]] | None:
        """The rows of such a file."""
        found = self.data(path)
        return None if found is None else list(read_jsonl(found))


def find_commits(base: str) -> tuple[str, str]:
    """HEAD and its merge base with `base`, which may be a branch of origin. Raises InputError where there is none."""
    head = run_git("rev-parse", "--verify", "HEAD^{commit}").strip()
    for name in (base, f"origin/{base}"):
        try:
            tip = run_git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").strip()
            break
        except InputError:
            continue
    else:
        raise InputError(
            f"{base}: no such branch or commit; `git fetch origin` it, or name another: make pr-report BASE=origin/main"
        )
    try:
        return head, run_git("merge-base", head, tip).strip()
    except InputError:
        if run_git("rev-parse", "--is-shallow-repository").strip() == "true":
            raise InputError(f"this clone is shallow and ends before HEAD and {base} meet: git fetch --unshallow") from None
        raise InputError(f"HEAD and {base} have no commit in common") from None


def find_stale() -> dict[str, list[str]] | None:
    """Why `dvc repro` would run something, by stage; None where dvc.lock is current. Data that is only not here doesn't count."""
    done = run_dvc("repro", "--dry", "--allow-missing")
    if done.returncode == 0 and "Running stage" not in done.stdout:
        return None
    reasons: dict[str, list[str]] = {}

    def add(stage: str, path: str, state: Any) -> None:
        if isinstance(state, Mapping):
            for name, inner in state.items():
                add(stage, f"{path}: {name}", inner)
        elif state not in ABSENT or (path.endswith((".py", ".jinja")) and not Path(path).exists()):
            reasons.setdefault(stage, []).append(path)

    for stage, entries in read_dvc("status", "--json").items():
        for entry in entries:
            if isinstance(entry, str):
                reasons.setdefault(stage, []).append(entry)
                continue
            for changes in entry.values():
                for path, state in changes.items():
                    add(stage, path, state)
    return (
        reasons
        or {stage: ["runs anew"] for stage in re.findall(r"Running stage '([^']*)'", done.stdout)}
        or {"dvc repro": done.stderr.strip().splitlines()[-1:] or ["fails"]}
    )
