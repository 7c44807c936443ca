import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT, copy_params, edit_yaml, make_rows

from commands.doctor import environment, machine, repository
from commands.doctor.__main__ import examine
from commands.doctor.finding import Finding
from library.files import write_text

PIPELINE = """\
stages:
  first:
    cmd: {python} -c "import shutil; shutil.copy('params.yaml', 'first.txt')"
    params: [x]
    outs: [first.txt]
  second:
    cmd: {python} -c "import shutil; shutil.copy('first.txt', 'second.txt')"
    deps: [first.txt]
    outs: [second.txt]
"""


def git(*arguments):
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def dvc(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """A repository of git and DVC with two small stages that have run, committed."""
    folder = tmp_path_factory.mktemp("reproduced")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        git("init", "--quiet")
        git("config", "user.name", "Somebody")
        git("config", "user.email", "somebody@example.com")
        dvc("init", "--quiet")
        Path("dvc.yaml").write_text(PIPELINE.format(python=shlex.quote(sys.executable)))
        Path("params.yaml").write_text("x: 1\n")
        dvc("repro", "--quiet")
        git("add", "--all")
        git("commit", "--quiet", "--message", "Begin")
    return folder


@pytest.fixture
def repo(reproduced, tmp_path, monkeypatch):
    """A copy of that repository to break; the working directory."""
    shutil.copytree(reproduced, tmp_path / "repo", symlinks=True)
    monkeypatch.chdir(tmp_path / "repo")
    return tmp_path / "repo"


def texts(check):
    return [str(finding) for finding in check()]


def levels(check):
    return [finding.level for finding in check()]


def test_nothing_else_is_asked_before_anything_is_installed(tmp_path):
    """With the packages out of sight, as from a system's Python."""
    command, variables = (
        [sys.executable, "-S", "-m", "commands.doctor"],
        {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
    )
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("\n") == 1
    assert "has none of the packages, and there is no .venv yet" in done.stdout
    assert "make environment" in done.stdout


def test_a_repository_in_order_has_no_problem(repo):
    for check in (
        repository.check_git,
        repository.check_conflicts,
        repository.check_dvc,
        repository.check_tree,
    ):
        assert "problem" not in levels(check)
    assert texts(repository.check_pipeline) == ["ok      pipeline: dvc.lock is current"]
    assert texts(repository.check_outputs) == ["ok      outputs: all in place"]


def test_a_missing_output_is_told_from_one_that_nobody_has(repo):
    Path("second.txt").unlink()
    assert texts(repository.check_outputs) == [
        "note    outputs: 1 are in the cache but not in place, such as second.txt  ->  "
        "dvc checkout; after a stage that failed or was killed: dvc repro"
    ]
    dvc("checkout")
    assert texts(repository.check_outputs) == ["ok      outputs: all in place"]
    shutil.rmtree(".dvc/cache")
    (line,) = texts(repository.check_outputs)
    assert line.endswith(
        "are in place, but not in the cache, such as second.txt  ->  dvc commit"
    ) or line.endswith("first.txt  ->  dvc commit")
    Path("second.txt").unlink()
    (line,) = texts(repository.check_outputs)
    assert "not in the cache" in line
    assert line.endswith("dvc repro, or a remote: dvc pull")
    assert texts(repository.check_pipeline) == ["ok      pipeline: dvc.lock is current"]


def test_results_computed_again_on_another_processor_are_told_from_edits(repo):
    lock = Path("dvc.lock").read_text()
    (out,) = (
        re.findall(r"second\.txt\n.*\n      md5: (\w+)", lock)
        or re.findall(r"path: second\.txt\n.*?md5: (\w+)", lock, re.DOTALL)[:1]
    )
    Path("dvc.lock").write_text(lock.replace(out, "0" * 32))
    (line,) = texts(repository.check_tree)
    assert "dvc.lock has other results than the commit's, from the same code" in line
    assert line.endswith("git restore dvc.lock metrics && dvc checkout")


def test_an_old_lock_names_the_stages_that_would_run(repo):
    Path("params.yaml").write_text("x: 2\n")
    (line,) = texts(repository.check_pipeline)
    assert line.startswith("note    pipeline: dvc.lock is older")
    assert "at least first would run" in line
    (line,) = texts(repository.check_tree)
    assert "params.yaml; the next dvc exp run starts from these; x 1 -> 2" in line
    Path("dvc.lock").unlink()
    assert "nothing has run yet" in texts(repository.check_pipeline)[0]


def test_a_lock_with_merge_marks_is_a_problem_that_its_remedy_mends(repo):
    for branch, value in (("theirs", 2), ("ours", 3)):
        git("checkout", "--quiet", "-b", branch, "HEAD" if branch == "theirs" else "HEAD~1")
        Path("params.yaml").write_text(f"x: {value}\n")
        dvc("repro", "--quiet")
        git("commit", "--quiet", "--all", "--message", branch)
    merged = subprocess.run(["git", "merge", "theirs"], capture_output=True, check=False)
    assert merged.returncode
    found = list(repository.check_conflicts())
    assert [(finding.level, finding.subject) for finding in found] == [
        ("problem", "dvc.lock"),
        ("problem", "params.yaml"),
    ]
    assert not levels(repository.check_pipeline)
    assert "a merge is in progress" in texts(repository.check_tree)[0]
    Path("params.yaml").write_text("x: 3\n")
    git("checkout", "--ours", "dvc.lock")
    dvc("repro", "--quiet")
    git("commit", "--quiet", "--all", "--message", "Merge")
    assert not list(repository.check_conflicts())
    assert texts(repository.check_pipeline) == ["ok      pipeline: dvc.lock is current"]


def test_what_a_killed_dvc_leaves_is_named(repo):
    lock = Path(".dvc/tmp/rwlock")
    lock.unlink(missing_ok=True)
    assert not list(repository.check_running())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process, said in (
        (os.getpid(), "is running: dvc repro"),
        (ended.pid, "was killed: dvc repro  ->  rm .dvc/tmp/rwlock"),
    ):
        lock.write_text(
            json.dumps({"write": {"first.txt": {"pid": process, "cmd": "dvc repro"}}, "read": {}})
        )
        assert said in texts(repository.check_running)[0]
    lock.write_text('{"write": ')
    (finding,) = repository.check_running()
    assert (finding.level, finding.remedy) == ("problem", "rm .dvc/tmp/rwlock")
    lock.unlink()
    with subprocess.Popen(
        [sys.executable, "-c", "input()", "-m", "stages.sft"], stdin=subprocess.PIPE
    ) as stage:
        (finding,) = repository.check_running()
        stage.stdin.close()
    assert (finding.subject, finding.remedy) == ("a stage", f"wait, or: kill {stage.pid}")


def test_while_another_dvc_is_at_work_the_pipeline_is_let_alone(repo):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        held = {
            "write": {str(repo / "first.txt"): {"pid": other.pid, "cmd": "dvc repro"}},
            "read": {},
        }
        Path(".dvc/tmp/rwlock").write_text(json.dumps(held))
        assert levels(repository.check_pipeline) == ["note"]
        other.stdin.close()


def test_experiments_that_wait_in_the_queue_are_counted(repo):
    dvc("exp", "run", "--queue", "--set-param", "x=4,5")
    assert texts(repository.check_queue) == [
        "note    queue: 2 queued  ->  dvc queue start, or dvc queue remove --queued"
    ]
    dvc("queue", "remove", "--queued")
    assert texts(repository.check_queue) == ["ok      queue: empty"]


def test_a_remote_needs_its_package(repo):
    assert levels(repository.check_remote) == ["note"]
    dvc("remote", "add", "--default", "shared", str(repo.parent / "shared"))
    assert levels(repository.check_remote) == ["ok"]
    assert "do not move the outputs  ->  dvc install" in texts(repository.check_hooks)[0]
    dvc("install")
    assert not list(repository.check_hooks())
    dvc("remote", "add", "bucket", "gs://bucket/folder")
    assert (
        "problem remote: bucket is on gs, for which a package is missing  ->  pip install dvc-gs"
        in texts(repository.check_remote)
    )


def test_hooks_that_stop_every_push_are_a_problem(repo):
    assert not list(repository.check_hooks())
    dvc("install")
    (finding,) = repository.check_hooks()
    assert finding.level == "problem"
    git("init", "--quiet", "--bare", str(repo.parent / "origin"))
    pushed = subprocess.run(
        ["git", "push", str(repo.parent / "origin"), "HEAD"], capture_output=True, check=False
    )
    assert pushed.returncode
    Path(finding.remedy.split(",")[0].removeprefix("rm ")).unlink()
    git("push", str(repo.parent / "origin"), "HEAD")


def test_no_git_repository_no_name_and_no_dvc_are_problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "this is no git repository" in texts(repository.check_git)[0]
    git("init", "--quiet")
    no_commit, no_name = texts(repository.check_git)
    assert "no commit yet" in no_commit
    assert (
        "git config --global user.name YOU && git config --global user.email YOU@EXAMPLE.COM"
        in no_name
    )
    assert texts(repository.check_dvc) == ["problem dvc: not set up here  ->  dvc init"]


def test_a_wrong_version_and_a_missing_package_are_named(tmp_path):
    numpy = metadata.version("numpy")
    torch = metadata.version("torch").split("+")[0]
    lock = f"numpy==0.0.1\ntorch=={torch}\nno-such-package==1.0\nnor_this==2.0\n"
    (tmp_path / "requirements.lock").write_text(lock)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy", "nor-this; sys_platform != \'x\'"]\n'
    )
    (finding,) = environment.check_packages(
        tmp_path / "requirements.lock", tmp_path / "pyproject.toml"
    )
    assert finding.level == "problem"
    assert finding.text == f"numpy {numpy}, locked 0.0.1; nor_this is not installed"
    (tmp_path / "requirements.lock").write_text(f"numpy=={numpy}\nno-such-package==1.0\n")
    (finding,) = environment.check_packages(
        tmp_path / "requirements.lock", tmp_path / "pyproject.toml"
    )
    assert finding.level == "ok"


def test_the_python_on_path_must_be_this_one(monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert levels(environment.check_python) == ["ok"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert "not with" in texts(environment.check_python)[1]


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        ("MEMORY_LIMIT_GIB", "4", "note"),
        ("MEMORY_LIMIT_GIB", "4 GB", "problem"),
        ("MEMORY_LIMIT_GIB", "nan", "problem"),
        ("TOKENS_PER_BATCH", "0", "problem"),
        ("PER_DEVICE_TRAIN_BATCH_SIZE", "2", "note"),
        ("LAUNCHER", "no-such-launcher --nproc-per-node 4", "problem"),
        ("LAUNCHER", f"{shlex.quote(sys.executable)} -m torch.distributed.run", "note"),
    ],
)
def test_what_is_set_in_the_environment_is_said(monkeypatch, name, value, level):
    for variable in environment.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, value)
    (finding,) = environment.check_variables()
    assert (finding.level, finding.subject) == (level, name)


