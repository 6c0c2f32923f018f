"""The one exception for wrong input."""


class InputError(ValueError):
    """What a person gave (a file, a config value, a command line) cannot be used.

    The message is one line: what was found, where, what was expected, what to do. The tools print
    it without a stack trace.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: object) -> str:
    """A text that can be printed and drawn in one line: what cannot, as \\n or \\udcff.

    The latter is what Python makes of the bytes of a file name that are not UTF-8.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )
