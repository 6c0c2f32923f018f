"""Fonts that have the letters of a text."""

import logging
from functools import cache, lru_cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from fontTools.ttLib import TTFont
from matplotlib.font_manager import findSystemFonts
from PIL import ImageFont

logger = logging.getLogger("libai." + __name__)


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which needs no file, or for other letters one of the machine's.

    Args:
        size: pixels.
    Where no font has a letter a box is drawn in its place, which is logged once.
    """
    wanted = {ord(letter) for letter in text if letter.isprintable()}
    if wanted <= _letters(None):
        return _opened(None, size)
    having = next((path for path in _font_files() if wanted <= _letters(path)), None)
    if having is None:
        _tell_missing()
    return _opened(having, size)


@lru_cache
def _opened(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


@cache
def _font_files() -> list[str]:
    """Those of the machine, and those of the package mplfonts, where it is installed."""
    package = find_spec("mplfonts")
    folders = [Path(it) / "fonts" for it in package.submodule_search_locations] if package else []
    return sorted([*findSystemFonts(), *findSystemFonts(folders or [""])])


@cache
def _letters(path: str | None) -> frozenset[int]:
    """The code points that a font file, or Pillow's own font, has a picture of."""
    try:
        source = path or BytesIO(ImageFont.load_default(16).font_bytes)
        found = frozenset(TTFont(source, fontNumber=0, lazy=True)["cmap"].getBestCmap() or ())
        _opened(path, 16)
        return found
    except Exception:  # of a damaged file both may raise anything; there are other fonts
        return frozenset()


@cache
def _tell_missing() -> None:
    logger.warning(
        "no font on this machine has all letters of the classes' names: boxes stand for them. "
        "Debian's package fonts-noto-cjk has those of Chinese, Japanese and Korean, as has "
        "pip install mplfonts"
    )