def test_the_data_is_looked_at_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    copy_params(tmp_path)
    edit_yaml("params.yaml", data__path="rows.json")
    assert "rows.json is not here" in texts(repository.check_data)[0]
    Path("rows.json").write_text(json.dumps(make_rows(4)))
    usable, unknown = texts(repository.check_data)
    assert usable == (
        "ok      data: rows.json: columns: context = anchor, question = query, answer = positive, "
        "wrong answer = negative (optional); the first 4 rows have them"
    )
    assert "known to neither git nor DVC" in unknown
    git("add", "rows.json")
    assert levels(repository.check_data) == ["ok"]
    Path("rows.json").write_text(json.dumps([{**row, "query": ""} for row in make_rows(4)]))
    assert '4 cannot be used, such as index 0: "query" is empty' in texts(repository.check_data)[0]
    Path("rows.json").write_text(json.dumps([{"question": "Why?"}]))
    assert levels(repository.check_data) == ["problem"]
    edit_yaml("params.yaml", data__path="data/sample/patents.json")
    assert levels(repository.check_data) == ["note"]


def test_a_parameter_out_of_range_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy_params(tmp_path)
    assert levels(repository.check_params) == ["ok"]
    edit_yaml("params.yaml", sft__learning_rate=-1)
    (finding,) = repository.check_params()
    assert finding.level == "problem"
    assert "sft.learning_rate" in finding.text
    # what can't be looked at for that reason is no problem of its own
    assert [finding.level for finding in examine([repository.check_params, machine.check_hub])] == [
        "problem",
        "note",
    ]


