"""The one walk through folders of images."""

import os
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


def is_visible(name: str) -> bool:
    """Whether a file or folder of this name is meant to be data."""
    return not name.startswith(".") and name not in JUNK
