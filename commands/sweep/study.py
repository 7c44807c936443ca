"""The study of a sweep: which trials are done, which one is next, when one is stopped early."""

import hashlib
import json
import logging
import secrets
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from commands.sweep.space import Choice, Space, distributions, list_grid, round_values
from commands.sweep.trial import TrialFailedError, TrialStoppedError, run_trial
from library.files import read_json, read_jsonl, write_json
from library.params import flatten, load_params, read_values, read_yaml
from library.paths import (
    BASE_DIR,
    CHECKPOINTS_DIR,
    LOCK_PATH,
    PIPELINE_PATH,
    formatted_path,
    model_path,
    prompt_path,
    retriever_path,
)
from library.repository.client import read_dvc, run_dvc

log = logging.getLogger(__name__)

# the sections of params.yaml that sft can depend on
SECTIONS = ("model", "data", "sample", "clean", "split", "format", "sft")
# tenths of a trial's steps: before, a high learning rate looks bad and a low one good
TENTHS_BEFORE_JUDGING = 2
REDRAWS = 50


def short_hash(content: bytes) -> str:
    """A short hash that identifies bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def identify(space: Space) -> dict[str, Any]:
    """Everything that a trial's validation loss depends on, except what is searched.

    A change of any of it starts a new study.
    """
    searched, given = space.parameters, load_params()

    def tried(name: str, value: str) -> list[str]:
        part = searched.get(name)
        return [str(choice) for choice in part.values] if isinstance(part, Choice) else [value]

    models = tried("model", given.model)
    prompts = tried("format.prompt", given.format.prompt)
    read_dvc("repro", "--quiet", "clean", *([] if "model" in searched else ["base"]))
    stages, lock = read_yaml(PIPELINE_PATH)["stages"], read_yaml(LOCK_PATH)["stages"]
    made = {
        out["path"]: out["md5"]
        for stage in ("clean", "base")
        if stage in lock
        for out in lock[stage]["outs"]
    }
    params = flatten({name: value for name, value in read_values().items() if name in SECTIONS})
    code = sorted(
        {dep for stage in ("format", "sft") for dep in stages[stage]["deps"] if dep.endswith(".py")}
    )
    return {
        # more trials continue the same study
        "space": space.model_dump(exclude={"trials"}),
        "parameters": {name: value for name, value in params.items() if name not in searched},
        "data": made["data/clean"],
        "base model": {name: short_hash(model_path(name).read_bytes()) for name in models}
        | ({} if "model" in searched else {"artifacts/base": made["artifacts/base"]}),
        "prompts": {name: short_hash(prompt_path(name).read_bytes()) for name in prompts},
        "retrievers": {
            name: short_hash(retriever_path(name).read_bytes())
            for name in tried("format.retriever", given.format.retriever)
            if retriever_path(name).is_file()
        },
        "code": {name: short_hash(Path(name).read_bytes()) for name in code},
    }


def open_study(space: Space, identity: Mapping[str, Any], name: str) -> tuple[optuna.Study, Path]:
    """Open the study with this identity, or start it; returns it and its folder.

    Logs what has changed since the last study if a new one starts.
    """
    folder = (
        CHECKPOINTS_DIR
        / f"sweep-{name}-{short_hash(json.dumps(identity, sort_keys=True).encode())}"
    )
    path = folder / "identity.json"
    if not path.exists():
        others = sorted(
            CHECKPOINTS_DIR.glob(f"sweep-{name}-*/identity.json"),
            key=lambda other: other.stat().st_mtime,
        )
        if others:
            before = read_json(others[-1])
            changed = [part for part, value in identity.items() if before.get(part) != value]
            log.info(
                "new study: %s changed since %s",
                " and ".join(changed),
                others[-1].parent,
            )
        folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=f"sqlite:///{folder}/study.db",
        study_name=name,
        load_if_exists=True,
        direction="minimize",
        pruner=optuna.pruners.NopPruner()
        if space.prune_after is None
        else optuna.pruners.MedianPruner(
            n_startup_trials=space.prune_after, n_warmup_steps=TENTHS_BEFORE_JUDGING
        ),
    )
    # DVC refuses a name that another study's experiment already has
    if "name" not in study.user_attrs:
        study.set_user_attr("name", f"{name}-{secrets.token_hex(2)}")
    write_json(path, identity)
    return study, folder


def experiment_name(study: optuna.Study, number: int) -> str:
    """The name of a trial's DVC experiment."""
    return f"{study.user_attrs['name']}-{number}"


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: completed, stopped early, or failed because of their parameters.

    A killed trial does not count.
    """
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or "failed" in trial.user_attrs
    ]


def requeue_killed(study: optuna.Study) -> None:
    """Enqueue the trials that were running when the sweep was killed, with the same parameters."""
    trials = study.get_trials()
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            if trial.params and all(
                other.user_attrs.get("again") != trial.number for other in trials
            ):
                study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
            study.tell(trial.number, state=TrialState.FAIL)
            name = experiment_name(study, trial.number)
            # killed between the end of its training and the note of it: it will be there again,
            # under another number
            run_dvc("exp", "remove", "--quiet", name)
            log.info("%s was running when the sweep was killed; it is run again", name)


def draw_trial(study: optuna.Study, space: Space) -> Trial | None:
    """The next trial: a killed one, the next of the grid, or TPE's proposal; None if nothing is
    left.

    A proposal depends on the seed and the finished trials only, so a killed sweep resumes as if it
    had not been killed.
    """
    for redraw in range(REDRAWS):
        waiting = any(
            trial.state == TrialState.WAITING for trial in study.get_trials(deepcopy=False)
        )
        tried = [trial.user_attrs["parameters"] for trial in finished(study)]
        grid = list_grid(space)
        if grid is not None and not waiting:
            left = [combination for combination in grid if combination not in tried]
            if not left:
                return None
            study.enqueue_trial(left[0])
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=min(10, 1 + space.trials // 3),
            seed=int(short_hash(f"{space.seed} {len(tried)} {redraw}".encode())[:8], 16),
        )
        trial = study.ask(distributions(space))
        values = round_values(trial.params)
        if values not in tried:
            trial.set_user_attr("parameters", values)
            return trial
        study.tell(trial, state=TrialState.FAIL)
    return None


def check_losses_comparable(study: optuna.Study) -> None:
    """Check that validation rows and tokenizer are those of the first trial.

    Losses per token compare only then. Raises TrialFailedError otherwise.
    """
    rows = [[row["id"], row["positive"]] for row in read_jsonl(formatted_path("validation"))]
    yardstick = {
        "validation rows": short_hash(json.dumps(rows).encode()),
        "tokenizer": short_hash((BASE_DIR / "tokenizer.json").read_bytes()),
    }
    if "yardstick" not in study.user_attrs:
        study.set_user_attr("yardstick", yardstick)
    other = [
        name for name, value in study.user_attrs["yardstick"].items() if yardstick[name] != value
    ]
    if other:
        raise TrialFailedError(
            f"{' and '.join(other)} differ from the first trial's: its loss cannot be compared"
        )


def note_evaluation(trial: Trial, share: float, loss: float) -> bool:
    """Record an evaluation by the tenths of training done; return whether to stop the trial.

    They are tenths of the trial's own steps, because trials differ in their number. The last
    evaluation never stops a trial.
    """
    log.info("  %3.0f%% of its steps: validation loss %.4f", 100 * share, loss)
    trial.report(loss, int(10 * share))
    if share >= 1 or not trial.should_prune():
        return False
    trial.set_user_attr("stopped", share)
    return True


def work_on(study: optuna.Study, folder: Path, space: Space) -> None:
    """Run trials until the space's number is reached or nothing is left to try."""
    while (count := len(finished(study))) < space.trials:
        trial = draw_trial(study, space)
        if trial is None:
            log.info("every combination has been tried")
            return
        name, values = experiment_name(study, trial.number), trial.user_attrs["parameters"]
        log.info("%d of %d: %s %s", count + 1, space.trials, name, format_values(values))
        try:
            loss = run_trial(name, values, folder / f"{name}.log", partial(note_evaluation, trial))
            check_losses_comparable(study)
        except TrialStoppedError:
            log.info(
                "  stopped early: worse than the median of the others at this share of the steps"
            )
            study.tell(trial, state=TrialState.PRUNED)
        except TrialFailedError as error:
            log.info("  failed: %s", error)
            trial.set_user_attr("failed", str(error))
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, loss)
            log.info("  validation loss %.4f, lowest so far %.4f", loss, study.best_value)