OLD, NEW = (
    {"name": name, "capability": [major, minor], "bytes": 4 * 2**30}
    for name, major, minor in (("A", 7, 5), ("B", 8, 0))
)


@pytest.mark.parametrize(
    ("cuda", "cards", "driver", "level", "said"),
    [
        (None, [], None, "note", "none: runs on the CPU"),
        (
            None,
            [],
            ["GTX 1650 Ti, 550.1"],
            "problem",
            "is here, but PyTorch 2 is built for no CUDA",
        ),
        ("13.0", [], ["GTX 1650 Ti, 450.1"], "problem", "cannot use it: the driver is too old"),
        (
            "13.0",
            [OLD],
            ["A, 580.1"],
            "ok",
            "compute capability 7.5: an older GPU, which computes in float16",
        ),
        ("13.0", [NEW], ["B, 580.1"], "ok", "4.0 GiB, compute capability 8.0"),
    ],
)
def test_a_card_and_a_build_that_do_not_match_are_told_apart(
    monkeypatch, cuda, cards, driver, level, said
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (finding,) = machine.describe_gpus({"version": "2", "cuda": cuda, "cards": cards}, driver)
    assert finding.level == level
    assert said in finding.text
    assert ("float16" in finding.text) == (cards == [OLD])


def test_a_torch_that_ends_its_process_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = machine.check_gpu()
    assert (finding.level, finding.text) == ("problem", "ended by signal 6")


@pytest.mark.slow
def test_a_card_on_which_triton_does_not_run_is_a_note(monkeypatch):
    seen = {"version": "2", "cuda": "13.0", "cards": [NEW]}
    run_probe = machine.run_probe

    def with_a_card(name):
        return (json.dumps(seen), None) if name == "torch_and_cards" else run_probe(name)

    monkeypatch.setattr(machine, "run_probe", with_a_card)
    found = {finding.subject: finding for finding in machine.check_gpu()}
    assert (found["Triton"].level, found["Triton"].remedy) == (
        "note",
        "sudo apt-get install gcc python3-dev",
    )
    assert "its kernels do not run here; plain PyTorch computes the loss" in found["Triton"].text


def test_the_doctor_itself_imports_nothing_that_could_be_broken():
    imports = "import sys; import commands.doctor.__main__; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", imports], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {
        "torch",
        "transformers",
        "dvc",
        "pydantic",
        "pyarrow",
        "huggingface_hub",
        "library.params",
    } & set(loaded)


