"""Parameters and multiply-adds of a model, by its parts.

    python tools/get_flops.py --config configs/models/mit_b2.py [--size 512 512] [key=value ...]

The config is one to run, or one of configs/models. Multiply-adds are given for one image, in two
forms: the paper's, to hold against its table, and as this project computes them. What counts, and
where the forms differ, stands in modeling/flops.py.
"""

import projects.SegFormer.engine.process  # noqa: F401

import argparse
import os

from libai.config import LazyConfig
from omegaconf import DictConfig

from projects.SegFormer.engine import command_line
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.flops import Part, model_parts
from projects.SegFormer.modeling.segformer_model import MIN_SIDE
from projects.SegFormer.modeling.settings import check_settings


def main(arguments: list[str]) -> None:
    args = _parser().parse_args(arguments)
    height, width = args.size
    if min(height, width) < MIN_SIDE:
        raise InputError(f"--size {height} {width}: both sides must be {MIN_SIDE} or more")
    settings = model_settings(args.config, args.overrides)
    print(f"{args.config}, {height}x{width}, {settings.num_classes} classes")
    print(format_parts(model_parts(height, width, **settings)))


def model_settings(file: str, overrides: list[str]) -> DictConfig:
    """The model's config in a config to run, or in one of configs/models.

    Raises InputError for a config that cannot be read, and for a setting that the model lacks.
    """
    model = _model_of_file(file, overrides) or load_config(file, overrides).model
    model_class = model.get("_target_")
    if not hasattr(model_class, "from_config"):
        raise InputError(f"{file} has no model of this project: expected its class as _target_")
    try:
        model_class.from_config(model.cfg)
        check_settings(model.cfg)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return model.cfg


def _model_of_file(file: str, overrides: list[str]) -> DictConfig | None:
    """`model` of a file of configs/models with `overrides`; None if it is another file."""
    if not (file.endswith(".py") and os.path.isfile(file)):
        return None
    try:
        config = LazyConfig.load(file)
    except Exception:  # load_config tells of it
        return None
    if "train" in config or "cfg" not in config or "model" not in config:
        return None
    for override in overrides:
        if not override.startswith("cfg.") or "=" not in override:
            raise InputError(f"override {override!r}: expected cfg.key=value for {file}")
    try:
        config = LazyConfig.apply_overrides(config, overrides)
    except Exception as error:  # Hydra's and OmegaConf's have no common class
        raise InputError(f"cannot read the overrides {' '.join(overrides)}") from error
    config.model.cfg = config.cfg
    return config.model


def format_parts(parts: list[Part]) -> str:
    """A table: a line a part, the sum below."""
    total = Part("total", *(sum(values) for values in list(zip(*parts))[1:]))
    heads = ("part", "parameters", "paper's form", "here")
    rows = [
        (part.name, f"{part.parameters:,}", _giga(part.paper_flops), _giga(part.flops))
        for part in (*parts, total)
    ]
    width = max(len(row[0]) for row in rows)
    lines = [
        f"{name:<{width}}  {parameters:>12}  {paper:>12}  {here:>8}"
        for name, parameters, paper, here in (heads, *rows)
    ]
    rule = "-" * len(lines[0])
    unit = "Multiply-adds in G (1e9) an image."
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], "", unit])


def _giga(flops: int) -> str:
    return f"{flops / 1e9:.3f}" if flops else "-"


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser(__doc__)
    parser.add_argument("--config", required=True, help="config to run, or one of configs/models")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(512, 512),
        metavar=("HEIGHT", "WIDTH"),
        help="of the image, 512 512 without",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    return parser


if __name__ == "__main__":
    command_line.run(main)
