"""Train, or evaluate, what a config describes.

    bash tools/train.sh configs/segformer_city.py 4 cfg.pretrained_model_path=pretrained/mit_b0.pth
    bash tools/train.sh configs/segformer_city.py 4 --resume
    bash tools/train.sh configs/segformer_city.py 4 --eval-only train.load_weight=model.pth
    bash tools/train.sh configs/segformer_city.py 1 --fast-dev-run

tools/train.sh starts tools/train_net.py on every rank, on several machines too: its first lines say
how. What follows the number of processes are the arguments below. Any key of the config may be set;
CONFIG and configs/common have them, with what they mean. LiBai's own script takes the same.
"""

import argparse

from projects.SegFormer.engine.command_line import parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments of train_net.py, options and overrides in any order.

    OneFlow is not needed: a wrong word is told before any rank waits for another.
    """
    train = parser(__doc__)
    train.prog = "train_net.py"
    train.add_argument("--config-file", required=True, metavar="CONFIG", help="config to run")
    for option, text in (
        ("--resume", "go on from the last checkpoint in train.output_dir"),
        ("--eval-only", "evaluate train.load_weight: a path, a list, or a pattern in quotes"),
        ("--format-only", "write predictions as a benchmark's server takes them, evaluate nothing"),
        ("--fast-dev-run", "20 iterations of everything, to see whether it runs"),
    ):
        train.add_argument(option, action="store_true", help=text)
    train.add_argument("opts", nargs="*", metavar="key=value", help="settings of the config")
    return train.parse_intermixed_args(arguments)