def test_rows_that_are_not_there_come_back_the_way_that_there_is(repo):
    copy_params(".")
    edit_yaml("params.yaml", data__path="data/raw/mine.json")
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/mine.jsonl").write_text("{}\n")
    (finding,) = repository.check_data()
    assert finding.text == "data/raw/mine.json is not here, data/raw/mine.jsonl is"
    Path("data/raw/mine.jsonl").unlink()
    Path("data/raw/mine.json").write_text(json.dumps(make_rows(4)))
    dvc("add", "data/raw/mine.json")
    Path("data/raw/mine.json").unlink()
    (finding,) = repository.check_data()
    assert finding.remedy == "dvc checkout data/raw/mine.json"
    dvc("checkout", "data/raw/mine.json")
    assert levels(repository.check_data)[0] == "ok"
    Path("data/raw/mine.json").unlink()
    shutil.rmtree(".dvc/cache")
    (finding,) = repository.check_data()
    assert finding.remedy == "cp YOUR_ROWS data/raw/mine.json && dvc add data/raw/mine.json"
    dvc("remote", "add", "--default", "shelf", "../shelf")
    (finding,) = repository.check_data()
    assert finding.remedy == "dvc pull data/raw/mine.json"


def test_memory_is_held_against_what_the_model_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy_params(tmp_path)
    edit_yaml("params.yaml", model="qwen2.5-0.5b-instruct")
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "0.5")
    (finding,) = machine.check_memory()
    assert finding.level == "problem"
    assert "need" in finding.text
    assert "0.50 GiB are free" in finding.text


