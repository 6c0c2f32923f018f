"""The one walk through folders of images."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

# What archives, file managers and network disks leave; hidden names are such, too.
JUNK = ("__MACOSX", "Thumbs.db", "@eaDir", "$RECYCLE.BIN")


def walk(folder: str | Path, suffixes: Sequence[str]) -> Iterator[str]:
    """Files with one of the suffixes, in upper or lower case, at any depth, in order.

    Hidden files and folders, such as .ipynb_checkpoints, and JUNK are left out. Links are followed,
    but no folder is walked through twice, so that a link to a folder above it has an end.
    """
    seen, suffixes = set(), tuple(suffix.lower() for suffix in suffixes)
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        # Folders before links to them: the plain path is the one that counts.
        folders[:] = sorted(
            filter(is_visible, folders),
            key=lambda it: (os.path.islink(os.path.join(parent, it)), it),
        )
        for name in sorted(filter(is_visible, names)):
            if name.lower().endswith(suffixes):
                yield os.path.join(parent, name)


def named_files(folder: str | Path, suffixes: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The files of `walk` and their names: relative paths without the suffix, in Unicode's form
    NFC, for what one system writes as a letter another writes as a letter and its accent.
    """
    for path in map(Path, walk(folder, suffixes)):
        name = path.relative_to(folder).as_posix()
        suffix = next(it for it in suffixes if name.lower().endswith(it.lower()))
        yield unicodedata.normalize("NFC", name[: -len(suffix)]), path


def is_visible(name: str) -> bool:
    """Whether a file or folder of this name is meant to be data."""
    return not name.startswith(".") and name not in JUNK
