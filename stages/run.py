"""How a stage starts, and how it fails when what the user gave is not usable."""

import logging
import sys
from collections.abc import Callable


class InputError(Exception):
    """What a user gave is not usable; the message names file, line or key, value, and what was expected."""


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage with plain log lines; an InputError becomes its message alone and exit status 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
