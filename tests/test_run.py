"""How a stage ends when it can't go on: a message and exit status 1, or a traceback where the fault
is ours.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from library.entry import run_main
from library.errors import InputError


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
