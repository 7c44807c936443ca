"""Measure how much memory is free and used, and detect when it ran out."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from library.errors import InputError
from library.llm.memory.formula import MemoryEstimate
from library.llm.processes import gather_from_all, processes
from library.units import GIB

SPARE = 0.05  # of free memory, kept in reserve for fragmentation
# CUDA's context and cuBLAS's workspace: 0.3 to 0.5 GB on small GPUs, 0.69 on an H100
CONTEXT_BYTES = 450_000_000


def memory_limit() -> int | None:
    """MEMORY_LIMIT_GIB in the environment, in bytes; None if it is not set.

    Raises InputError if it is not a positive number.
    """
    value = os.environ.get("MEMORY_LIMIT_GIB", "")
    try:
        limit = float(value or "1") * GIB
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise InputError(
            f"MEMORY_LIMIT_GIB in the environment: expected a positive number, got {value!r}"
        )
    return int(limit) if value else None


def free_bytes(device: torch.device) -> int:
    """Bytes that tensors may take: what is free on the device, or less if MEMORY_LIMIT_GIB is set.

    The limit simulates a smaller GPU: on CUDA the context's share is subtracted from it, and
    PyTorch's allocator is held to the rest.
    """
    limit = memory_limit()
    if device.type != "cuda":
        free = psutil.virtual_memory().available
        return int(free if limit is None else min(free, limit))
    free, total = torch.cuda.mem_get_info(device)
    if limit is not None:
        allowed = max(0, limit - CONTEXT_BYTES)
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)
        free = min(free, allowed)
    return int(free)


def free_beside(device: torch.device) -> int:
    """Bytes free in main memory for work done there, whatever the device.

    MEMORY_LIMIT_GIB limits the device: on a machine with a GPU it does not limit main memory.
    """
    if device.type == "cpu":
        return free_bytes(device)
    return int(psutil.virtual_memory().available)


def fits(prediction: MemoryEstimate, free: float) -> bool:
    """Whether a prediction fits into the free bytes with a small reserve."""
    return prediction.needed <= free * (1 - SPARE)


def count_ooms(device: torch.device) -> int:
    """How often PyTorch has run out of a device's memory in this process."""
    return int(torch.cuda.memory_stats(device).get("num_ooms", 0)) if device.type == "cuda" else 0


def ran_out_of_memory(error: RuntimeError, device: torch.device, before: int = 0) -> bool:
    """Whether an error means out of memory; `before` is what `count_ooms` said before the work.

    transformers hides the error while loading, but the allocator's count still shows it.
    """
    said = any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))
    return isinstance(error, torch.OutOfMemoryError) or said or count_ooms(device) > before


class OutOfMemoryError(Exception):
    """A device is out of memory, whichever library reported it and however."""


def free_memory() -> None:
    """Free the memory of models and results that nothing refers to any more.

    Call it outside an exception's handler: the exception holds on to what was computed.
    """
    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def name_out_of_memory(device: torch.device) -> Iterator[None]:
    """Raise OutOfMemoryError if memory runs out, whichever of the libraries' errors says so.

    It holds no reference to what was computed, so that memory can be freed once it is handled.
    """
    before = count_ooms(device)
    try:
        yield
    except RuntimeError as error:  # PyTorch's own, and those of libraries it calls
        if not ran_out_of_memory(error, device, before):
            raise
        raise OutOfMemoryError from None


@contextmanager
def explain_out_of_memory(device: torch.device, advice: str) -> Iterator[None]:
    """Raise InputError with advice if loading runs out of memory."""
    try:
        with name_out_of_memory(device):
            yield
    except OutOfMemoryError:
        raise InputError(f"out of memory while the model is loaded; {advice}") from None


def resident_bytes(model: torch.nn.Module) -> int:
    """Bytes of a process's parameters, gradients, buffers and bitsandbytes' 4-bit constants."""
    size = 0
    for tensor in [*model.parameters(), *model.buffers()]:
        held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        size += held.nbytes + (0 if tensor.grad is None else tensor.grad.nbytes)
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        if state is not None:
            size += sum(
                part.nbytes
                for part in (state.absmax, *([state.state2.absmax] if state.nested else []))
            )
    return size


def measure_peak(device: torch.device, run: Callable[[], Any]) -> int:
    """The most bytes in tensors while `run` runs: on a CPU beyond those before, on CUDA in all.

    On CUDA this is the allocator's count. On a CPU it is the running sum of what PyTorch's profiler
    saw allocated and freed. That varies by 1% between runs, while the process's resident memory
    varies more.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # stops the profiler's startup message
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    now = peak = 0
    for event in sorted(events, key=lambda event: int(event.start_ns())):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def peak_bytes(device: torch.device) -> int:
    """The most bytes so far: on CUDA in tensors, on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    memory = psutil.Process().memory_info()
    try:
        import resource
    except ImportError:  # Windows
        return int(memory.peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def measure_free(device: torch.device) -> int:
    """Bytes free for tensors in the process that has least, after CUDA and the connection between
    processes have taken theirs.
    """
    if device.type == "cuda":
        square = torch.ones(64, 64, device=device, dtype=torch.float16)
        (square @ square).sum().item()  # loads cuBLAS, and waits for it
    processes().wait_for_everyone()
    return int(min(gather_from_all([free_bytes(device)])))
