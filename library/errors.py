"""What a user gave, or the machine lacks, said in one line."""


class InputError(Exception):
    """What a user gave is not usable; the message names file, line or key, value, and what was
    expected.
    """


def describe_error(error: Exception) -> str:
    """Another library's error in one line: its kind, since a KeyError's message is the key alone,
    and what it says.
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
