"""What a user gave, or the machine lacks, said in one line."""


class InputError(Exception):
    """What a user gave is not usable; the message names file, line or key, value, and what was
    expected.
    """
