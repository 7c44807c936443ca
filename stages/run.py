"""How a stage starts, and how it fails when what the user gave, or the disk, is not usable."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

FULL = ("No space left on device", "Disk quota exceeded", "inline_container.cc")  # Python and safetensors; the last is PyTorch's


class InputError(Exception):
    """What a user gave is not usable; the message names file, line or key, value, and what was expected."""


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage with plain log lines; an InputError becomes its message alone and exit status 1, and so does a full disk."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except InputError as error:
        fail(str(error))
    except Exception as error:
        if any(words in str(cause) for cause in causes(error) for words in FULL):
            free = shutil.disk_usage(".").free
            fail(f"no space is left on the disk ({free / 1e6:.0f} MB under {Path.cwd()}); make room, and run it again")
        if isinstance(error, PermissionError | FileExistsError | NotADirectoryError | IsADirectoryError) and error.filename:
            fail(f"{error.filename}: {error.strerror}")
        raise


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it followed."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def fail(message: str) -> None:
    """End with a message and exit status 1; torchrun, which has the last word of many processes, is told to repeat it."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        try:
            raise InputError(message) from None  # it repeats the traceback, too, which is now this line
        except InputError as error:
            get_error_handler().record_exception(error)
    sys.exit(f"error: {message}")
