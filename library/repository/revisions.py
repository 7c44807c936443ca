"""Commits as git and DVC know them: their files, and what dvc.lock names."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from library.errors import InputError
from library.files import read_jsonl
from library.params import flatten
from library.paths import EMBEDDING_LOCK_PATH, EMBEDDING_PATH, LOCK_PATH, PARAMS_PATH
from library.repository.client import read_git

WORKSPACE = "workspace"


def check_numbers(values: Mapping[str, Any], name: str, prefix: str = "") -> None:
    """Raise InputError, naming the key, if a metrics file contains anything but numbers.

    Sentences are built from them.
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            check_numbers(value, name, f"{prefix}{key}.")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name}: {prefix}{key}: expected a number, got {value!r}")


@dataclass(frozen=True)
class Revision:
    """A commit, or the workspace: its files, and what its dvc.lock names if the cache has it.

    `commit` is WORKSPACE for the latter. `lock_path` is the lock of the pipeline in question.
    """

    commit: str
    cache_dir: Path
    lock_path: Path = LOCK_PATH

    def __str__(self) -> str:
        return self.commit if self.commit == WORKSPACE else self.commit[:7]

    def text(self, path: str) -> str | None:
        """A file as git or the workspace has it; None if it does not exist."""
        if self.commit == WORKSPACE:
            return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None
        try:
            return read_git("show", f"{self.commit}:./{path}")
        except InputError:
            return None

    def metrics(self, path: str) -> dict[str, Any]:
        """A metrics file; empty if the commit has none."""
        try:
            values = json.loads(self.text(path) or "{}")
        except ValueError:
            raise InputError(f"{path} in {self}: not JSON") from None
        if not isinstance(values, dict):
            raise InputError(f"{path} in {self}: expected an object of numbers")
        check_numbers(values, f"{path} in {self}")
        return values

    @cached_property
    def stages(self) -> dict[str, Any]:
        """The stages of dvc.lock; empty if the commit has none."""
        path = self.lock_path.as_posix()
        try:
            lock = YAML(typ="safe", pure=True).load(self.text(path) or "{}")
        except YAMLError as error:
            raise InputError(f"{path} in {self}: not YAML: {error}") from error
        stages = lock.get("stages") or {} if isinstance(lock, dict) else None
        if not isinstance(stages, dict) or not all(
            isinstance(stage, dict) for stage in stages.values()
        ):
            raise InputError(f"{path} in {self}: expected stages by name")
        return stages

    @property
    def embedding(self) -> "Revision":
        """The same commit, for the pipeline of `make embed`."""
        return replace(self, lock_path=EMBEDDING_LOCK_PATH)

    @cached_property
    def locked_params(self) -> dict[str, Any]:
        """The parameters that the stages ran with, flat; those of other files as `FILE:NAME`."""
        params: dict[str, Any] = {}
        for stage in self.stages.values():
            for path, values in stage.get("params", {}).items():
                params |= flatten(values, "" if path == str(PARAMS_PATH) else f"{path}:")
        return params

    def embedding_metrics(self, primary: str) -> dict[str, Any]:
        """The part of metrics/embedding.json on a primary task; empty if the commit has none.

        Raises InputError if a number is missing that every result has.
        """
        path = EMBEDDING_PATH.as_posix()
        metrics = self.metrics(path)
        if not metrics:
            return {}
        flat = flatten(metrics)
        verdicts = ("verdict", f"against_bm25.{primary}.verdict")
        means = ("bm25", "zeroshot", "sft", "delta", "p", "n", "groups")
        against = (f"against_bm25.{primary}.{mean}" for mean in ("bm25", "sft", "delta", "p_holm"))
        for name in (*verdicts, *(f"{primary}.ndcg_at_10.{mean}" for mean in means), *against):
            if name not in flat:
                raise InputError(f"{path} in {self}: {name} is missing; run `make embed`")
            if name in verdicts and flat[name] not in (-1, 0, 1):
                raise InputError(f"{path} in {self}: {name}: expected -1, 0 or 1")
        return metrics

    def _files(self, kind: str) -> dict[str, str]:
        return {
            str(file["path"]): str(file.get("md5"))
            for stage in self.stages.values()
            for file in stage.get(kind, [])
        }

    @cached_property
    def outs(self) -> dict[str, str]:
        """The hashes of what the stages wrote, by path."""
        return self._files("outs")

    @cached_property
    def inputs(self) -> dict[str, str]:
        """The hashes of what the stages read and none wrote: code, prompts, raw rows; by path."""
        made = tuple(f"{path}/" for path in self.outs)
        return {
            path: md5
            for path, md5 in self._files("deps").items()
            if path not in self.outs and not path.startswith(made)
        }

    def hash(self, path: str) -> str | None:
        """The hash of a file or folder in dvc.lock, or None."""
        return (self._files("deps") | self.outs).get(path)

    def cached(self, md5: str) -> Path | None:
        """The path of a hash in the cache, or None."""
        # never build a path from something else than a hash: dvc.lock can come from anybody
        if not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", md5):
            return None
        path = self.cache_dir / "files" / "md5" / md5[:2] / md5[2:]
        return path if path.is_file() else None

    def data(self, path: str) -> Path | None:
        """The path of a file in the cache, also of one in a stage's output folder, or None."""
        md5 = self.hash(path)
        folder = str(Path(path).parent)
        if md5 is None and (listing := self.cached(self.outs.get(folder, ""))):
            files = json.loads(listing.read_text(encoding="utf-8"))
            md5 = next(
                (str(file["md5"]) for file in files if f"{folder}/{file['relpath']}" == path), None
            )
        return self.cached(md5) if md5 else None

    def rows(self, path: str) -> list[dict[str, Any]] | None:
        """The rows of such a file."""
        found = self.data(path)
        return None if found is None else list(read_jsonl(found))


def find_commits(base: str) -> tuple[str, str]:
    """HEAD and its merge base with `base`, which may be a branch of origin.

    Raises InputError if there is none.
    """
    head = read_git("rev-parse", "--verify", "HEAD^{commit}").strip()
    for name in (base, f"origin/{base}"):
        try:
            tip = read_git(
                "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
            ).strip()
            break
        except InputError:
            continue
    else:
        raise InputError(
            f"{base}: no such branch or commit; run `git fetch origin`, or name another: "
            "make pr-report BASE=origin/main"
        )
    try:
        return head, read_git("merge-base", head, tip).strip()
    except InputError:
        if read_git("rev-parse", "--is-shallow-repository").strip() == "true":
            raise InputError(
                f"this clone is too shallow for HEAD and {base} to meet: git fetch --unshallow"
            ) from None
        raise InputError(f"HEAD and {base} have no commit in common") from None
