"""Sweeps by real DVC in a Git repository of their own; the stages are stand-ins that take no time
and note each run.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, copy_params, edit_yaml
from ruamel.yaml import YAML

from commands.sweep import study as study_module
from commands.sweep.__main__ import main
from commands.sweep.space import list_grid, load_space, overrides, round_values
from commands.sweep.trial import TrialFailedError
from library.errors import InputError
from library.files import write_json, write_jsonl
from library.params import read_yaml
from library.paths import PARAMS_PATH
from library.repository.workspace import KEPT_DIR

STAND_IN = """
import json, os, sys, time
from pathlib import Path
from ruamel.yaml import YAML

def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)

params = YAML(typ="safe").load(Path("params.yaml"))
stage, sft = sys.argv[1], params["sft"]
log = Path("checkpoints/runs.txt")
earlier = sum(line.startswith("sft") for line in log.read_text().splitlines())
with log.open("a") as runs:
    runs.write(f"{stage} {params['format']['prompt']} {sft['learning_rate']} {sft['lora']['r']}\\n")
if stage == "sft":
    rate = sft["learning_rate"]
    if rate > 1:
        sys.exit("error: sft: out of memory at step 3")
    losses = [2 + abs(rate - 0.002) * 100 - step / 10 for step in range(1, 6)]
    for step, _ in enumerate(losses, 1):
        # the first trial takes no time
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")) * (earlier > 0))
        history = [{"step": 10 * at, "eval_loss": losses[at - 1]} for at in range(1, step + 1)]
        state = json.dumps({"max_steps": 50, "log_history": history})
        write(f"checkpoints/sft-{rate}/checkpoint-{10 * step}/trainer_state.json", state)
    lines = [f"{10 * step},,{loss}" for step, loss in enumerate(losses, 1)]
    write("reports/sft_history.csv", "\\n".join(["step,loss,eval_loss", *lines]))
    write("artifacts/adapter/adapter.txt", str(rate))
elif stage == "evaluate":
    write("metrics/evaluation.json", json.dumps({"primary": {"sft": 0.5}}))
elif stage == "predict":
    write("data/predictions/sft.jsonl", Path("artifacts/adapter/adapter.txt").read_text())
elif stage == "format":
    kept = params["format"]["max_length"] >= 100
    row = {"id": "r1" if kept else "r2", "positive": "yes"}
    write("data/formatted/validation.jsonl", json.dumps(row) + "\\n")
elif stage == "clean":
    write("data/clean/rows.jsonl", Path("rows.json").read_text())
elif stage == "base":
    write("artifacts/base/tokenizer.json", "{}")
"""
STAGES = {
    "clean": {"deps": ["rows.json"], "outs": ["data/clean"]},
    "base": {"params": ["model"], "outs": ["artifacts/base"]},
    "format": {
        "params": ["format"],
        "deps": ["data/clean", "artifacts/base", "prompts/${format.prompt}.jinja", "stand_in.py"],
        "outs": ["data/formatted"],
    },
    "sft": {
        "params": ["sft"],
        "deps": ["data/formatted", "artifacts/base", "stand_in.py"],
        "outs": ["artifacts/adapter", "reports/sft_history.csv"],
    },
    "predict": {"deps": ["artifacts/adapter"], "outs": ["data/predictions/sft.jsonl"]},
    "evaluate": {
        "deps": ["data/predictions/sft.jsonl"],
        "metrics": [{"metrics/evaluation.json": {"cache": False}}],
    },
}


def run(*command, **kwargs):
    return subprocess.run(command, check=True, capture_output=True, text=True, **kwargs).stdout


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A Git and DVC repository whose pipeline has run once."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "prompts", folder / "prompts")
    copy_params(folder)
    # which the stand-ins for stages read as they are
    numbers = {"format__max_length": 384, "format__max_new_tokens": 96, "sft__learning_rate": 2e-3}
    edit_yaml(folder / "params.yaml", **numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        set_environment(patch)
        Path("stand_in.py").write_text(STAND_IN)
        Path("rows.json").write_text("[]")
        Path("checkpoints").mkdir()
        Path("checkpoints/runs.txt").touch()
        Path(".gitignore").write_text("/checkpoints/\n/space.yaml\n")
        Path(".dvcignore").write_text("/checkpoints/\n")
        run_and_commit(STAGES)
        Path("checkpoints/runs.txt").write_text("")
    return folder


def run_and_commit(declared):
    """Make this folder a Git and DVC repository in which the stages of stand_in.py have run."""
    stages = {name: {"cmd": f"python stand_in.py {name}", **own} for name, own in declared.items()}
    YAML().dump({"stages": stages, "metrics": ["metrics/evaluation.json"]}, Path("dvc.yaml"))
    run("git", "init", "--quiet")
    run("dvc", "init", "--quiet")
    run("dvc", "repro", "--quiet")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "All")


def set_environment(patch):
    patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name in (
        "GIT_AUTHOR_NAME",
        "GIT_AUTHOR_EMAIL",
        "GIT_COMMITTER_NAME",
        "GIT_COMMITTER_EMAIL",
    ):
        patch.setenv(name, "a@example.com")


@pytest.fixture
def repository(template, tmp_path, monkeypatch):
    """A copy of the template; the working directory."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    set_environment(monkeypatch)
    return tmp_path


