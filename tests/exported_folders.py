"""The data set of labelled_folders.py as programs export it and as people lay it out.

Each function writes a folder and gives what its label maps are, by the name of an image, and its
classes.
"""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from conftest import CLASSES, COLOURS
from labelled_folders import NAMES, SIZE, box, runs_of, save, save_images, truth
from projects.SegFormer.dataset.description import Description

HEIGHT, WIDTH = SIZE
WITH_BACKGROUND = ["background", *CLASSES]


def masks_of(name: str):
    """(class, mask) of each class but the last, which is background then."""
    return [(what, truth(name) == value) for value, what in enumerate(CLASSES[:2])]


def covered(name: str) -> np.ndarray:
    """What `masks_of` makes."""
    return np.array([1, 2, 0], np.uint8)[truth(name)]


def palette_png(path: Path, label: np.ndarray, colours: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(label, "P")
    if label.max() == 255:  # else it ends where its colours do
        colours = np.concatenate([colours, np.full((256 - len(colours), 3), 250)])
    picture.putpalette(colours.astype(np.uint8).tobytes())
    picture.save(path)


def voc(root: Path):
    """Palette PNGs; the objects beside them are no labels, and the lists give the split."""
    save_images(root / "JPEGImages")
    for name in NAMES:
        label = truth(name)
        label[0] = 255 if name != NAMES[0] else 2
        palette_png(root / "SegmentationClass" / f"{name}.png", label, COLOURS)
        palette_png(root / "SegmentationObject" / f"{name}.png", label // 2, COLOURS)
    (root / "class_names.txt").write_text("__ignore__\n_background_\nfield\nsky\n")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("\n".join(NAMES[:2]))
    (lists / "train.txt").write_text("\n".join(NAMES[2:]))

    def wanted(name):
        label = truth(name)
        label[0] = 255 if name != NAMES[0] else 2
        return label

    return wanted, ["background", "field", "sky"]


def class_folders(root: Path):
    save_images(root / "images")
    for name in NAMES:
        for what, mask in masks_of(name):
            save(root / "masks" / what / f"{name}.png", mask.astype(np.uint8) * 255)
    return covered, ["background", "disc", "field"]


def class_in_the_name(root: Path):
    """0 and 1; an image without an object has an empty mask, or none."""
    save_images(root / "images")
    for name in NAMES:
        for what, mask in masks_of(name):
            save(root / "masks" / f"{name}_{what}.png", mask.astype(np.uint8))
    return covered, ["background", "disc", "field"]


def folder_of_each_image(root: Path):
    save_images(root / "images")
    for name in NAMES:
        for what, mask in masks_of(name):
            save(root / "masks" / name / f"{what}.png", mask.astype(np.uint8) * 255)
    return covered, ["background", "disc", "field"]


def brushes(root: Path):
    """Label Studio's PNGs, by the number of the task; two regions of a class are one."""
    save_images(root / "images")
    for name in NAMES:
        for what, mask in masks_of(name):
            for part, rows in enumerate((slice(0, 24), slice(24, None))):
                picture = np.zeros(SIZE, np.uint8)
                picture[rows] = mask[rows] * np.uint8(255)
                file = f"task-{int(name)}-annotation-9{name}-by-1-tag-{what}-{part}.png"
                save(root / "export" / file, picture)
    for name in NAMES:
        (root / "images" / f"{name}.jpg").rename(root / "images" / f"{int(name)}.jpg")
    return (lambda name: covered(f"{int(name):02d}")), ["background", "disc", "field"]


def panoptic(root: Path):
    """Numbers of segments over three bytes; what is no segment counts nowhere."""
    save_images(root / "val2017", ".jpg")
    images, annotations = [], []
    numbers = np.array([7, 256 * 3 + 1, 65536 * 2 + 9, 0])
    for index, name in enumerate(NAMES):
        label = truth(name)
        label[0] = 3
        code = numbers[label]
        colour = np.stack([code % 256, code // 256 % 256, code // 65536], -1).astype(np.uint8)
        save(root / "annotations" / "panoptic" / f"{name}.png", colour)
        images.append({"id": index + 50, "file_name": f"{name}.jpg"})
        segments = [
            {"id": int(number), "category_id": 20 - 6 * value, "iscrowd": 0}
            for value, number in enumerate(numbers[:3])
        ]
        annotations.append(
            {"image_id": index + 50, "file_name": f"{name}.png", "segments_info": segments}
        )
    categories = [{"id": 20 - 6 * value, "name": what} for value, what in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "panoptic.json").write_text(json.dumps(content))

    def wanted(name):
        label = np.array([2, 1, 0], np.uint8)[truth(name)]
        label[0] = 255
        return label

    return wanted, ["sky", "field", "disc"]


def rle_pack(values: np.ndarray) -> list[int]:
    """Bytes as rle-pack writes them: runs of one value, and others that are written out."""
    lengths = (1, 4, 9, 16)
    bits = f"{values.size:032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in lengths)
    ends = [*(np.flatnonzero(np.diff(values.astype(int))) + 1), values.size]
    start = 0
    for number, end in enumerate(ends):
        size = end - start
        which = next(index for index, length in enumerate(lengths) if size <= 2**length)
        is_one = number % 2 or size > 9
        bits += f"{int(is_one)}{which:02b}{size - 1:0{lengths[which]}b}"
        bits += f"{values[start]:08b}" * (1 if is_one else size)
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


def label_studio(root: Path):
    """A brush, and a rectangle in percents; files have the name that an upload gives them."""
    save_images(root / "images")
    tasks = []
    for index, name in enumerate(NAMES):
        left, top, right, bottom = box(truth(name))
        right, bottom = right + 1, bottom + 1
        brush = np.zeros((*SIZE, 4), np.uint8)
        brush[20:] = 255
        size = {"original_width": WIDTH, "original_height": HEIGHT}
        disc = {"x": 100 * left / WIDTH, "y": 100 * top / HEIGHT, "rectanglelabels": ["disc"]}
        disc |= {"width": 100 * (right - left) / WIDTH, "height": 100 * (bottom - top) / HEIGHT}
        field = {"format": "rle", "rle": rle_pack(brush.ravel()), "brushlabels": ["field"]}
        results = [
            {"type": "brushlabels", "value": field, **size},
            {"type": "rectanglelabels", "value": disc, **size},
            {"type": "choices", "value": {"choices": ["good"]}, **size},
        ]
        image = {"image": f"/data/upload/1/0a1b2c3d-{name}.jpg"}
        tasks.append({"id": index, "data": image, "annotations": [{"id": 1, "result": results}]})
    (root / "project-1.json").write_text(json.dumps(tasks))
    return covered, ["background", "disc", "field"]


def label_studio_in_short(root: Path):
    """JSON-MIN has the results beside the image."""
    label_studio(root)
    tasks = json.loads((root / "project-1.json").read_text())
    short = [
        {
            "image": task["data"]["image"],
            "tag": [it["value"] | it for it in task["annotations"][0]["result"]],
        }
        for task in tasks
    ]
    for task in short:
        for it in task["tag"]:
            del it["value"]
    (root / "project-1.json").write_text(json.dumps(short))
    return covered, ["background", "disc", "field"]


def cvat(root: Path):
    """A mask within its box, a polygon above it by its z_order, and the labels' own order."""
    save_images(root / "images")
    lines = ["<annotations><meta><task><labels>"]
    lines += [f"<label><name>{what}</name></label>" for what in ("field", "disc")]
    lines += ["</labels></task></meta>"]
    for index, name in enumerate(NAMES):
        left, top, right, bottom = box(truth(name))
        right, bottom = right + 1, bottom + 1
        corners = f"{left},{top};{right},{top};{right},{bottom};{left},{bottom}"
        runs = runs_of(np.ones((WIDTH, HEIGHT - 20), bool))  # row by row, of all
        lines += [
            f'<image id="{index}" name="{name}.jpg" width="{WIDTH}" height="{HEIGHT}">',
            f'<polygon label="disc" points="{corners}" z_order="1"/>',
            f'<mask label="field" rle="{", ".join(map(str, runs))}" left="0" top="20" '
            f'width="{WIDTH}" height="{HEIGHT - 20}" z_order="0"/>',
            "</image>",
        ]
    (root / "annotations.xml").write_text("\n".join([*lines, "</annotations>"]))
    return (lambda name: np.array([2, 1, 0], np.uint8)[truth(name)]), [
        "background",
        "field",
        "disc",
    ]


def tiff_of_16_bits(root: Path):
    save_images(root / "images", ".JPEG")
    for name in NAMES:
        save(root / "labels" / f"{name}.TIF", np.array([300, 5000, 1], np.uint16)[truth(name)])
    return (lambda name: np.array([1, 2, 0], np.uint8)[truth(name)]), [
        "class 1",
        "class 300",
        "class 5000",
    ]


def grey_in_three_channels(root: Path):
    """Indices; the image of the same stem beside them is no mask."""
    save_images(root)
    for name in NAMES:
        save(root / f"{name}.png", truth(name)[..., None].repeat(3, axis=2))
    (root / "obj.names").write_text("0 disc\n1 field\n2 sky\n")
    return truth, list(CLASSES)


def photographed_masks(root: Path):
    """JPEG has values between; so has the grey of a mask of one class."""
    save_images(root / "images")
    for name in NAMES:
        mask = (truth(name) == 0).astype(np.uint8) * 255
        save(root / "masks" / "cell" / f"{name}.jpg", cv2.GaussianBlur(mask, (3, 3), 0))
    return (lambda name: (truth(name) == 0).astype(np.uint8)), ["background", "cell"]


def palettes_of_their_own(root: Path):
    """Where each file numbers its colours otherwise, colours count."""
    save_images(root / "images")
    for index, name in enumerate(NAMES):
        order = np.roll(np.arange(3), index)
        label = np.argsort(order).astype(np.uint8)[truth(name)]
        palette_png(root / "masks" / f"{name}.png", label, COLOURS[order])
    (root / "class_dict.csv").write_text(
        "name,r,g,b\n" + "\n".join(f"{n},{','.join(map(str, c))}" for n, c in zip(CLASSES, COLOURS))
    )
    return truth, list(CLASSES)


def own_layout(root: Path):
    """What this tool has written, with the description of another place."""
    for name in NAMES:
        part = "val" if name in NAMES[:2] else "train"
        save(root / "images" / part / f"{name}.jpg", COLOURS[truth(name)])
        save(root / "annotations" / part / f"{name}.png", truth(name))
    save(root / "samples.png", COLOURS[truth("00")])
    images = {"train": 4, "val": 2}
    Description(list(CLASSES), COLOURS.tolist(), list(SIZE), images).write(root)
    return truth, list(CLASSES)


def trainannot(root: Path):
    """CamVid as SegNet has it: a list of pairs in each split's file."""
    for name in NAMES:
        part = "val" if name in NAMES[:2] else "train"
        save(root / part / f"{name}.jpg", COLOURS[truth(name)])
        save(root / f"{part}annot" / f"{name}.png", truth(name))
        with open(root / f"{part}.txt", "a") as file:
            file.write(f"/SegNet/x/{part}/{name}.jpg /SegNet/x/{part}annot/{name}.png\n")
    return truth, ["class 0", "class 1", "class 2"]
