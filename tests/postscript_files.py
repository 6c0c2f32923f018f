"""A PostScript file that is called an image, and a `gs` that tells on whoever starts it."""

import os
from pathlib import Path

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


def fake_ghostscript(folder: Path) -> tuple[str, Path]:
    """A PATH on which `gs` is a program that leaves a marker, and the marker."""
    marker, program = folder / "gs was here", folder / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}", marker
