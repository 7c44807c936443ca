"""How a stage or command starts, and how it ends if the user's input or the disk is not usable."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from errno import EACCES, EEXIST, EISDIR, EPERM, EROFS
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import InputError
from library.paths import PIPELINE_PATH
from library.units import duration

if TYPE_CHECKING:
    from library.stage_inputs import StageInputs

log = logging.getLogger(__name__)

# Python and safetensors; the last is PyTorch's
FULL = ("No space left on device", "Disk quota exceeded", "inline_container.cc")
NOT_DETERMINISTIC = " does not have a deterministic implementation"  # PyTorch's, of an operator


def run_main(main: Callable[[], None]) -> None:
    """Run a stage or a command with plain log lines.

    An InputError or a full disk ends it with a message instead of a traceback and exit status 1. A
    stage first logs the first paragraph of its module's docstring, and at the end how long it took.
    It fails if its inputs changed while it ran.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = time.perf_counter()
    try:
        inputs = _stage_inputs()
        if inputs is not None:
            log.info("%s", first_paragraph(sys.modules["__main__"].__doc__))
        main()
        if inputs is not None:
            inputs.check_unchanged()
            log.info("%s took %s", inputs.stage, duration(time.perf_counter() - start))
        sys.stdout.flush()
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:  # the reader, such as `head`, has stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if any(words in str(cause) for cause in causes(error) for words in FULL):
            fail(
                "no space is left on a disk (`df -h . checkpoints /tmp` says on which); make room, "
                "and run it again"
            )
        for cause in causes(error):
            operator, found, _ = str(cause).partition(NOT_DETERMINISTIC)
            if found:
                _go_on_without_determinism(operator)
        if isinstance(error, NotADirectoryError) and error.filename:
            path = Path(error.filename)
            fail(
                f"{next(part for part in (*reversed(path.parents), path) if not part.is_dir())}: a "
                "file, where a folder is needed"
            )
        if (
            isinstance(error, OSError)
            and error.filename
            and error.errno in (EACCES, EEXIST, EISDIR, EPERM, EROFS)
        ):
            fail(f"{error.filename}: {error.strerror}")
        raise


def _go_on_without_determinism(operator: str) -> None:
    """Start this program again with DETERMINISTIC=0, unless it was asked for, or is one of several
    processes. It begins anew, and its record says that a second run can differ.
    """
    said = f"{operator} has no form that computes the same bytes twice here"
    if os.environ.get("DETERMINISTIC") or "RANK" in os.environ:
        fail(f"{said}; set DETERMINISTIC=0 in the environment, and two runs can differ")
    log.warning("%s; starting again with DETERMINISTIC=0: two runs can differ", said)
    sys.stdout.flush()
    os.environ["DETERMINISTIC"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def first_paragraph(text: str | None) -> str:
    """The first paragraph of a docstring as one line; empty if there is none."""
    return " ".join((text or "").split("\n\n")[0].split())


def _stage_inputs() -> "StageInputs | None":
    """The inputs of the running stage; None for a command, and in every process but the first."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    package, _, stage = (spec.name if spec else "").partition(".")
    if package != "stages" or os.environ.get("RANK", "0") != "0":
        return None
    from library.stage_inputs import StageInputs

    return StageInputs(stage) if PIPELINE_PATH.is_file() else None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def fail(message: str) -> None:
    """Exit with a message and status 1.

    torchrun has the last word of several processes, so it is told to repeat the message.
    """
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        try:  # it repeats the traceback, too, which is this line then
            raise InputError(message) from None
        except InputError as error:
            get_error_handler().record_exception(error)
    sys.exit(f"error: {message}")