def test_an_embedding_model_is_looked_at_where_it_was_run_or_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy_params(tmp_path)
    shutil.copytree(ROOT / "models/embedding", "models/embedding")
    assert texts(machine.check_embedding) == []  # never run, and the default
    write_text(Path("data/rankings/texts.json"), "{}")
    here, memory = texts(machine.check_embedding)
    assert here == "ok      embedding model: minilm is on this disk"
    assert re.search(r"minilm, \d+ rows at a time with texts of 256 tokens: .* predicted, ", memory)
    edit_yaml("params.yaml", embed__model="e5-small-v2")
    absent, memory = texts(machine.check_embedding)
    assert absent.startswith("note    embedding model: intfloat/e5-small-v2 is not in the Hub's")
    assert "e5-small-v2, " in memory
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "0.1")
    *_, memory = examine([machine.check_embedding])
    assert memory.level == "problem"
    assert "with a text of 512 tokens needs" in memory.text
    edit_yaml("params.yaml", embed__mini_batch_size=8)
    *_, memory = machine.check_embedding()
    assert memory.level == "problem"
    assert memory.remedy == "set embed.mini_batch_size to null"
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    (finding,) = machine.check_embedding()
    assert finding.remedy.endswith("'.[embedding]'")


def test_a_hub_model_that_is_nowhere_is_a_problem_only_where_the_hub_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy_params(tmp_path)
    shutil.copytree(ROOT / "models/tiny", tmp_path / "models/tiny", dirs_exist_ok=True)
    # the embedded model; conftest has the hub switched off
    assert levels(machine.check_hub) == ["ok"]
    edit_yaml("params.yaml", model="local")
    assert levels(machine.check_hub) == ["problem"]
    assert not machine.is_reachable("http://127.0.0.1:9")


def test_a_check_that_breaks_does_not_stop_the_others():
    def check_broken():
        yield Finding("ok", "before", "it broke")
        raise RuntimeError("no\nluck")

    before, broken, after = examine(
        [check_broken, lambda: [Finding("ok", "after", "all the same")]]
    )
    assert (before.subject, after.subject) == ("before", "after")
    assert str(broken).startswith("problem broken: could not be checked: RuntimeError: no luck")


def test_all_checks_together_end_with_a_status_though_torch_is_broken(repo):
    broken = repo.parent / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text(
        "raise OSError('libcudart.so.13: cannot open shared object file')\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(broken), str(ROOT)])}
    command = [sys.executable, "-m", "commands.doctor"]
    ended = subprocess.run(
        command, cwd=repo, env=environ, capture_output=True, text=True, check=False
    )
    *lines, last = ended.stdout.splitlines()
    assert ended.returncode == 1
    assert "ok      outputs: all in place" in lines
    # there is no requirements.lock here
    assert any(
        line.startswith("problem packages: could not be checked: FileNotFoundError")
        for line in lines
    )
    assert any(
        line.startswith("problem PyTorch: OSError: libcudart.so.13: cannot open shared object file")
        for line in lines
    )
    assert any(line.startswith("ok      disk: ") for line in lines)
    assert sum(line.startswith("problem") for line in lines) == int(last.split(", ")[-1].split()[0])