def format_values(values: Mapping[str, Any]) -> str:
    """Parameters on one line."""
    return " ".join(f"{name}={value}" for name, value in values.items())


def render_study(study: optuna.Study) -> str:
    """A Markdown table of the trials: by validation loss, then those stopped early, then
    failures.
    """
    trials = finished(study)
    names = list(dict.fromkeys(name for trial in trials for name in trial.user_attrs["parameters"]))
    lines = [
        f"| experiment | validation loss | {' | '.join(names)} |",
        f"|---|---|{'--:|' * len(names)}",
    ]
    order = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1, TrialState.FAIL: 2}
    for trial in sorted(
        trials, key=lambda trial: (order[trial.state], trial.value or 0.0, trial.number)
    ):
        if trial.state == TrialState.COMPLETE:
            result = f"{trial.value:.4f}"
        elif trial.state == TrialState.PRUNED:
            loss = min(trial.intermediate_values.values())
            result = (
                f"{loss:.4f} when stopped early, at {trial.user_attrs['stopped']:.0%} of its steps"
            )
        else:
            result = f"failed: {trial.user_attrs['failed'].replace('|', '/')}"
        values = trial.user_attrs["parameters"]
        lines.append(
            f"| {experiment_name(study, trial.number)} | {result} | "
            f"{' | '.join(str(values[name]) for name in names)} |"
        )
    return "\n".join(lines)
