"""What all tools share: their --help, whose code they run, and how they end."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from projects.SegFormer.modeling.errors import InputError, printable
from projects.SegFormer.modeling.files import reason

OUT_OF_MEMORY = "out of memory: use a smaller image, batch or model"


def parser(text: str) -> argparse.ArgumentParser:
    """A parser whose --help shows `text`, a tool's docstring, with its examples as they stand."""
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call `main` with the command line and end the process with the exit status that it gives.

    What a person can mend is one line on standard error and exit status 1; Ctrl-C is 130, SIGTERM
    143.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be anything
    # OneFlow's own handler ends the process on the spot: what is half written would stay.
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # a training has handlers of its own
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        check_clone()
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = 130
    except MemoryError:
        code = _told(OUT_OF_MEMORY)
    except InputError as error:
        code = _told(str(error))
    except OSError as error:
        file = f"{printable(error.filename)}: " if error.filename else ""
        code = _told(f"{file}{reason(error)}")
    sys.exit(code)


def check_clone() -> None:
    """Raises InputError where the script that was started lies beside other code than this.

    The package is where pip's editable install found it; two clones may share an environment.
    """
    script, here = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parent.parent
    beside = script.parent.parent
    if (beside / "engine" / Path(__file__).name).is_file() and beside != here:
        raise InputError(
            f"{script} belongs to {beside}, but this Python runs the code in {here}: run bash "
            f"{beside}/tools/setup.sh, and the tool with {beside}/.venv/bin/python"
        )


def _told(message: str) -> int:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr)
    return 1
