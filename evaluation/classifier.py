"""A trained classifier in one's own program.

from projects.SegFormer.evaluation.classifier import Classifier

classifier = Classifier("output/segformer_imgnet1k_pretrain")
for name, probability in classifier("photo.jpg").top(5):
    print(f"{probability:.1%} {name}")
"""

import projects.SegFormer.engine.process  # noqa: F401

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import oneflow as flow
from libai.config import instantiate
from libai.utils import distributed as dist
from omegaconf import DictConfig

from projects.SegFormer.dataset.transforms import Compose, Normalize
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.libai_mends import mend_libai
from projects.SegFormer.evaluation.picture_inputs import (
    Picture,
    as_array,
    in_batches,
    is_one,
    name_of,
)
from projects.SegFormer.evaluation.prediction import (
    PLAIN_CONFIG,
    Found,
    architecture_in,
    find_all,
    find_weights,
    mean_and_std_beside,
    told_by_kind,
    what_lies_beside,
)
from projects.SegFormer.evaluation.segmenter import Segmenter
from projects.SegFormer.model_utils.beside_weights import Scaled
from projects.SegFormer.model_utils.huggingface_config import ARCHITECTURES
from projects.SegFormer.model_utils.segf_loader import load_weights
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_json
from projects.SegFormer.modeling.segformer_model import SegformerForImageClassification


class Classification(NamedTuple):
    """What a model takes an image for.

    Attributes:
        probabilities: float32 (classes,), which sum up to 1.
        classes: their names, by index.
        name: of the image's file, without its suffix; "image" where it has none.
    """

    probabilities: np.ndarray
    classes: list[str]
    name: str

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes and their probabilities, the likeliest first; all where there are
        not as many. Of equal ones the lower index comes first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[index], float(self.probabilities[index])) for index in order]


class Classifier:
    """A classification model with its classes, and how images are made ready for it.

    Args:
        weights: output folder of a training or a checkpoint in it, folder of Hugging Face or of
            tools/convert_weights.py, or weights in any other format with the `config` that they
            belong to, as mit_b0.pth with configs/segformer_imgnet1k_pretrain.py.
        config: file of the config that counts; None for what lies beside the weights.
        overrides: of the config, as ["data.root=data/imagenet"].
    Attributes:
        classes: their names, by index: of a training those of its data, which its evaluation.json
            has, or else the folders of the data where they are. "LABEL_0" and so on, with a note,
            where nothing says them.
        channels: of the images.
    Raises InputError: no such weights, weights of another model than the config's, or nothing
        beside them that says how they are used.
    """

    def __init__(
        self,
        weights: str | os.PathLike,
        config: str | None = None,
        overrides: Sequence[str] = (),
    ):
        found = find_all(config, os.fspath(weights), list(overrides))
        with told_by_kind(found.weights, ARCHITECTURES[1]):
            self._load(found, list(overrides))

    def _load(self, found: Found, overrides: list[str]) -> None:
        beside = what_lies_beside(found)
        cfg = load_config(found.file or PLAIN_CONFIG, overrides)
        mend_libai()
        dist.setup_dist_util(cfg.train.dist)
        if found.file and cfg.model["_target_"] is not SegformerForImageClassification:
            raise InputError(f"{found.file} is not a config of classification")
        settings = cfg.model.cfg if found.file else {}
        self.model = load_weights(settings, found.weights, SegformerForImageClassification)
        self.channels: int = self.model.segformer.patch_embeds[0].proj.weight.shape[1]
        count = self.model.num_classes
        if found.file:
            classes = class_names(cfg, found.of_training)
            transforms = instantiate(cfg.dataloader.test[0].dataset.transforms)
        else:
            classes = beside.classes
            transforms = [Normalize(*mean_and_std_beside(beside, self.channels))]
            if beside.size:
                transforms.insert(0, Scaled(beside.size, beside.resample))
        if not classes:
            print(
                f"note: nothing names the classes of {found.weights}: they are LABEL_0 and so on",
                file=sys.stderr,
            )
        elif len(classes) != count:
            raise InputError(
                f"{found.weights} has {count} classes, what lies beside it names {len(classes)}: "
                "they do not belong together"
            )
        self.classes: list[str] = classes or [f"LABEL_{index}" for index in range(count)]
        self._transform = Compose(transforms)

    def __call__(
        self, images: Picture | Iterable[Picture]
    ) -> Classification | Iterator[Classification]:
        """The classification of an image; of several, one after the other as they are asked for.

        Args:
            images: as of `Segmenter`.
        Raises InputError for what is no image, or has other channels.
        """
        if is_one(images):
            return next(self._classified([images]))
        return self._classified(images)

    def _classified(self, images: Iterable[Picture]) -> Iterator[Classification]:
        for batch in in_batches((self._network_input(image), image) for image in images):
            inputs = flow.from_numpy(np.stack([values for values, _ in batch]))
            with flow.no_grad():
                logits = self.model(images=inputs)["prediction_scores"].numpy()
            exponentials = np.exp(logits - logits.max(1, keepdims=True))
            probabilities = exponentials / exponentials.sum(1, keepdims=True)
            for row, (_, source) in zip(probabilities, batch):
                yield Classification(row, self.classes, name_of(source))

    def _network_input(self, image: Picture) -> np.ndarray:
        """(channels, H, W) float32."""
        array = as_array(image, self.channels)
        transformed, _ = self._transform(array, None, np.random.default_rng(0))
        return np.ascontiguousarray(transformed.transpose(2, 0, 1))


def predictor_of(
    weights: str | os.PathLike,
    config: str | None = None,
    overrides: Sequence[str] = (),
    engine: str | None = None,
) -> Segmenter | Classifier:
    """The one of both that the weights are of. Arguments and errors as theirs."""
    found, _ = find_weights(os.fspath(weights))
    if architecture_in(found) == ARCHITECTURES[1]:
        if engine == "onnx":
            raise InputError(f"--engine onnx does not take {weights}: a classifier runs in oneflow")
        return Classifier(weights, config, overrides)
    return Segmenter(weights, config, overrides, engine)


def class_names(cfg: DictConfig, config_file: str | None) -> list[str] | None:
    """Names of the classes of a config's data: those in the evaluation.json of its training, else
    the folders of the data; None where neither is there.

    Args:
        config_file: the config.yaml of the training, which evaluation.json lies beside.
    """
    file = os.path.join(os.path.dirname(config_file or ""), "evaluation.json")
    if config_file and os.path.isfile(file):
        accuracies = read_json(file).get("Acc")
        if isinstance(accuracies, dict) and len(accuracies) == cfg.model.cfg.num_classes:
            return list(accuracies)
    dataset = cfg.dataloader.test[0].dataset
    return dataset["_target_"].class_names(dataset.root) or None
