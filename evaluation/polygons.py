"""Label maps as outlines and as run lengths, as programs for maps (GeoJSON) and annotations (COCO)
take them. Both are exact: drawn again they give the label map."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np


def feature_collection(
    label_map: np.ndarray, classes: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> dict:
    """GeoJSON (RFC 7946) of a label map: a polygon for each region of a class, with its holes.

    A region's pixels touch each other with their sides. Coordinates are pixels, x to the right and
    y down from the upper left corner of the image, along the edges of pixels. No ring crosses or
    touches itself. Properties of a polygon: class, index, color (#rrggbb) and area in pixels.

    Args:
        label_map: (H, W) class indices; what is no class, as -1, is left out.
        classes, palette: name and RGB of each class.
    """
    features = [
        {
            "type": "Feature",
            "properties": {
                "class": classes[index],
                "index": index,
                "color": "#{:02x}{:02x}{:02x}".format(*palette[index]),
                "area": area,
            },
            "geometry": {"type": "Polygon", "coordinates": rings},
        }
        for index, area, rings in _regions(label_map)
        if 0 <= index < len(classes)
    ]
    return {"type": "FeatureCollection", "features": features}


def coco_results(label_map: np.ndarray, classes: Sequence[str], image: str) -> list[dict]:
    """A label map in COCO's format of results: a run-length mask for each class that it has.

    image_id is the image's name, category_id the class index.

    Args:
        label_map, classes: see `feature_collection`.
    """
    columns = label_map.T.ravel()
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    starts, ends = np.append(0, changes), np.append(changes, columns.size)
    values = columns[starts]
    found = []
    for index in np.unique(values).tolist():
        if 0 <= index < len(classes):
            own = values == index
            bounds = np.stack([starts[own], ends[own]], axis=1).ravel()
            runs = np.diff(bounds, prepend=0, append=columns.size)
            mask = {"size": list(label_map.shape), "counts": encode_rle(runs)}
            names = {"category_id": index, "category_name": classes[index]}
            found.append({"image_id": image, **names, "segmentation": mask})
    return found


def encode_rle(runs: np.ndarray) -> str:
    """COCO's text for runs of 0 and 1 in turns; `decode_rle` of label_sources/shapes.py describes
    it, and reads it."""
    runs = runs[: len(runs) - (runs[-1] == 0)]  # an empty run at the end
    differences = runs.copy()
    differences[3:] -= runs[1:-2]
    text = bytearray()
    for value in differences.tolist():
        is_last = False
        while not is_last:
            digit, value = value & 31, value >> 5
            is_last = value == (-1 if digit & 16 else 0)
            text.append(48 + digit + (0 if is_last else 32))
    return text.decode()


def _regions(label_map: np.ndarray) -> Iterator[tuple[int, int, list]]:
    """Value, area and rings, the outer one first, of all regions of one value, by value."""
    # Pixels with what lies between neighbours: so OpenCV, which counts regions of a mask, counts
    # those of all values at once.
    height, width = label_map.shape
    linked = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    linked[::2, ::2] = 1
    linked[1::2, ::2] = label_map[1:] == label_map[:-1]
    linked[::2, 1::2] = label_map[:, 1:] == label_map[:, :-1]
    _, regions, boxes, _ = cv2.connectedComponentsWithStats(linked, connectivity=4)
    regions, boxes = regions[::2, ::2], (boxes[:, :4] + 1) // 2
    areas = np.bincount(regions.ravel())
    values = np.zeros(len(areas), np.int64)
    values[regions] = label_map
    for region in np.argsort(values[1:], kind="stable") + 1:
        left, top, width, height = boxes[region]
        box = slice(top, top + height), slice(left, left + width)
        rings = _rings(regions[box] == region, (left, top))
        yield int(values[region]), int(areas[region]), rings


def _rings(region: np.ndarray, corner: tuple[int, int]) -> list[list[list[int]]]:
    """The rings of a region, (H, W) bool, along the edges of its pixels, each closed."""
    # OpenCV's contours run through the middle of pixels. In a picture of twice the size that tells
    # one edge of a pixel from the other.
    doubled = region.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    is_hole = tree[0, :, 3] >= 0
    rings = []
    for index in np.argsort(is_hole, kind="stable"):
        points = (contours[index][::-1, 0] + 1) // 2 + corner
        points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
        rings.append([*points.tolist(), points[0].tolist()])
    return rings
