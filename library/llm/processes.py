"""One process or many: started by LAUNCHER in the environment, told apart, and joined again."""

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

# for a process that has more to do; PyTorch's ten minutes are less than a batch can take
PATIENCE = timedelta(hours=2)


def start_processes() -> PartialState:
    """Hand over to LAUNCHER where there is one, such as `torchrun --nproc-per-node 4`; in its
    processes, join the others.

    Only the main process says more than warnings.
    """
    try:
        launcher = shlex.split(os.environ.get("LAUNCHER", ""))
    except ValueError as error:  # a quote that is not closed
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
    """The process that asks, among the others: its index, how many there are, and how to wait for
    them.
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def broadcast_from_main(value: Any) -> Any:
    """The main process's value, in every process."""
    return broadcast_object_list([value])[0]


def gather_from_all(values: list[Any]) -> list[Any]:
    """The values of every process in one list, in every process."""
    return list(gather_object(values))
