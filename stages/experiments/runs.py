"""The experiments that DVC knows, each with what its own files say: parameters, dvc.lock, metrics, and what the cache still has."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import dvc.api
import pandas as pd
from dvc.repo import Repo
from ruamel.yaml import YAML

from stages.commits import run_git
from stages.corpus.rows import read_jsonl
from stages.experiments.space import flatten
from stages.experiments.trial import EVALUATION_PATH, HISTORY_PATH, LOCK_PATH
from stages.params import MODELS_DIR, PARAMS_PATH
from stages.run import InputError

SCORES_PATH = Path("data/predictions/scores.jsonl")
TEST_PATH = Path("data/formatted/test.jsonl")


@dataclass(frozen=True)
class Run:
    """One experiment. `metrics` are None where they are not its own: a run that ended with `sft` carries those of its parent on.

    `params` are flat, under dotted names. `test` says which questions and references it was judged on, whatever the prompt.
    `scores` and `validation_loss` are None where the cache no longer has them.
    """

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, Any] | None
    validation_loss: float | None
    test: Any
    scores: list[dict[str, Any]] | None

    @property
    def primary(self) -> str:
        """The metric that was named before the run."""
        return str(self.params["evaluate.primary"])


def _read(revision: str, path: Path) -> str | None:
    """A file of a Git commit, or of the workspace; None where it has none."""
    if revision == "workspace":
        return path.read_text(encoding="utf-8") if path.is_file() else None
    try:
        return run_git("show", f"{revision}:./{path.as_posix()}")
    except InputError:
        return None


def is_current(stages: Mapping[str, Any], params: Mapping[str, Any], stage: str = "evaluate") -> bool:
    """Whether a stage, and all before it, ran on what a dvc.lock says that the others made, and with these parameters.

    `stages` are those of dvc.lock, `params` flat, those of another file than params.yaml after its name and a colon. A lock of
    which one half is older than the other is not current.
    """
    if stage not in stages:
        return False
    made = {out["path"]: (name, out["md5"]) for name, other in stages.items() for out in other.get("outs", [])}
    for path, values in stages[stage].get("params", {}).items():
        prefix = "" if path == str(PARAMS_PATH) else f"{path}:"
        if any(params.get(f"{prefix}{name}", value) != value for name, value in flatten(values).items()):
            return False
    for dep in stages[stage].get("deps", []):
        same = {other["md5"] for name in stages for other in stages[name].get("deps", []) if other["path"] == dep["path"]}
        if len(same) > 1:  # two stages ran on different versions of it
            return False
        maker, md5 = made.get(dep["path"], (None, None))
        if maker is not None and (md5 != dep["md5"] or not is_current(stages, params, maker)):
            return False
    return True


def _hash(stages: Mapping[str, Any], stage: str, kind: str, path: Path) -> str | None:
    entries = stages.get(stage, {}).get(kind, [])
    return next((entry["md5"] for entry in entries if entry["path"] == path.as_posix()), None)


def _asked(path: Path) -> list[list[Any]]:
    """The questions and references of formatted rows, without the prompt that was made of them."""
    return [[row["id"], row["group"], row["question"], row["positive"]] for row in read_jsonl(path)]


def read_run(name: str, revision: str, repo: Repo) -> Run | None:
    """A run by its name and commit; None where the commit has no params.yaml and dvc.lock that can be read."""
    params, lock = _read(revision, PARAMS_PATH), _read(revision, LOCK_PATH)
    if params is None or lock is None:
        return None
    yaml = YAML(typ="safe", pure=True)
    flat, stages = flatten(yaml.load(params)), yaml.load(lock)["stages"]
    model_path = MODELS_DIR / f"{flat.get('model')}.yaml"
    known = flat | flatten(yaml.load(_read(revision, model_path) or "{}"), f"{model_path.as_posix()}:")

    def cached(md5: str | None) -> Path | None:
        path = Path(repo.cache.local.oid_to_path(md5)) if md5 is not None else None
        return path if path is not None and path.is_file() else None

    metrics = _read(revision, EVALUATION_PATH) if is_current(stages, known) else None
    history = cached(_hash(stages, "sft", "outs", HISTORY_PATH)) if is_current(stages, known, "sft") else None
    losses = None if history is None else pd.read_csv(StringIO(history.read_text()))["eval_loss"].dropna()
    test_md5 = _hash(stages, "evaluate", "deps", TEST_PATH)
    test, scores = cached(test_md5), cached(_hash(stages, "evaluate", "outs", SCORES_PATH))
    return Run(
        name=name,
        params=flat,
        metrics=None if metrics is None else json.loads(metrics),
        validation_loss=None if losses is None or losses.empty else float(losses.min()),
        test=test_md5 if test is None else _asked(test),
        scores=None if metrics is None or scores is None else list(read_jsonl(scores)),
    )


def find_baselines() -> list[str]:
    """The commits that there are experiments of, and the one that the workspace stands on, which comes first."""
    known = [run_git("rev-parse", "HEAD").strip()]
    # refs/exps/FIRST TWO DIGITS/THE OTHERS/NAME; some are of commits that this clone does not have
    refs = run_git("for-each-ref", "--format=%(refname)", "refs/exps")
    for first, rest in re.findall(r"^refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/", refs, re.MULTILINE):
        with suppress(InputError):
            known.append(run_git("rev-parse", "--verify", "--quiet", f"{first}{rest}^{{commit}}").strip())
    return list(dict.fromkeys(known))


def list_runs() -> list[Run]:
    """The commit that the workspace stands on, every experiment of any commit, and the workspace where it is none of them."""
    runs: list[Run] = []
    with Repo() as repo:
        experiments = [shown for shown in dvc.api.exp_show(revs=find_baselines()) if shown["rev"] != "workspace"]
        for shown in [*experiments, {"Experiment": None, "rev": "workspace"}]:
            if shown.get("State") in ("Queued", "Running", "Failed"):
                continue
            run = read_run(shown["Experiment"] or shown["rev"], shown["rev"], repo)
            if run is not None and all((run.params, run.metrics) != (other.params, other.metrics) for other in runs):
                runs.append(run)
    return runs
