"""Whether CUDA computes the same bytes twice: what is switched on and recorded, what it takes."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from transformers import Qwen2Config

from library.entry import run_main
from library.errors import InputError
from library.llm.determinism import (
    compute_deterministically,
    describe_determinism,
    wants_determinism,
)
from library.llm.devices import describe_device, pick_device
from library.llm.memory.formula import (
    WORKSPACE_BYTES,
    Adapter,
    ComputeSettings,
    measure_sizes,
    predict_training,
)
from library.llm.memory.planning import make_settings
from library.llm.processes import processes
from library.pages.statements import repeatable_sentence
from library.params import load_model_file, load_params

VARIABLES = "DETERMINISTIC", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"
CUDA = torch.device("cuda")
ON_CPU = {"device": "CPU (Intel, AVX512)"}
ON_CARD = {"device": "NVIDIA H100"}


@pytest.fixture
def switches(monkeypatch):
    """PyTorch's switches and the environment, put back afterwards."""
    processes()  # are of a CPU, whatever is pretended below
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    yield monkeypatch
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def test_on_a_cpu_nothing_is_switched_and_nothing_is_recorded(switches):
    compute_deterministically()
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert describe_determinism(torch.device("cpu")) == {}


def test_whoever_asks_for_the_device_has_it_on(switches):
    switches.setattr(torch.cuda, "is_available", lambda: True)
    switches.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert pick_device() == torch.device("cuda", 0)
    assert torch.are_deterministic_algorithms_enabled()
    assert describe_device().endswith(", deterministic")


def test_on_cuda_it_is_on_unless_it_is_turned_off(switches):
    switches.setattr(torch.cuda, "is_available", lambda: True)
    switches.setenv("DETERMINISTIC", "0")
    compute_deterministically()
    assert describe_determinism(CUDA) == {"deterministic": False}
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    switches.setenv("DETERMINISTIC", "1")
    compute_deterministically()
    assert describe_determinism(CUDA) == {"deterministic": True}
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DETERMINISTIC", "yes", "DETERMINISTIC in the environment: expected 0 or 1, got 'yes'"),
        ("CUBLAS_WORKSPACE_CONFIG", ":4096:2:16:8", "unset it, or set DETERMINISTIC=0"),
    ],
)
def test_a_value_that_does_not_do_is_named(switches, name, value, message):
    switches.setattr(torch.cuda, "is_available", lambda: True)
    switches.setenv(name, value)
    with pytest.raises(InputError, match=message):
        compute_deterministically()


def test_an_operator_without_a_deterministic_form_is_said_in_words(switches):
    switches.setenv("DETERMINISTIC", "1")
    torch.use_deterministic_algorithms(True)

    def work():
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))

    with pytest.raises(SystemExit) as error:
        run_main(work)
    assert error.value.code == (
        "error: put_ has no form that computes the same bytes twice here; set DETERMINISTIC=0 in "
        "the environment, and two runs can differ"
    )


def test_a_run_that_did_not_ask_for_it_starts_again_without(tmp_path):
    (tmp_path / "work.py").write_text(
        "import os, torch\n"
        "from library.entry import run_main\n"
        "def work():\n"
        "    torch.use_deterministic_algorithms(os.environ.get('DETERMINISTIC') != '0')\n"
        "    torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))\n"
        "    print('done')\n"
        "run_main(work)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "work"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "done\n")
    assert ran.stderr.count("put_ has no form that computes the same bytes twice here") == 1


def test_what_it_takes_of_memory_is_predicted(switches):
    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    adapter = Adapter(8, "all-linear")
    sizes = measure_sizes(config, adapter)
    plain = ComputeSettings("nf4", True, adapter, torch.bfloat16, "cuda")
    assert predict_training(sizes, plain, 1, 100, 50).workspace == WORKSPACE_BYTES
    # two threads' workspaces of 32 MiB, and 25 more gradients of the queries: 102 / 4 heads, up
    careful = ComputeSettings(
        *("nf4", True, adapter, torch.bfloat16, "cuda"),
        cublas_bytes=32 * 2**20,
        multiprocessors=102,
    )
    before, after = (predict_training(sizes, setting, 1, 100, 50) for setting in (plain, careful))
    assert after.workspace == 2 * 32 * 2**20 - WORKSPACE_BYTES
    assert after.layer - before.layer == pytest.approx(25 * 100 * 64 * 4, abs=1)


def test_a_card_that_is_not_here_is_planned_for_with_the_larger_workspace(switches, project):
    params = load_params()
    model_file = load_model_file(params.model)
    assert make_settings(model_file, params.sft, "cpu").workspace == 0
    assert make_settings(model_file, params.sft, "cuda").workspace == 32 * 2**20
    switches.setenv("DETERMINISTIC", "0")
    assert make_settings(model_file, params.sft, "cuda").workspace == WORKSPACE_BYTES
    assert wants_determinism() is False


@pytest.mark.parametrize(
    ("records", "beginning"),
    [
        ([ON_CPU, ON_CPU], "yes: the same CPU"),
        ([ON_CPU, ON_CARD | {"deterministic": True}], "yes: computed with deterministic"),
        ([ON_CARD | {"deterministic": True}, ON_CARD | {"deterministic": False}], "no: "),
        ([ON_CARD], "no: "),
    ],
)
def test_the_report_says_whether_a_run_can_be_repeated(records, beginning):
    assert repeatable_sentence(records).startswith(beginning)
