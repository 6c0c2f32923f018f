"""Parameters and multiply-adds of a model, by its parts.

    python tools/get_flops.py --config configs/models/mit_b2.py [--size 512 512] [key=value ...]

The config is one to run, or one of configs/models. Multiply-adds are given for one image, in two
forms: the paper's, to hold against its table, and as this project computes them. What counts, and
where the forms differ, stands in modeling/flops.py.
"""

import projects.SegFormer.engine.process  # noqa: F401

import argparse

from projects.SegFormer.engine import command_line
from projects.SegFormer.engine.config import model_settings
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.flops import Part, model_parts
from projects.SegFormer.modeling.segformer_model import MIN_SIDE


def main(arguments: list[str]) -> None:
    args = _parser().parse_args(arguments)
    height, width = args.size
    if min(height, width) < MIN_SIDE:
        raise InputError(f"--size {height} {width}: both sides must be {MIN_SIDE} or more")
    settings = model_settings(args.config, args.overrides)
    print(f"{args.config}, {height}x{width}, {settings.num_classes} classes")
    print(format_parts(model_parts(height, width, **settings)))


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
