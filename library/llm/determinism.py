"""Make CUDA compute the same bytes twice; `pick_device` sets it up.

`DETERMINISTIC=0` in the environment turns it off for speed. It is not a parameter, because hardware
must not enter params.yaml or dvc.lock. On a CPU nothing changes: two runs are equal anyway.

What each library needs (read in PyTorch 2.13, TRL 1.16 and bitsandbytes 0.50):

- cuBLAS needs one of CUBLAS_WORKSPACES before CUDA starts, or PyTorch raises an error.
- Attention's backward pass sums over many blocks in any order. In deterministic mode, PyTorch uses
  flash attention's deterministic form, a single split of the keys in the memory-efficient kernel,
  and no cuDNN (aten/src/ATen/native/transformers/cuda). The flash_attn package reads an environment
  variable.
- TRL's fused head needs nothing: each Triton program owns its token, products are cuBLAS's, and
  there are no atomics.
- bitsandbytes' 4-bit products need nothing: a warp or tile owns each output and adds in a fixed
  order.

transformers' `full_determinism` also sets CUDA_LAUNCH_BLOCKING, which waits for every kernel.
"""

import os
from typing import TypedDict

import torch

from library.errors import InputError

CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
# the settings that PyTorch accepts as deterministic, in bytes; small ones leave cuBLAS fewer
# algorithms
CUBLAS_WORKSPACES = {":4096:8": 8 * 4096 * 1024, ":16:8": 8 * 16 * 1024}


DEFAULT_WORKSPACE = ":4096:8"


class Determinism(TypedDict, total=False):
    """What a stage's record says about determinism on CUDA; empty on a CPU."""

    deterministic: bool


def wants_determinism() -> bool:
    """Whether to compute deterministically: DETERMINISTIC in the environment is 1 (default) or 0.

    Raises InputError if it is anything else.
    """
    value = os.environ.get("DETERMINISTIC", "")
    if value not in ("", "0", "1"):
        raise InputError(f"DETERMINISTIC in the environment: expected 0 or 1, got {value!r}")
    return value != "0"


def cublas_workspace() -> int:
    """Bytes of cuBLAS's workspace in each thread when computing deterministically.

    Raises InputError if CUBLAS_WORKSPACE_CONFIG in the environment is not deterministic.
    """
    value = os.environ.get(CUBLAS_VARIABLE, DEFAULT_WORKSPACE)
    if value not in CUBLAS_WORKSPACES:
        raise InputError(
            f"{CUBLAS_VARIABLE} in the environment: with {value!r} two runs can differ; expected "
            f"{' or '.join(CUBLAS_WORKSPACES)}; unset it, or set DETERMINISTIC=0"
        )
    return CUBLAS_WORKSPACES[value]


def compute_deterministically() -> None:
    """Make CUDA compute the same bytes twice, unless DETERMINISTIC is 0.

    Call it before the first matrix product: PyTorch reads cuBLAS's setting only once. Raises
    InputError if CUBLAS_WORKSPACE_CONFIG in the environment is not deterministic.
    """
    if not wants_determinism() or not torch.cuda.is_available():
        return
    cublas_workspace()
    os.environ.setdefault(CUBLAS_VARIABLE, DEFAULT_WORKSPACE)
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    torch.use_deterministic_algorithms(True)
    # for finding reads of uninitialized memory; it costs one more kernel per tensor
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def describe_determinism(device: torch.device) -> Determinism:
    """A record of whether computation is deterministic; empty on a CPU."""
    if device.type != "cuda":
        return {}
    return {"deterministic": torch.are_deterministic_algorithms_enabled()}
