"""Run a stage in one process or, with LAUNCHER in the environment, in many."""

import logging
import os
import shlex
import shutil
import sys
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from library.errors import InputError

# for a process that is behind: a batch can take longer than PyTorch's ten minutes
PATIENCE = timedelta(hours=2)


def start_processes() -> PartialState:
    """Start the stage under LAUNCHER if it is set, such as `torchrun --nproc-per-node 4`.

    In the launched processes, join the others; only the main process logs more than warnings.
    """
    try:
        launcher = shlex.split(os.environ.get("LAUNCHER", ""))
    except ValueError as error:  # an unclosed quote
        raise InputError(f"LAUNCHER in the environment: {error}") from None
    if launcher:
        program = shutil.which(launcher[0])
        if program is None:
            raise InputError(f"LAUNCHER in the environment: {launcher[0]!r} is not found")
        specification = sys.modules["__main__"].__spec__
        if specification is None:
            raise InputError(
                "LAUNCHER in the environment needs a stage that is started by python -m"
            )
        os.environ["LAUNCHER"] = ""
        os.execv(program, [program, *launcher[1:], "-m", specification.name])
    state = processes()
    if not state.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    return state


def processes() -> PartialState:
    """The current process: its index, the number of processes, and how to wait for them."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def broadcast_from_main(value: Any) -> Any:
    """Return the main process's value in every process."""
    return broadcast_object_list([value])[0]


def gather_from_all(values: list[Any]) -> list[Any]:
    """Return the values of every process as one list, in every process."""
    return list(gather_object(values))
