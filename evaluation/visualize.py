"""Label maps as pictures: colours, overlays with a legend, sheets of tiles. All RGB uint8."""

from collections.abc import Sequence
from itertools import product

import cv2
import numpy as np
from PIL import Image, ImageDraw

from projects.SegFormer.evaluation.fonts import font_for
from projects.SegFormer.modeling.errors import InputError, printable

Palette = Sequence[tuple[int, int, int]]  # RGB of each class

LONGEST_NAME = 120  # letters that are drawn
LEAST_SHARE = 0.001  # of the pixels, that a class needs to be in a legend
PAPER, INK = (255, 255, 255), (24, 24, 24)
HATCHED = np.array((120, 120, 120), np.uint8)  # between the stripes of a legend


def colorize(label_map: np.ndarray, palette: Palette) -> np.ndarray:
    """Colours of a label map.

    Args:
        label_map: (H,W) training ids; what is no class, like 255, becomes black.
        palette: RGB of each class.

    Returns:
        (H,W,3) uint8.
    """
    colours = np.array([*palette, (0, 0, 0)], np.uint8)
    return colours[np.where(_is_class(label_map, palette), label_map, len(palette))]


def overlay(
    image: np.ndarray,
    label_map: np.ndarray,
    classes: Sequence[str],
    palette: Palette,
    alpha: float = 0.55,
    legend: bool = True,
) -> np.ndarray:
    """Blend the colours of a label map, with a line between its classes, over its image.

    Args:
        image: (H,W,3) uint8 RGB.
        label_map: (H,W) training ids; what is no class, like 255, is hatched, but not if it is
            negative: there the image shows unchanged.
        classes, palette: name and RGB of each class.
        alpha: weight of the colours and lines, from 0 (image only) to 1 (colours only).
        legend: whether to add `legend_panel` on the right.

    Returns:
        (H,W,3) uint8; with a legend wider and, for a small image, higher: the image stays in the
        upper left corner.

    Raises:
        InputError: sizes of image and label map, or of classes and palette, that differ.
    """
    if image.shape != (*label_map.shape, 3):
        raise InputError(
            f"image of shape {image.shape} and label map of shape {label_map.shape}: expected "
            "(H, W, 3) and (H, W) of the same height and width"
        )
    if len(classes) != len(palette):
        raise InputError(f"{len(classes)} classes and {len(palette)} colours: expected as many")
    is_class = _is_class(label_map, palette)
    colours = np.where(is_class[..., None], colorize(label_map, palette), image)
    colours[_stripes(label_map.shape) & (label_map >= len(palette))] = PAPER
    colours[contours(label_map)] = PAPER
    blend = cv2.addWeighted(image, 1 - alpha, colours, alpha, 0)
    if not legend:
        return blend
    panel = legend_panel(label_map, classes, palette, len(image))
    size = max(len(blend), len(panel)), blend.shape[1] + panel.shape[1], 3
    canvas = np.full(size, PAPER, np.uint8)
    canvas[: len(blend), : blend.shape[1]] = blend
    canvas[: len(panel), blend.shape[1] :] = panel
    return canvas


def contours(label_map: np.ndarray) -> np.ndarray:
    """Where a label map (H,W) has a line between two labels: bool (H,W).

    One pixel wide in a small image, wider in one that will be looked at scaled down.
    """
    lines = np.zeros(label_map.shape, np.uint8)
    lines[:, 1:] |= label_map[:, 1:] != label_map[:, :-1]
    lines[1:] |= label_map[1:] != label_map[:-1]
    width = max(1, round(min(label_map.shape) / 500))
    return cv2.dilate(lines, np.ones((width, width), np.uint8)).astype(bool)


