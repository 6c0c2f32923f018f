"""Fonts against files that are made here, each with the letters of one writing."""

import logging

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from projects.SegFormer.evaluation import fonts
from projects.SegFormer.evaluation.visualize import titled


@pytest.fixture
def font_files(tmp_path, monkeypatch):
    """Fonts of the machine: one of Cyrillic, one of some Chinese letters, one that is damaged."""
    paths = []
    for name, letters in {"b": "Дорга", "c": "道路天空 1"}.items():
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for point in ((500, 0), (500, 700), (0, 700)):
            pen.lineTo(point)
        pen.closePath()
        builder = FontBuilder(1000, isTTF=True)
        builder.setupGlyphOrder([".notdef", "block"])
        builder.setupCharacterMap({ord(letter): "block" for letter in letters})
        builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "block": pen.glyph()})
        builder.setupHorizontalMetrics({".notdef": (1000, 0), "block": (1000, 0)})
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({"familyName": name, "styleName": "Regular"})
        builder.setupOS2()
        builder.setupPost()
        builder.save(tmp_path / f"{name}.ttf")
        paths.append(str(tmp_path / f"{name}.ttf"))
    (tmp_path / "a.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "_font_files", lambda: [str(tmp_path / "a.ttf"), *paths])
    fonts._tell_missing.cache_clear()
    yield paths
    fonts._tell_missing.cache_clear()


def test_a_font_that_has_the_letters(font_files, caplog):
    assert fonts.font_for("road 1", 16).getname()[0] == "Aileron"
    assert fonts.font_for("道路 1", 16).path == font_files[1]
    assert fonts.font_for("Дорга", 16).path == font_files[0]
    blocks = titled(np.zeros((24, 96, 3), np.uint8), "道路")[:-24]
    assert 0.04 < (blocks < 60).mean() < 0.08  # two letters, each all ink
    assert not caplog.records


def test_letters_of_no_font_are_told_once(font_files, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("libai"), "propagate", True)
    for size in (12, 16):
        assert fonts.font_for("道路 car", size).getname()[0] == "Aileron"
    (record,) = caplog.records
    assert "fonts-noto-cjk" in record.message


def test_a_font_that_only_one_library_opens(font_files, monkeypatch):
    opened = fonts.ImageFont.truetype

    def damaged(path, *arguments, **options):
        if path == font_files[0]:
            raise OSError("unknown file format")
        return opened(path, *arguments, **options)

    fonts._letters.cache_clear()
    fonts._opened.cache_clear()
    monkeypatch.setattr(fonts.ImageFont, "truetype", damaged)
    assert fonts.font_for("Дорга", 16).getname()[0] == "Aileron"
    assert fonts.font_for("道路 1", 16).path == font_files[1]
