"""The one exception for wrong input."""


class InputError(ValueError):
    """What a person gave (a file, a config value, a command line) cannot be used.

    The message is one line: what was found, where, what was expected, what to do. The tools print
    it without a stack trace.
    """
