"""The experiments that DVC knows: their own files, and what the cache still has of them."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import dvc.api
import pandas as pd
from ruamel.yaml import YAML

from library.errors import InputError
from library.files import read_jsonl
from library.params import flatten
from library.paths import (
    CLEAN_ROWS_PATH,
    EVALUATION_PATH,
    HISTORY_PATH,
    PARAMS_PATH,
    SCORES_PATH,
    TEST_PATH,
    rankings_path,
)
from library.records import ScoredRow
from library.repository.client import find_cache_dir, read_git
from library.repository.lock import is_consistent
from library.repository.revisions import WORKSPACE, Revision


@dataclass(frozen=True)
class Run:
    """One experiment.

    `params` are flat, with dotted names. `metrics` are None if they are not its own: a run that
    ended with `sft` still has its parent's. `test` identifies the questions and references it was
    judged on, whatever the prompt. `scores` and `validation_loss` are None if the cache no longer
    has them.
    """

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, Any] | None
    validation_loss: float | None
    test: Any
    scores: list[ScoredRow] | None

    @property
    def primary(self) -> str:
        """The metric that was named before the run."""
        return str(self.params["evaluate.primary"])


@dataclass(frozen=True)
class EmbeddingRun(Run):
    """One judged run of `make embed`. It has no `scores`, because DVC keeps no rankings.

    `params` are those that its stages ran with. `test` has the hashes that identify the test rows
    and the searched texts: the rows, and BM25's result, which depends on no model.
    """

    @property
    def primary(self) -> str:
        """The task that was named before the run."""
        return str(self.params["embed.primary"])


R = TypeVar("R", bound=Run)


def questions_and_references(path: Path) -> list[list[Any]]:
    """The questions and references of formatted rows, without their prompts."""
    return [[row["id"], row["group"], row["question"], row["positive"]] for row in read_jsonl(path)]


def read_named_params(revision: Revision) -> dict[str, Any]:
    """The parameters of files besides params.yaml that a commit's stages name, flat, as
    `FILE:NAME`.
    """
    yaml = YAML(typ="safe", pure=True)
    params: dict[str, Any] = {}
    named = {path for stage in revision.stages.values() for path in stage.get("params", {})}
    for path in sorted(named - {str(PARAMS_PATH)}):
        params |= flatten(yaml.load(revision.text(path) or "{}"), f"{path}:")
    return params


def read_run(name: str, revision: Revision) -> Run | None:
    """The run with this name and commit; None if the commit has no params.yaml or dvc.lock."""
    text, stages = revision.text(str(PARAMS_PATH)), revision.stages
    if text is None or not stages:
        return None
    yaml = YAML(typ="safe", pure=True)
    # parameters that only `make embed` reads do not distinguish runs of the language model
    params = flatten({name: part for name, part in yaml.load(text).items() if name != "embed"})
    params |= read_named_params(revision)

    def find(stage: str, kind: str, path: Path) -> tuple[str | None, Path | None]:
        """The hash of a file in a stage, and its path in the cache."""
        entries = stages.get(stage, {}).get(kind, [])
        md5 = next((entry["md5"] for entry in entries if entry["path"] == path.as_posix()), None)
        return md5, None if md5 is None else revision.cached(md5)

    metrics = scores = None
    if is_consistent(stages, params) and (text := revision.text(EVALUATION_PATH.as_posix())):
        metrics = json.loads(text)
        _, cached = find("evaluate", "outs", SCORES_PATH)
        if cached is not None:
            scores = [ScoredRow.from_record(record) for record in read_jsonl(cached)]
    loss = None
    _, history = find("sft", "outs", HISTORY_PATH)
    if history is not None and is_consistent(stages, params, "sft"):
        losses = pd.read_csv(StringIO(history.read_text()))["eval_loss"].dropna()
        loss = None if losses.empty else float(losses.min())
    test_md5, test = find("evaluate", "deps", TEST_PATH)
    return Run(
        name=name,
        params=params,
        metrics=metrics,
        validation_loss=loss,
        test=test_md5 if test is None else questions_and_references(test),
        scores=scores,
    )


def read_embedding_run(name: str, revision: Revision) -> EmbeddingRun | None:
    """The run of `make embed` with this name and commit; None if it has no result of its own.

    Raises InputError if metrics/embedding.json is not what `embed_evaluate` writes.
    """
    revision = revision.embedding
    text = revision.text(str(PARAMS_PATH))
    if text is None or "embed.primary" not in revision.locked_params:
        return None
    params = flatten(YAML(typ="safe", pure=True).load(text)) | read_named_params(revision)
    if not is_consistent(revision.stages, params, "embed_evaluate"):
        return None
    metrics = revision.embedding_metrics(revision.locked_params["embed.primary"])
    if not metrics:
        return None
    paths = (CLEAN_ROWS_PATH, rankings_path("bm25"))
    return EmbeddingRun(
        name=name,
        params=revision.locked_params,
        metrics=metrics,
        validation_loss=None,
        test=[revision.hash(path.as_posix()) for path in paths],
        scores=None,
    )


def find_baselines() -> list[str]:
    """The commit of the workspace, and those that have experiments."""
    known = [read_git("rev-parse", "HEAD").strip()]
    # refs/exps/FIRST TWO DIGITS/THE OTHERS/NAME; some are of commits that this clone does not have
    refs = read_git("for-each-ref", "--format=%(refname)", "refs/exps")
    for first, rest in re.findall(r"^refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/", refs, re.MULTILINE):
        with suppress(InputError):
            commit = f"{first}{rest}^{{commit}}"
            known.append(read_git("rev-parse", "--verify", "--quiet", commit).strip())
    return list(dict.fromkeys(known))


def list_revisions() -> list[tuple[str, Revision]]:
    """HEAD, every finished experiment of any commit, and the workspace, by name."""
    cache_dir = find_cache_dir()
    experiments = dvc.api.exp_show(revs=find_baselines())
    shown = [entry for entry in experiments if entry["rev"] != WORKSPACE]
    return [
        (entry["Experiment"] or entry["rev"], Revision(entry["rev"], cache_dir))
        for entry in [*shown, {"Experiment": None, "rev": WORKSPACE}]
        if entry.get("State") not in ("Queued", "Running", "Failed")
    ]


def list_runs(revisions: Sequence[tuple[str, Revision]]) -> list[Run]:
    """The runs of the language model."""
    return drop_repeated(read_run(name, revision) for name, revision in revisions)


def list_embedding_runs(revisions: Sequence[tuple[str, Revision]]) -> list[EmbeddingRun]:
    """The runs of `make embed`; a run that only carries another's metrics is none."""
    return drop_repeated(read_embedding_run(name, revision) for name, revision in revisions)


def drop_repeated(found: Iterable[R | None]) -> list[R]:
    """The first run of each combination of parameters and metrics."""
    runs: list[R] = []
    for run in found:
        if run is not None and all(
            (run.params, run.metrics) != (other.params, other.metrics) for other in runs
        ):
            runs.append(run)
    return runs