def unused_colour(palette: Palette) -> tuple[int, int, int]:
    """A bright RGB that is as far from those of all classes, and from white, as can be."""
    bright = [colour for colour in product(range(0, 256, 51), repeat=3) if max(colour) == 255]
    used = np.array([*palette, PAPER])
    distances = np.linalg.norm(np.array(bright)[:, None] - used, axis=-1)
    return bright[int(distances.min(1).argmax())]


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> np.ndarray:
    """Tiles in rows and columns, with a title above each column.

    Args:
        rows: of each row, its tiles (H,W,3) uint8; all tiles have one size.
        titles: one for each column.

    Returns:
        (height,width,3) uint8.

    Raises:
        InputError: no rows, rows of another length than the titles, or tiles of different sizes.
    """
    shapes = {np.shape(tile) for row in rows for tile in row}
    if len(shapes) != 1 or any(len(row) != len(titles) for row in rows):
        raise InputError(
            f"{len(rows)} rows of {sorted({len(row) for row in rows})} tiles of shapes "
            f"{sorted(shapes)}: expected {len(titles)} tiles of one size in each row"
        )
    height, width, _ = shapes.pop()
    titles = [drawable(title) for title in titles]
    size = _text_size(height)
    gap, head = size // 2, 2 * size
    pitch = gap + max(width, *(_text_width(title, size) for title in titles))
    sheet = Image.new("RGB", (gap + pitch * len(titles), head + (height + gap) * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        left = gap + pitch * column
        draw.text((left, head // 2), title, INK, font_for(title, size), anchor="lm")
        for line, row in enumerate(rows):
            sheet.paste(Image.fromarray(row[column]), (left, head + (height + gap) * line))
    return np.asarray(sheet)


def titled(tile: np.ndarray, title: str) -> np.ndarray:
    """A tile (H,W,3) with a title above it, cut to the tile's width."""
    title, size = drawable(title), _text_size(len(tile))
    while title and _text_width(title, size) > tile.shape[1]:
        title = title.removesuffix("...")[:-1]
        title += "..." if title else ""
    strip = Image.new("RGB", (tile.shape[1], round(1.5 * size)), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((0, strip.height // 2), title, INK, font_for(title, size), anchor="lm")
    return np.concatenate([np.asarray(strip), tile])


def captioned(tile: np.ndarray, text: str) -> np.ndarray:
    """A tile (H,W,3) with a text in its upper left corner."""
    picture, size = Image.fromarray(tile), _text_size(len(tile))
    outline = {"stroke_width": size // 8, "stroke_fill": (0, 0, 0)}
    place = size // 3, size
    text = drawable(text)
    ImageDraw.Draw(picture).text(place, text, PAPER, font_for(text, size), "lm", **outline)
    return np.asarray(picture)


def drawable(text: str) -> str:
    """One line of letters, not endless; what is no letter, like a line end or half of a surrogate
    pair, as Python writes it."""
    line = printable(text[: LONGEST_NAME + 1])
    return line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 3] + "..."


def legend_panel(
    label_map: np.ndarray, classes: Sequence[str], palette: Palette, height: int
) -> np.ndarray:
    """Colour, name and share of all pixels of each class that is present, the largest first.

    One of less than a thousandth is left out, unless all are. What is no class comes last, as
    "ignored" with a hatched field, unless it is negative.

    Args:
        label_map: training ids, of any shape.
        classes, palette: name and RGB of each class.
        height: of the image that it stands beside: it has as many columns as that asks for, and 8
            lines at least.

    Returns:
        (height,width,3) uint8.
    """
    counts = np.bincount(label_map[_is_class(label_map, palette)], minlength=len(classes))
    shares = counts / label_map.size
    least = LEAST_SHARE if shares.max(initial=0) >= LEAST_SHARE else 0
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i] and shares[i] >= least]
    entries = [(drawable(classes[index]), shares[index], palette[index]) for index in order]
    if (ignored := (label_map >= len(palette)).mean()) >= LEAST_SHARE:
        entries.append(("ignored", ignored, None))
    texts = [f"{name}  {share:.1%}" for name, share, _ in entries]
    size = _text_size(height)
    step = round(1.6 * size)
    lines = max(8, (height - size) // step)
    pitch = 3 * size + max((_text_width(text, size) for text in texts), default=0)
    columns = -(-len(texts) // lines)
    panel = Image.new("RGB", (size + pitch * columns, size + step * min(lines, len(texts))), PAPER)
    draw = ImageDraw.Draw(panel)
    hatched = Image.fromarray(np.where(_stripes((size, size))[..., None], np.uint8(255), HATCHED))
    for place, ((_, _, colour), text) in enumerate(zip(entries, texts)):
        left, top = size + pitch * (place // lines), size // 2 + step * (place % lines)
        swatch = (left, top + (step - size) // 2, left + size, top + (step + size) // 2)
        if colour is None:
            panel.paste(hatched, swatch[:2])
        draw.rectangle(swatch, colour and tuple(colour), INK)
        middle = left + 1.5 * size, top + step / 2
        draw.text(middle, text, INK, font_for(text, size), anchor="lm")
    return np.asarray(panel)


def _stripes(shape: tuple[int, int]) -> np.ndarray:
    """/ / / over (H,W): bool, a fifth of the pixels."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows + columns) % 10 < 2


def _is_class(label_map: np.ndarray, palette: Palette) -> np.ndarray:
    return (label_map >= 0) & (label_map < len(palette))


def _text_size(height: int) -> int:
    """Pixels of text that can be read beside an image of that height."""
    return int(np.clip(height / 24, 12, 32))


def _text_width(text: str, size: int) -> int:
    return int(np.ceil(font_for(text, size).getlength(text)))
