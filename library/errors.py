"""Errors that a user can fix, as one line."""


class InputError(Exception):
    """The user's input is not usable; the message names file, line or key, value, and what was
    expected.
    """


def describe_error(error: Exception) -> str:
    """Another library's error as one line: its type, since a KeyError's message is only the key,
    and text.
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
