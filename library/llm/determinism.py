"""Whether CUDA computes the same bytes twice: decided here for all, as `pick_device` is asked.

`DETERMINISTIC=0` in the environment turns it off for speed. It is no parameter: like all hardware
it must not enter params.yaml or dvc.lock. On a CPU nothing is changed: two runs are equal anyway.

What that takes, by what computes (read in PyTorch 2.13, TRL 1.16 and bitsandbytes 0.50):

- cuBLAS has to be given one of CUBLAS_WORKSPACES before CUDA starts, or PyTorch refuses.
- Attention's backward pass adds up one sum from many blocks in any order. Told so, PyTorch takes
  flash attention's deterministic form, one split of the keys in the memory-efficient kernel, and no
  cuDNN (aten/src/ATen/native/transformers/cuda). The flash_attn package is told by a variable.
- TRL's fused head: each Triton program owns its token, products are cuBLAS's. No atomics.
- bitsandbytes' 4-bit products: a warp or tile owns each output and adds in a fixed order.

transformers' `full_determinism` sets CUDA_LAUNCH_BLOCKING, too, which waits for every kernel.
"""

import os
from typing import TypedDict

import torch

from library.errors import InputError

CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
# bytes of each that PyTorch takes for deterministic: with little, cuBLAS has fewer ways to compute
CUBLAS_WORKSPACES = {":4096:8": 8 * 4096 * 1024, ":16:8": 8 * 16 * 1024}


DEFAULT_WORKSPACE = ":4096:8"


class Determinism(TypedDict, total=False):
    """What a stage's record says on CUDA, and does not on a CPU."""

    deterministic: bool


def wants_determinism() -> bool:
    """What DETERMINISTIC in the environment says: 1, as where it is not set, or 0.

    Raises InputError where it says something else.
    """
    value = os.environ.get("DETERMINISTIC", "")
    if value not in ("", "0", "1"):
        raise InputError(f"DETERMINISTIC in the environment: expected 0 or 1, got {value!r}")
    return value != "0"


def cublas_workspace() -> int:
    """Bytes of cuBLAS's workspace, of which each thread has one, when computing deterministically.

    Raises InputError where CUBLAS_WORKSPACE_CONFIG in the environment says another.
    """
    value = os.environ.get(CUBLAS_VARIABLE, DEFAULT_WORKSPACE)
    if value not in CUBLAS_WORKSPACES:
        raise InputError(
            f"{CUBLAS_VARIABLE} in the environment: with {value!r} two runs can differ; expected "
            f"{' or '.join(CUBLAS_WORKSPACES)}; unset it, or set DETERMINISTIC=0"
        )
    return CUBLAS_WORKSPACES[value]


def compute_deterministically() -> None:
    """Have CUDA compute the same bytes twice, unless DETERMINISTIC says no.

    Before the first product: PyTorch looks at cuBLAS's workspace once.

    Raises InputError where CUBLAS_WORKSPACE_CONFIG in the environment forbids it.
    """
    if not wants_determinism() or not torch.cuda.is_available():
        return
    cublas_workspace()
    os.environ.setdefault(CUBLAS_VARIABLE, DEFAULT_WORKSPACE)
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    torch.use_deterministic_algorithms(True)
    # it is for finding what reads memory before it is written; a kernel more for each tensor
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def describe_determinism(device: torch.device) -> Determinism:
    """What is decided, for a stage's record: nothing on a CPU."""
    if device.type != "cuda":
        return {}
    return {"deterministic": torch.are_deterministic_algorithms_enabled()}