def write_space(parameters, trials=4, prune_after=None, seed=7):
    Path("space.yaml").write_text(
        json.dumps(
            {"trials": trials, "seed": seed, "prune_after": prune_after, "parameters": parameters}
        )
    )


RATES = {"sft.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}


def search(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sweep", "space.yaml", *arguments])
    main()


def runs(stage):
    lines = [line.split() for line in Path("checkpoints/runs.txt").read_text().splitlines()]
    return [line[1:] for line in lines if line[0] == stage]


def start(**environment):
    return subprocess.Popen(
        [sys.executable, "-m", "commands.sweep", "space.yaml"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_and_asks_no_test_question(repository):
    write_space(RATES, trials=3)
    first = start(STEP_SECONDS="9")
    wait_for(lambda: len(runs("sft")) == 2)
    os.kill(first.pid, signal.SIGKILL)  # the trial that it started lives on
    first.wait()
    assert KEPT_DIR.exists()
    said = start().communicate()[0]
    assert "a trial that was still running" in said
    assert "restored params.yaml, dvc.lock and metrics from before the killed sweep" in said
    assert "-1 was running when the sweep was killed; it is run again" in said
    assert "1 of 3 trials are done" in said

    rates = [line[1] for line in runs("sft")]
    assert len(rates) == 4
    assert len(set(rates)) == 3
    assert rates[1] == rates[2]  # the one that was running, and it alone, ran a second time
    assert all(f"| {rate} |" in said for rate in rates)
    best = min(set(rates), key=lambda rate: abs(float(rate) - 0.002))
    assert f"dvc exp run -S sft.learning_rate={best}\n" in said

    assert runs("predict") == runs("evaluate") == []
    experiments = run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    trials = [name for name in experiments if "/space-" in name]
    assert len(trials) == 3
    for name in trials:
        assert "evaluation.json" not in run("git", "ls-tree", "-r", "--name-only", name)
    assert run("git", "status", "--porcelain") == ""
    assert Path("metrics/evaluation.json").exists()
    assert Path("artifacts/adapter/adapter.txt").read_text() == "0.002"
    assert not KEPT_DIR.exists()

    assert "3 of 3 trials are done" in start().communicate()[0]
    assert len(runs("sft")) == 4


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what a space is checked against; the working directory."""
    (tmp_path / "prompts").symlink_to(ROOT / "prompts")
    copy_params(tmp_path)
    monkeypatch.chdir(tmp_path)


def test_killed_or_not_the_same_parameters_are_tried(folder):
    space = load_space_of(RATES, trials=5)
    studies = {}
    for kind in ("whole", "killed"):
        study, _ = study_module.open_study(space, {"kind": kind}, kind)
        for number in range(5):
            trial = study_module.draw_trial(study, space)
            if kind == "killed" and number in (2, 4):
                study, _ = study_module.open_study(space, {"kind": kind}, kind)
                study_module.requeue_killed(study)
                again = study_module.draw_trial(study, space)
                assert again.params == trial.params
                trial = again
            study.tell(trial, abs(trial.params["sft.learning_rate"] - 0.002))
        studies[kind] = [trial.user_attrs["parameters"] for trial in study_module.finished(study)]
    assert studies["whole"] == studies["killed"]
    assert len({str(values) for values in studies["whole"]}) == 5


def load_space_of(parameters, **settings):
    write_space(parameters, **settings)
    return load_space(Path("space.yaml"))


@pytest.mark.slow
def test_a_trial_worse_than_the_median_is_stopped_and_it_is_said(
    repository, monkeypatch, capsys, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setenv("STEP_SECONDS", "0.3")
    monkeypatch.setattr("commands.sweep.trial.POLL_SECONDS", 0.05)
    write_space(
        {"sft.learning_rate": {"type": "choice", "values": [0.002, 0.003, 0.9]}},
        prune_after=2,
        trials=3,
    )
    search(monkeypatch)
    said = capsys.readouterr().out
    assert "when stopped early, at 20% of its steps | 0.9 |" in said
    assert "stopped early: worse than the median" in caplog.text
    assert (
        "Lowest validation loss of the 2 finished trials, 1.5000: sft.learning_rate=0.002" in said
    )
    # its checkpoints went
    assert sorted(path.name for path in Path("checkpoints").glob("sft-*")) == [
        "sft-0.002",
        "sft-0.003",
    ]
    assert not Path("checkpoints/sft-0.9").exists()


@pytest.mark.slow
def test_failures_are_named_and_end_nothing_and_finish_runs_what_was_selected(
    repository, monkeypatch, capfd
):
    write_space({"sft.learning_rate": {"type": "choice", "values": [5.0, 0.003]}}, trials=2)
    with pytest.raises(SystemExit) as ended:
        search(monkeypatch, "--finish")
    assert ended.value.code == 0
    said = capfd.readouterr().out
    assert "failed: error: sft: out of memory at step 3 | 5.0 |" in said
    assert "dvc exp run -S sft.learning_rate=0.003\n" in said
    assert "trained with one seed, and another may order them differently" in said
    more = "-S 'sft.seeds=[1,2]'\n"
    assert f"    dvc exp run {more}    dvc exp run -S sft.learning_rate=0.003 {more}" in said
    assert len(runs("evaluate")) == 1
    assert read_yaml(PARAMS_PATH)["sft"]["learning_rate"] == 0.003


@pytest.mark.slow
def test_what_is_not_the_trials_doing_ends_the_sweep_and_uses_no_trial_up(
    repository, monkeypatch, capsys
):
    write_space({"sft.learning_rate": {"type": "choice", "values": [0.004, 0.003]}}, trials=2)
    identify, lock = study_module.identify, Path(".dvc/tmp/rwlock")

    def be_busy(space):
        identity = identify(space)
        busy = {"pid": os.getpid(), "cmd": "dvc repro"}
        lock.write_text(
            json.dumps({"write": {str(repository / "data/formatted"): busy}, "read": {}})
        )
        return identity

    with monkeypatch.context() as patch:
        patch.setattr("commands.sweep.__main__.identify", be_busy)
        with pytest.raises(
            InputError, match=rf"blocked by: \(PID {os.getpid()}\)(.|\n)*the same command resumes"
        ):
            search(monkeypatch)
    lock.unlink()
    assert run("git", "status", "--porcelain") == ""
    search(monkeypatch)
    said = capsys.readouterr().out
    assert "of the 2 finished trials" in said
    assert len(runs("sft")) == 2


def test_a_name_that_dvc_would_refuse_is_made_one_that_it_takes(repository, monkeypatch, capsys):
    write_space({"sft.learning_rate": {"type": "choice", "values": [0.002]}}, trials=1)
    Path("space.yaml").rename("my space (2).yaml")
    monkeypatch.setattr(sys, "argv", ["sweep", "my space (2).yaml"])
    main()
    assert "| my-space-2-" in capsys.readouterr().out


def test_a_loss_on_other_rows_or_by_another_tokenizer_is_not_compared(folder):
    study, _ = study_module.open_study(load_space_of(RATES), {}, "space")
    write_jsonl(
        Path("data/formatted/validation.jsonl"), [{"id": "r1", "positive": "yes", "messages": []}]
    )
    write_json(Path("artifacts/base/tokenizer.json"), {})
    study_module.check_losses_comparable(study)
    write_jsonl(
        Path("data/formatted/validation.jsonl"),
        [{"id": "r1", "positive": "yes", "messages": ["another prompt"]}],
    )
    study_module.check_losses_comparable(study)
    write_json(Path("artifacts/base/tokenizer.json"), {"other": 1})
    write_jsonl(Path("data/formatted/validation.jsonl"), [])
    with pytest.raises(
        TrialFailedError, match="validation rows and tokenizer differ from the first trial's"
    ):
        study_module.check_losses_comparable(study)


def test_other_data_or_another_space_is_another_study_and_more_trials_are_not(repository, caplog):
    caplog.set_level("INFO")
    choices = {"sft.lora.r": {"type": "choice", "values": [4, 8]}}
    space = load_space_of(choices, trials=2)
    identity = study_module.identify(space)
    study, first = study_module.open_study(space, identity, "space")
    for _ in range(2):
        study.tell(study_module.draw_trial(study, space), 1.0)
    more = load_space_of(choices, trials=3)
    study, again = study_module.open_study(
        more, {**identity, "space": study_module.identify(more)["space"]}, "space"
    )
    assert again == first
    assert study_module.draw_trial(study, more) is None
    assert "a new study" not in caplog.text
    Path("rows.json").write_text("[1]")
    other = study_module.identify(space)
    assert study_module.open_study(space, other, "space")[1] != first
    assert "new study: data changed since checkpoints/sweep-space-" in caplog.text
    study_module.open_study(
        space, {**other, "space": load_space_of(choices, trials=2, seed=8).model_dump()}, "space"
    )
    assert "new study: space changed" in caplog.text


@pytest.mark.slow
def test_two_sweeps_share_no_workspace_an_interrupt_puts_it_back_and_work_since_a_kill_stays(
    repository, monkeypatch
):
    write_space(RATES)
    Path("checkpoints/runs.txt").write_text("sft answer 0.1 16\n")
    first = start(STEP_SECONDS="9")
    wait_for(lambda: len(runs("sft")) == 2)
    with pytest.raises(
        InputError, match=f"a sweep is running in this workspace, as process {first.pid}"
    ):
        search(monkeypatch)
    first.terminate()
    assert "stopped; the same command resumes" in first.communicate()[0]
    assert first.returncode == 1
    assert run("git", "status", "--porcelain") == ""

    second = start(STEP_SECONDS="9")
    wait_for(lambda: len(runs("sft")) == 3)
    second.kill()
    second.wait()
    edit_yaml("params.yaml", sft__weight_decay=0.1)
    with pytest.raises(
        InputError, match=r"params\.yaml was edited \(sft\.weight_decay\) since a sweep was killed"
    ):
        search(monkeypatch)
    assert read_yaml(PARAMS_PATH)["sft"]["weight_decay"] == 0.1
    # also of what is searched
    edit_yaml("params.yaml", sft__weight_decay=0.0, sft__learning_rate=0.77)
    with pytest.raises(
        InputError, match=r"params\.yaml was edited \(sft\.learning_rate\) since a sweep was killed"
    ):
        search(monkeypatch)
    assert read_yaml(PARAMS_PATH)["sft"]["learning_rate"] == 0.77


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"sft.lr": {"type": "choice", "values": [1]}},
            r"space\.yaml: parameters\.sft\.lr: unknown parameter",
        ),
        (
            {"sft.lora": {"type": "choice", "values": [1]}},
            r"parameters\.sft\.lora: unknown parameter",
        ),
        (
            {"sft.lora.r": {"type": "choice", "values": [8, 0]}},
            r"parameters\.sft\.lora\.r: expected an integer of at least 1, got 0$",
        ),
        (
            {"sft.lora.r": {"type": "float", "low": 1.5, "high": 2.5, "log": False}},
            r"sft\.lora\.r: .*integer of at least 1, got 1\.5",
        ),
        (
            {"sft.learning_rate": {"type": "float", "low": 1e-2, "high": 1e-3, "log": True}},
            "must be below high",
        ),
        (
            {"sft.learning_rate": {"type": "float", "low": 0.0, "high": 1e-3, "log": True}},
            "on a log scale low must be above 0",
        ),
        (
            {"sft.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-3}},
            r"learning_rate\.log: missing, expected true or false",
        ),
        (
            {"sft.learning_rate": {"type": "floot", "values": [1]}},
            r"parameters\.sft\.learning_rate: .*'floot'",
        ),
        ({"sft.lora.r": {"type": "choice", "values": [8, 8]}}, "a value stands twice"),
        (
            {"model": {"type": "choice", "values": ["tiny", "huge"]}},
            r"parameters\.model: models/huge/model\.yaml does not exist",
        ),
        (
            {"format.prompt": {"type": "choice", "values": ["rude"]}},
            r"format\.prompt: prompts/rude\.jinja does not exist",
        ),
        (
            {"split.seed": {"type": "int", "low": 1, "high": 3}},
            r"parameters\.split\.seed: can't be searched",
        ),
        ({}, r"space\.yaml: parameters: "),
    ],
)
def test_what_is_wrong_with_a_space_is_named_by_file_and_key(folder, parameters, message):
    with pytest.raises(InputError, match=message):
        load_space_of(parameters)


def test_an_unknown_key_of_a_space_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(
        "trials: 3\nseed: 1\nprune_after: null\ntimeout: 5\nparameters: {}\n"
    )
    with pytest.raises(InputError, match=r"space\.yaml: timeout: unknown parameter"):
        load_space(Path("space.yaml"))


def test_the_shipped_spaces_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in Path("sweeps").glob("*.yaml"):
        load_space(path)
    assert len(list_grid(load_space(Path("sweeps/prompts.yaml")))) == 6
    assert list_grid(load_space(Path("sweeps/learning_rate.yaml"))) is None


def test_parameters_are_written_as_dvc_takes_them():
    values = {
        "sft.learning_rate": 0.00123456,
        "sft.lora.r": 8,
        "format.prompt": "answer",
        "clean.rules.mojibake": True,
    }
    assert overrides(round_values(values)) == [
        "-S",
        "sft.learning_rate=0.00123",
        "-S",
        "sft.lora.r=8",
        "-S",
        "format.prompt=answer",
        "-S",
        "clean.rules.mojibake=true",
    ]
