"""Label maps as pictures: colours, overlays with a legend, sheets of tiles. All RGB uint8."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from projects.SegFormer.modeling.errors import InputError, printable

Palette = Sequence[tuple[int, int, int]]  # RGB of each class

LONGEST_NAME = 120  # letters that are drawn
PAPER, INK = (255, 255, 255), (24, 24, 24)


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
    """Blend the colours of a label map over its image.

    Args:
        image: (H,W,3) uint8 RGB.
        label_map: (H,W) training ids; where it has no class, like 255, the image shows unchanged.
        classes, palette: name and RGB of each class.
        alpha: weight of the colours, from 0 (image only) to 1 (colours only).
        legend: whether to add a panel on the right with colour, name and share of all pixels of
            each class that is present, the largest first.

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
    weight = np.float32(alpha) * _is_class(label_map, palette)[..., None]
    blend = np.rint(image * (1 - weight) + colorize(label_map, palette) * weight).astype(np.uint8)
    if not legend:
        return blend
    panel = legend_panel(label_map, classes, palette, len(image), _text_size(len(image)))
    size = max(len(blend), len(panel)), blend.shape[1] + panel.shape[1], 3
    canvas = np.full(size, PAPER, np.uint8)
    canvas[: len(blend), : blend.shape[1]] = blend
    canvas[: len(panel), blend.shape[1] :] = panel
    return canvas


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
        draw.text((left, head // 2), title, INK, _font(size), anchor="lm")
        for line, row in enumerate(rows):
            sheet.paste(Image.fromarray(row[column]), (left, head + (height + gap) * line))
    return np.asarray(sheet)


def titled(tile: np.ndarray, title: str, size: int) -> np.ndarray:
    """A tile (H,W,3) with a title of `size` pixels above it, cut to the tile's width."""
    title = drawable(title)
    while title and _text_width(title, size) > tile.shape[1]:
        title = title.removesuffix("...")[:-1]
        title += "..." if title else ""
    strip = Image.new("RGB", (tile.shape[1], round(1.5 * size)), PAPER)
    ImageDraw.Draw(strip).text((0, strip.height // 2), title, INK, _font(size), anchor="lm")
    return np.concatenate([np.asarray(strip), tile])


def captioned(tile: np.ndarray, text: str, size: int) -> np.ndarray:
    """A tile (H,W,3) with a text of `size` pixels in its upper left corner."""
    picture = Image.fromarray(tile)
    outline = {"stroke_width": size // 8, "stroke_fill": (0, 0, 0)}
    place = size // 3, size
    text = drawable(text)
    ImageDraw.Draw(picture).text(place, text, (255, 255, 255), _font(size), "lm", **outline)
    return np.asarray(picture)


def drawable(text: str) -> str:
    """One line of letters, not endless; what is no letter, like a line end or half of a surrogate
    pair, as Python writes it."""
    line = printable(text[: LONGEST_NAME + 1])
    return line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 3] + "..."


def hatch(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image (H,W,3) with white stripes, / / /, on the pixels of a mask (H,W)."""
    rows, columns = np.indices(mask.shape)
    return np.where((mask & ((rows + columns) % 10 < 2))[..., None], np.uint8(255), image)


def legend_panel(
    label_map: np.ndarray, classes: Sequence[str], palette: Palette, height: int, size: int
) -> np.ndarray:
    """Colour, name and share of all pixels of each class that is present, the largest first.

    Args:
        label_map: training ids, of any shape.
        classes, palette: name and RGB of each class.
        height: of the image that it stands beside: it has as many columns as that asks for, and 8
            lines at least.
        size: pixels of the text.

    Returns:
        (height,width,3) uint8.
    """
    counts = np.bincount(label_map[_is_class(label_map, palette)], minlength=len(classes))
    order = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    shares = 100 * counts / label_map.size
    texts = [f"{drawable(classes[index])}  {shares[index]:.1f}%" for index in order]
    step = round(1.6 * size)
    lines = max(8, (height - size) // step)
    pitch = 3 * size + max((_text_width(text, size) for text in texts), default=0)
    columns = -(-len(texts) // lines)
    panel = Image.new("RGB", (size + pitch * columns, size + step * min(lines, len(texts))), PAPER)
    draw = ImageDraw.Draw(panel)
    for place, (index, text) in enumerate(zip(order, texts, strict=True)):
        left, top = size + pitch * (place // lines), size // 2 + step * (place % lines)
        swatch = (left, top + (step - size) // 2, left + size, top + (step + size) // 2)
        draw.rectangle(swatch, tuple(palette[index]), INK)
        draw.text((left + 1.5 * size, top + step / 2), text, INK, _font(size), anchor="lm")
    return np.asarray(panel)


def _is_class(label_map: np.ndarray, palette: Palette) -> np.ndarray:
    return (label_map >= 0) & (label_map < len(palette))


def _text_size(height: int) -> int:
    """Pixels of text that can be read beside an image of that height."""
    return int(np.clip(height / 24, 12, 32))


def _text_width(text: str, size: int) -> int:
    return int(np.ceil(_font(size).getlength(text)))


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font: it needs no file, and draws a box for a letter that it does not have."""
    return ImageFont.load_default(size)
