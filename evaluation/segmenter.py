"""A trained model in one's own program.

from projects.SegFormer.evaluation.segmenter import Segmenter

segmenter = Segmenter("output/segformer_camvid")
result = segmenter("photo.jpg")
result.save("predictions")
"""

import projects.SegFormer.engine.process  # noqa: F401

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from numbers import Real
from pathlib import Path

import numpy as np
from tqdm import tqdm

from projects.SegFormer.dataset.image_files import as_rgb
from projects.SegFormer.evaluation.inference import (
    Views,
    confidence_of,
    labels_of,
    probabilities_of,
)
from projects.SegFormer.evaluation.picture_inputs import (
    Picture,
    as_array,
    in_batches,
    is_one,
    name_of,
)
from projects.SegFormer.evaluation.pictures import write_png
from projects.SegFormer.evaluation.polygons import coco_results, feature_collection
from projects.SegFormer.evaluation.prediction import prediction_of
from projects.SegFormer.evaluation.result_files import make_folder
from projects.SegFormer.evaluation.visualize import colorize, overlay
from projects.SegFormer.modeling.errors import InputError, printable
from projects.SegFormer.modeling.files import write_whole

RESULTS = ("labels", "colors", "overlay")  # what of a result is saved
KINDS = (*RESULTS, "probabilities", "polygons")  # what can be
OPACITY = 0.55


class Segmenter:
    """A segmentation model with its classes, colours, normalisation and way of inference.

    Args:
        weights: output folder of a training or a checkpoint in it, folder of Hugging Face or of
            tools/convert_weights.py, a .onnx file of tools/export.py, or weights in any other
            format with the `config` that they belong to.
        config: file of the config that counts; None for what lies beside the weights.
        overrides: of the config, as ["inference.flip=True"].
        engine: "oneflow" or "onnx"; None for the one that takes the weights.
    Attributes:
        classes: their names, by index.
        palette: RGB of each class, from 0 to 255.
        channels: of the images.
    Raises InputError: no such weights, weights of another model or classes than the config's, or
        nothing beside them that says how they are used.
    """

    def __init__(
        self,
        weights: str | os.PathLike,
        config: str | None = None,
        overrides: Sequence[str] = (),
        engine: str | None = None,
    ):
        self.prediction = prediction_of(config, os.fspath(weights), list(overrides), engine)
        self.classes: list[str] = list(self.prediction.classes)
        self.palette: list[tuple[int, int, int]] = list(self.prediction.palette)
        self.channels: int = self.prediction.channels
        self._is_told = False  # that images are far too large

    def __call__(
        self, images: Picture | Iterable[Picture]
    ) -> "Segmentation | Iterator[Segmentation]":
        """The segmentation of an image; of several, one after the other as they are asked for.

        Args:
            images: a path, an array (H, W, channels) of uint8 in RGB order, a picture of Pillow's
                as it stands, or a list or generator of those. Neighbours of one size go through
                the network together, so up to BATCH of picture_inputs are read ahead.
        Raises InputError for what is no image, or has other channels.
        """
        if is_one(images):
            return next(self._segmented([images]))
        return self._segmented(images)

    def _segmented(self, images: Iterable[Picture]) -> Iterator["Segmentation"]:
        read = ((as_array(image, self.channels), image) for image in images)
        for batch in in_batches(read):
            inputs = [self.prediction.network_input(image) for image, _ in batch]
            self._tell_size(inputs[0], batch[0][1])
            views = self.prediction.views(np.concatenate(inputs), batch[0][0].shape[:2])
            for index, (image, source) in enumerate(batch):
                known = self.classes, self.palette, name_of(source)
                yield Segmentation(image, _of_one(views, index), *known)

    def _tell_size(self, network_input: np.ndarray, source: Picture) -> None:
        """Once, and before it takes long: that an image is far larger than those of training."""
        if self._is_told or not (text := self.prediction.too_large(network_input)):
            return
        self._is_told = True
        named = printable(source) if isinstance(source, (str, os.PathLike)) else "an image"
        tqdm.write(f"note: {named} {text}", file=sys.stderr)


