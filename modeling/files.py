"""Files as every part of the project reads and writes them: within bounds, whole or not at all."""

import json
import math
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from projects.SegFormer.modeling.bounds import JSON_BYTES, NESTING
from projects.SegFormer.modeling.errors import InputError


def read_bytes(path: str | Path, at_most: int) -> bytes:
    """What a regular file holds.

    Raises InputError for a file that is missing, may not be read, is larger than `at_most` bytes,
    or is none: a pipe would block, a device has no end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path} is no regular file: expected a file with data in it")
            if status.st_size > at_most:
                raise InputError(
                    f"{path} has {status.st_size:,} bytes: files of its kind are read up to "
                    f"{at_most:,}"
                )
            return file.read(min(status.st_size, at_most) + 1)[:at_most]
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


def read_json(path: str | Path, *names: str, remedy: str = "download it again") -> dict:
    """The JSON object in a file.

    Raises InputError, which ends with `remedy`, when it is not one that has `names`.
    """
    content = read_json_value(path, remedy=remedy)
    missing = [name for name in names if not isinstance(content, dict) or name not in content]
    if missing or not isinstance(content, dict):
        raise InputError(f"{path} has no {', '.join(missing) or 'fields'}: {remedy}")
    return content


def read_json_value(path: str | Path, at_most: int = JSON_BYTES, remedy: str = "download it again"):
    """What a JSON file of `at_most` bytes holds, an object or other.

    Args:
        remedy: what to do about a damaged one, for the message.
    Raises InputError when it holds no JSON, or is larger.
    """
    try:
        content = json.loads(read_bytes(path, at_most))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({reason(error)}): {remedy}") from error
    try:
        check_nesting(content, at_most)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return content


def check_nesting(value, at_most: int) -> None:
    """Raises InputError for more than `at_most` values in `value`, or some too deep in it.

    Whoever walks through it is safe then: a list that holds another twice, which holds another
    twice, is short in a file and long to walk through.
    """
    containers = (dict, list, tuple, set, frozenset)
    level, count = [value] if isinstance(value, containers) else [], 0
    for _ in range(NESTING):
        below = []
        for container in level:
            count += len(container)
            if count > at_most:
                raise InputError("its values hold each other too often")
            parts = container.values() if isinstance(container, dict) else container
            below += [part for part in parts if isinstance(part, containers)]
        if not below:
            return
        level = below
    raise InputError(f"its values are nested more than {NESTING} deep")


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file: whoever reads `path` finds what was there before, or all of `data`.

    The name may be any bytes. Raises InputError when the disk does not take it.
    """
    path = Path(path)
    partial = None
    try:
        descriptor, partial = tempfile.mkstemp(prefix=".partial-", dir=path.parent)
        with open(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from error
    finally:
        if partial:
            with suppress(OSError):
                os.unlink(partial)


def write_json(path: str | Path, content) -> None:
    """Write `content` as JSON, whole or not at all. NaN and infinity, which JSON lacks, are null.

    Raises InputError when the disk does not take it.
    """
    text = json.dumps(finite(content), indent=2, ensure_ascii=False)
    write_whole(path, text.encode("utf-8", "backslashreplace") + b"\n")


def reason(error: BaseException) -> str:
    """What went wrong, in one line without the file's name."""
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().split("\n")[0] or type(error).__name__


def finite(value):
    """`value`, of dicts and lists, with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
