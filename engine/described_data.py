"""What a config leaves open, from the dataset.json of its data: classes, sizes and schedule."""

import math

import oneflow as flow
from omegaconf import DictConfig, OmegaConf

from projects.SegFormer.dataset.description import read_description
from projects.SegFormer.modeling.errors import InputError

LONGEST_SHORT_SIDE = 512  # of images in training; larger ones are scaled down to it
MULTIPLE = 32  # of a crop's sides
FEWEST, MOST = 600, 40_000  # iterations


def fill_in(config: DictConfig) -> None:
    """Where the validation data have null for `classes`, fill in what is null in the config.

    Each value is one for some dozens to some thousands of images; `data.chosen` gets a line for
    each, with its reason. Raises InputError: see `read_description`.
    """
    described = config.dataloader.test[0].dataset
    if described.get("classes", ()) is not None:
        return
    if described.root is None:
        raise InputError("data.root=null: expected the folder of the data")
    found = read_description(described.root)
    is_tuned = bool(config.model.cfg.get("pretrained_model_path") or config.train.load_weight)
    largest = LONGEST_SHORT_SIDE if flow.cuda.is_available() else LONGEST_SHORT_SIDE // 2
    shrunk = min(1.0, LONGEST_SHORT_SIDE / min(found.size))
    scale = list(config.data.scale or [round(side * shrunk) for side in found.size])
    crop = [max(min(side, largest) // MULTIPLE, 2) * MULTIPLE for side in scale]
    batch = config.train.global_batch_size or 4
    epochs = 50 if is_tuned else 100
    steps = min(max(epochs * found.images["train"] // batch, FEWEST), MOST)
    epochs_asked = config.train.train_epoch or 0
    asked = config.train.train_iter or math.ceil(epochs_asked * found.images["train"] / batch)
    fifth = -(-(asked or steps) // 5)
    start = "weights to start from" if is_tuned else "no weights to start from"
    chosen = [
        ("model.cfg.num_classes", len(found.classes), "the classes of dataset.json"),
        ("data.scale", scale, f"half of the images have {found.size} or less"),
        (
            "data.crop",
            crop,
            f"of that, in multiples of {MULTIPLE}, at most {largest}"
            + ("" if flow.cuda.is_available() else " without a GPU"),
        ),
        ("inference.resize", scale if scale != found.size else None, "as in training"),
        ("train.global_batch_size", batch, "as the learning rate is for"),
        ("train.train_iter", steps, f"{epochs} epochs: {start}"),
        ("train.checkpointer.period", fifth, "a fifth of the training"),
        ("train.evaluation.eval_period", fifth, "a fifth of the training"),
        ("optim.params.lr", 6e-5 if is_tuned else 6e-4, start),
        ("optim.params.head_lr_multiplier", 10.0 if is_tuned else 1.0, start),
    ]
    lines = []
    for key, value, why in chosen:
        if OmegaConf.select(config, key) is None and value is not None:
            OmegaConf.update(config, key, value, merge=False)
            lines.append(f"{key}={value}: {why}")
    for loader in (config.dataloader.train, *config.dataloader.test):
        loader.dataset.classes, loader.dataset.palette = found.classes, found.palette
    config.data.chosen = lines
