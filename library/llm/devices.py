"""Choose the device and the type to compute in."""

import platform
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedModel

from library.llm.determinism import compute_deterministically, describe_determinism
from library.llm.processes import processes
from library.records import Computation


def pick_device() -> torch.device:
    """The CUDA device of this process, or the CPU if there is none.

    Everything that computes asks here first, which also makes CUDA compute deterministically.
    """
    compute_deterministically()
    return (
        torch.device("cuda", processes().local_process_index)
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def lacks_bfloat16(device: torch.device) -> bool:
    """Whether a GPU lacks bfloat16: compute capability below 8.0, such as the GTX 1650's 7.5."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)


def pick_dtype(device: torch.device) -> torch.dtype:
    """The computing type: bfloat16 from compute capability 8.0, float16 below, float32 on a CPU.

    `torch.cuda.is_bf16_supported` also accepts older GPUs, because it counts emulation. CPUs
    without AVX512-BF16 are thirty times slower in bfloat16 than in float32.
    """
    if device.type == "cpu":
        return torch.float32
    return torch.float16 if lacks_bfloat16(device) else torch.bfloat16


def describe_device() -> str:
    """The device and computing type, because results of different ones must not be mixed."""
    device = pick_device()
    how = ", deterministic" if describe_determinism(device).get("deterministic") else ""
    return f"{device.type}, {pick_dtype(device)}{how}"


def describe_computation(model: PreTrainedModel) -> Computation:
    """A record of a model's device and computing type; on CUDA also whether it is deterministic."""
    return {
        "device": device_name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        **describe_determinism(model.device),
    }


def device_name(device: torch.device) -> str:
    """The device's name; for a CPU the maker and instruction set, which affect rounding."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({_cpu_maker()}, {torch.backends.cpu.get_cpu_capability()})"


@cache
def _cpu_maker() -> str:
    """The CPU's maker, as Linux gives it; elsewhere the architecture.

    MKL computes differently on AMD's CPUs than on Intel's.
    """
    with suppress(OSError):
        found = re.search(r"vendor_id\s*: *(\S+)", Path("/proc/cpuinfo").read_text())
        if found:
            return {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}.get(found[1], found[1])
    return platform.machine()
