"""Is a model here the model that transformers has? Compares them element by element.

    python model_utils/test_segloader.py --pretrained_model_path FOLDER [--task cls] [--image FILE]
    python model_utils/test_segloader.py

FOLDER is one of Hugging Face's save_pretrained. Without it, a B0 with random weights is made, no
layer of which is as it was initialised. It needs torch and transformers (bash tools/setup.sh
--test), and ends with 1 if an element is further off than --tolerance.
"""

import projects.SegFormer.engine.process  # noqa: F401

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np
import oneflow as flow

from projects.SegFormer.dataset.image_files import read_image
from projects.SegFormer.dataset.transforms import Normalize
from projects.SegFormer.engine import command_line
from projects.SegFormer.model_utils.huggingface_config import ARCHITECTURES, read_config
from projects.SegFormer.model_utils.segf_loader import SegFLoaderHuggerFace
from projects.SegFormer.model_utils.weight_files import read_weights
from projects.SegFormer.model_utils.weight_paths import find_weight_files, snapshot
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import reason
from projects.SegFormer.modeling.segformer_model import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)

MODELS = {"seg": SegformerForSemanticSegmentation, "cls": SegformerForImageClassification}
NAMES = dict(zip(MODELS, ARCHITECTURES))  # of the same in transformers
SEED = 2022


def main(arguments: list[str]) -> int:
    """The exit code: 1 beyond the tolerance, else 0."""
    args = _parser().parse_args(arguments)
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise InputError(f"{error}: run bash tools/setup.sh --test, which installs it") from error
    logging.getLogger("libai").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.pretrained_model_path
        if folder is None:
            folder = temporary
            random_model(NAMES[args.task or "seg"]).save_pretrained(folder)
        folder = snapshot(folder)
        task = args.task or _task_of(folder)
        loader = SegFLoaderHuggerFace(MODELS[task], {}, folder)
        model = loader.load()
        reference = reference_model(NAMES[task], folder)

    channels = loader.libai_cfg["num_channels"]
    images = _read(args.image) if args.image else random_images((1, channels, 512, 512))
    if images.shape[1] != channels:
        raise InputError(f"{args.image} has {images.shape[1]} channels, the model takes {channels}")
    rows = compare(outputs(model, images), reference_outputs(reference, images))
    print(format_table(rows, args.tolerance))
    return 0 if all(row["max"] <= args.tolerance for row in rows) else 1


def reference_model(architecture: str, folder: str):
    """The model of transformers with the weights in `folder`.

    It reads safetensors by itself. Of other files it gets the tensors as they are read here:
    PyTorch 1.13 may run what is in them.
    """
    import torch
    import transformers

    if all(file.endswith(".safetensors") for file in find_weight_files(folder)):
        source, weights = folder, dict(use_safetensors=True)
    else:
        state = {key: torch.from_numpy(value) for key, value in read_weights(folder).items()}
        source, weights = None, dict(state_dict=state)
    try:
        config = transformers.SegformerConfig.from_pretrained(folder)
        model_class = getattr(transformers, architecture)
        return model_class.from_pretrained(source, config=config, **weights).eval()
    except Exception as error:
        raise InputError(f"transformers cannot load {folder}: {reason(error)}") from error


def random_model(architecture: str, **settings):
    """A model of transformers with random weights and batch norm statistics, by default a B0.

    Norms have scales from 0.5 to 1.5, other weights keep the variance of their inputs.
    """
    import torch
    import transformers

    settings = {"num_labels": 19, **settings}
    model = getattr(transformers, architecture)(transformers.SegformerConfig(**settings)).eval()
    random = torch.Generator().manual_seed(SEED)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            tensor.uniform_(0.5, 1.5, generator=random)
        elif tensor.ndim:  # not batch norm's count of batches
            inputs = tensor[0].numel() if tensor.ndim > 1 else 16
            tensor.normal_(0, inputs**-0.5, generator=random)
    return model


def random_images(shape: tuple) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)


def outputs(model, images: np.ndarray) -> dict[str, np.ndarray]:
    """{stage or "logits": values} of a model here; channels on the second axis."""
    batch = flow.tensor(images)
    with flow.no_grad():
        maps = [stage.numpy().transpose(0, 3, 1, 2) for stage in model.segformer.encode(batch)]
        logits = model(batch)["prediction_scores"].numpy()
    return _by_name(maps, logits)


def reference_outputs(model, images: np.ndarray) -> dict[str, np.ndarray]:
    """The same of a model of transformers."""
    import torch

    with torch.no_grad():
        result = model(torch.from_numpy(images), output_hidden_states=True)
    maps = [stage.numpy() for stage in result.hidden_states]
    # Without reshape_last_stage the last one is (N, L, C).
    maps = [values.transpose(0, 2, 1) if values.ndim == 3 else values for values in maps]
    return _by_name(maps, result.logits.numpy())


def _by_name(maps, logits) -> dict[str, np.ndarray]:
    return {f"stage {i}": values for i, values in enumerate(maps, start=1)} | {"logits": logits}


def compare(actual: dict, expected: dict) -> list[dict]:
    """A row per output: shape, largest element, largest and mean difference, same arg max."""
    rows = []
    for name, values in expected.items():
        ours = actual[name].reshape(values.shape)
        difference = np.abs(ours.astype(np.float64) - values)
        rows.append(
            dict(
                name=name,
                shape=values.shape,
                largest=np.abs(values).max(),
                max=np.inf if np.isnan(difference).any() else difference.max(),
                mean=difference.mean(),
                argmax=(ours.argmax(1) == values.argmax(1)).mean(),
            )
        )
    return rows


def format_table(rows: list[dict], tolerance: float) -> str:
    heads = "".join(f"{head:>11}" for head in ("largest", "max diff", "mean diff", "arg max"))
    lines = [f"{'':9}{'shape':>20}{heads}  verdict"]
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        agreement = f"{row['argmax']:.4%}" if row["name"] == "logits" else "-"
        verdict = "same" if row["max"] <= tolerance else f"OFF by more than {tolerance:g}"
        lines.append(
            f"{row['name']:9}{shape:>20}{row['largest']:>11.3g}{row['max']:>11.2e}"
            f"{row['mean']:>11.2e}{agreement:>11}  {verdict}"
        )
    return "\n".join(lines)


def _task_of(folder: str) -> str:
    architectures = read_config(folder).get("architectures") or [NAMES["seg"]]
    for task, name in NAMES.items():
        if name in architectures:
            return task
    raise InputError(f"{folder} has a {architectures[0]}: expected {' or '.join(NAMES.values())}")


def _read(file: str) -> np.ndarray:
    """(1, 3, H, W), normalised."""
    image, _ = Normalize()(read_image(Path(file)), None, np.random.default_rng(SEED))
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser(__doc__)
    parser.add_argument("--pretrained_model_path", help="a save_pretrained folder")
    parser.add_argument("--task", choices=tuple(MODELS), help="by default what config.json says")
    parser.add_argument("--image", help="an image file; by default 512x512 of noise")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="1e-4 by default")
    return parser


if __name__ == "__main__":
    command_line.run(main)
