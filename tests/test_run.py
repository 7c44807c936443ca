"""How a stage ends when it can't go on: a message and exit status 1, or a traceback where the fault
is ours.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, edit_yaml
from safetensors import SafetensorError

from library.entry import run_main
from library.errors import InputError
from library.files import write_json
from library.params import read_yaml
from library.stage_inputs import StageInputs
from library.units import duration


def raising(error, cause=None):
    def main():
        raise error from cause

    return main


@pytest.mark.parametrize(
    ("main", "said"),
    [
        (raising(InputError("rows.json:3: no answer")), "error: rows.json:3: no answer"),
        (raising(OSError(28, "No space left on device")), "error: no space is left on a disk"),
        (
            raising(SafetensorError("I/O error: No space left on device (os error 28)")),
            "error: no space is left on a disk",
        ),
        (
            raising(ValueError("could not save"), OSError(28, "No space left on device")),
            "error: no space is left on a disk",
        ),
        (
            raising(OSError(30, "Read-only file system", "checkpoints/x")),
            "error: checkpoints/x: Read-only file system",
        ),
        (
            raising(PermissionError(13, "Permission denied", "reports")),
            "error: reports: Permission denied",
        ),
    ],
)
def test_what_the_user_can_mend_is_a_message(main, said):
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert str(ended.value).startswith(said)


@pytest.mark.parametrize(
    "error",
    [ValueError("ours"), FileNotFoundError(2, "No such file or directory", "x"), OSError("x")],
)
def test_what_is_our_fault_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_main(raising(error))


def test_a_file_in_place_of_a_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").touch()
    with pytest.raises(SystemExit, match=r"^error: checkpoints: a file, where a folder is needed$"):
        run_main((tmp_path / "checkpoints" / "sft-0").relative_to(tmp_path).mkdir)


def test_a_checkpoint_that_pytorch_can_not_write_is_told_apart(tmp_path):
    class Full:
        """A file on a disk of 100 bytes."""

        written = 0

        def write(self, data):
            self.written += len(data)
            if self.written > 100:
                raise OSError(28, "No space left on device")
            return len(data)

        def flush(self):
            """Nothing is kept back."""

    with pytest.raises(SystemExit, match=r"^error: no space is left on a disk"):
        run_main(lambda: torch.save(torch.zeros(1000), Full()))


def test_torchrun_is_told_what_to_repeat(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit, match="error: rows"):
        run_main(raising(InputError("rows.json:3: no answer")))
    assert (
        "rows.json:3: no answer"
        in json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    )


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_enough_gets_no_traceback(lines):
    program = (
        "from library.entry import run_main\n"
        f"run_main(lambda: [print('a row') for _ in range({lines})])"
    )
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
        assert (process.wait(), said) == (1, b"")


@pytest.mark.parametrize(
    ("given", "used"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")]
)
def test_threads_that_wait_sleep_unless_the_environment_says_otherwise(given, used):
    # OpenMP asks when torch is loaded: what a stage imports first has set it by then
    program = (
        "import os, sys, stages.zeroshot; "
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    said = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | given | {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "TRUE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == f"{used} True\n"
    assert f"OMP_WAIT_POLICY = '{used}'" in said.stderr  # as OpenMP itself understood it


PIPELINE = """
stages:
  copy:
    cmd: "{python} -m stages.copy"
    params:
      - sft
      - models/${{model}}/model.yaml:
    deps: ["${{data.path}}", votes]
    outs: [out.txt]
"""
STAGE = """
from pathlib import Path
from library.entry import run_main


def main():
    Path("out.txt").write_text(Path("rows.json").read_text())
    Path("rows.json").write_text("other rows")  # by somebody else


run_main(main)
"""


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """A stage of one's own that reads rows, votes and parameters; the working directory."""
    monkeypatch.chdir(tmp_path)
    for path, text in {
        "stages/__init__.py": "",
        "stages/copy.py": STAGE,
        "dvc.yaml": PIPELINE.format(python=sys.executable),
        "params.yaml": "model: m\ndata: {path: rows.json}\nsft: {lr: 1}\nevaluate: {draws: 1}\n",
        "models/m/model.yaml": "path: a\n",
        "rows.json": "rows",
        "votes/old.json": "x",
    }.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda: Path("rows.json").touch(), None),
        (lambda: Path("rows.json").write_text("swor"), "rows.json"),
        (lambda: Path("votes/late.json").write_text("x"), "votes/late.json"),
        (lambda: Path("votes/old.json").unlink(), "votes/old.json"),
        (lambda: edit_yaml("params.yaml", sft__lr=2), "params.yaml: sft.lr"),
        (lambda: edit_yaml("models/m/model.yaml", path="b"), "models/m/model.yaml: path"),
        (lambda: edit_yaml("params.yaml", evaluate__draws=2), None),  # no parameter of this stage
    ],
)
def test_inputs_are_watched_as_dvc_yaml_declares_them(pipeline, edit, named):
    inputs = StageInputs("copy")
    inputs.check_unchanged()
    edit()
    if named is None:
        inputs.check_unchanged()
        return
    with pytest.raises(InputError) as error:
        inputs.check_unchanged()
    assert str(error.value).startswith(f"{named}: changed while copy ran")


def test_a_stage_without_its_inputs_names_the_stage_that_makes_them(pipeline):
    stages = read_yaml(Path("dvc.yaml"))["stages"]
    stages["use"] = {"cmd": "x", "deps": ["made/rows.json", "data.csv"]}
    stages["make"] = {"cmd": "x", "outs": [{"made": {"cache": False}}]}
    write_json(Path("dvc.yaml"), {"stages": stages})  # which is YAML, too
    with pytest.raises(InputError, match=r"^made/rows\.json: .*; run `dvc repro make`$"):
        StageInputs("use")
    write_json(Path("made/rows.json"), [])
    StageInputs("use")  # what no stage makes is for the stage itself to ask after


def test_a_stage_logs_what_it_does_first_and_its_time_last(pipeline):
    stage = STAGE.replace(
        '    Path("rows.json").write_text("other rows")  # by somebody else\n', ""
    )
    Path("stages/copy.py").write_text(f'"""Copy the rows\nas they are.\n\nMore."""\n{stage}')
    said = subprocess.run(
        [sys.executable, "-m", "stages.copy"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert re.fullmatch(r"Copy the rows as they are\.\ncopy took \d\.\d s\n", said)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (9.96, "10 s"), (59.7, "1 min 0 s"), (125, "2 min 5 s"), (3725, "1 h 2 min")],
)
def test_durations_are_given_to_the_digits_that_matter(seconds, text):
    assert duration(seconds) == text


def test_rows_replaced_while_a_stage_runs_are_not_recorded_for_its_result(pipeline, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def dvc(*arguments):
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    dvc("init", "--no-scm", "--quiet")
    ended = dvc("repro")
    assert "error: rows.json: changed while copy ran" in ended.stderr
    assert ended.returncode != 0
    assert not Path("dvc.lock").exists()
    Path("rows.json").write_text("rows")  # put back, the result is that of what is there
    assert dvc("commit", "--force", "copy").returncode == 0
    assert "up to date" in dvc("status").stdout