class Segmentation:
    """What a model sees in an image.

    Attributes:
        image: uint8 (H, W, channels).
        labels: the class index of each pixel: (H, W), uint8, or uint16 for more than 255 classes.
        classes, palette: name and RGB of each class.
        name: of the image's file, without its suffix; "image" where it has none.

    Where `classes` are an argument they are the names of those to be drawn, in upper or lower case;
    None for all. InputError names those that come nearest to a name that no class has.
    """

    def __init__(
        self, image: np.ndarray, views: Views, classes: list[str], palette: list, name: str
    ):
        self.image, self.classes, self.palette, self.name = image, classes, palette, name
        self._views, self._size = views, image.shape[:2]
        dtype = np.uint8 if len(classes) <= 255 else np.uint16
        self.labels = labels_of(views, self._size)[0].astype(dtype)

    @property
    def probabilities(self) -> np.ndarray:
        """Of each class at each pixel: float32 (H, W, classes), which sum up to 1.

        Computed when it is asked for: 150 classes of a photo of 12 megapixels are 7 GB.
        """
        return probabilities_of(self._views, self._size)[0]

    @property
    def confidence(self) -> np.ndarray:
        """The probability of each pixel's class: float32 (H, W)."""
        return confidence_of(self._views, self._size)[0]

    def overlay(
        self,
        opacity: float = OPACITY,
        legend: bool = True,
        classes: Sequence[str] | None = None,
    ) -> np.ndarray:
        """The image under the classes' colours: uint8 (H, W, 3) in RGB order; with a legend wider.

        Args:
            opacity: of the colours, from 0 to 1.
        Raises InputError for another opacity.
        """
        image, opacity = as_rgb(self.image), checked_opacity(opacity)
        return overlay(image, self._drawn(classes), self.classes, self.palette, opacity, legend)

    def polygons(self, classes: Sequence[str] | None = None) -> dict:
        """Each region of a class as GeoJSON, in pixels: see `feature_collection`."""
        return feature_collection(self._drawn(classes), self.classes, self.palette)

    def picture(
        self,
        kind: str,
        opacity: float = OPACITY,
        classes: Sequence[str] | None = None,
        legend: bool = True,
    ) -> np.ndarray:
        """What `save` writes of a kind but of "polygons", of 8 or 16 bits: (H, W) or (H, W, 3)."""
        if kind == "labels":
            return self.labels
        if kind == "probabilities":
            return np.rint(self.confidence * 65535).astype(np.uint16)
        if kind == "colors":
            return colorize(self._drawn(classes), self.palette)
        return self.overlay(opacity, legend, classes)

    def save(
        self,
        folder: str | os.PathLike,
        name: str | None = None,
        kinds: Sequence[str] = RESULTS,
        opacity: float = OPACITY,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Write files of these kinds:

            labels: NAME_labels.png, the class indices, of 16 bits for more than 255 classes
            colors: NAME_colors.png, black where no class is drawn
            overlay: NAME_overlay.png
            probabilities: NAME_probabilities.png, those of each pixel's class, 65535 for 1
            polygons: NAME.geojson, see `polygons`, and NAME_rle.json, see `coco_results`

        Args:
            folder: is made if it is not there.
            name: in the place of the image's.
            opacity, classes: see `overlay`; labels and probabilities are of all classes.
        Raises InputError where that cannot be written, and for an unknown kind.
        """
        kinds = checked_kinds(kinds)
        make_folder(folder)
        path = Path(folder) / (name or self.name)
        for kind in kinds:
            if kind != "polygons":
                write_png(f"{path}_{kind}.png", self.picture(kind, opacity, classes))
                continue
            masks = coco_results(self._drawn(classes), self.classes, path.name)
            for suffix, content in ((".geojson", self.polygons(classes)), ("_rle.json", masks)):
                write_whole(f"{path}{suffix}", json.dumps(content).encode())

    def _drawn(self, classes: Sequence[str] | None) -> np.ndarray:
        """The labels of these classes; elsewhere -1, which is no class."""
        if classes is None:
            return self.labels
        indices = class_indices(classes, self.classes)
        return np.where(np.isin(self.labels, indices), self.labels.astype(np.int32), -1)


def checked_kinds(kinds: Sequence[str]) -> list[str]:
    """Each kind of result once. Raises InputError for an unknown one."""
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"a result {wrong[0]!r}: expected some of {', '.join(KINDS)}")
    return [kind for kind in KINDS if kind in kinds]


def checked_opacity(opacity: float) -> float:
    """Raises InputError for what is no number from 0 to 1."""
    if not isinstance(opacity, Real) or not 0 <= opacity <= 1:
        raise InputError(f"opacity={opacity!r}: expected a number from 0 to 1")
    return opacity


def class_indices(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The indices of classes of these names. Raises InputError: see `Segmentation`."""
    names = [names] if isinstance(names, str) else names
    folded = [name.strip().casefold() for name in classes]
    for name in names:
        if name.strip().casefold() not in folded:
            near = get_close_matches(name.strip().casefold(), folded, 3, cutoff=0)
            raise InputError(
                f"no class is called {name!r}: expected names of the model's {len(classes)} "
                f"classes; the nearest are {', '.join(classes[folded.index(it)] for it in near)}"
            )
    wanted = {name.strip().casefold() for name in names}
    return [index for index, name in enumerate(folded) if name in wanted]


def _of_one(views: Views, index: int) -> Views:
    """Those of one image of a batch."""
    own = slice(index, index + 1)
    return [[window._replace(logits=window.logits[own]) for window in view] for view in views]
