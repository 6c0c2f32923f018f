"""Train or evaluate what a config describes; `tools/train.sh` starts it on every rank.

bash tools/train.sh CONFIG GPUS [--eval-only] [--resume] [--fast-dev-run] [key=value ...]
"""

import logging
import os
import signal
import sys
import traceback

import numpy as np
import oneflow as flow
from libai.config import default_argument_parser
from libai.engine import default_setup
from omegaconf import DictConfig

from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.libai_mends import mend_libai
from projects.SegFormer.engine.parallel import plan_ranks
from projects.SegFormer.engine.trainer import SegformerTrainer
from projects.SegFormer.modeling.errors import InputError

logger = logging.getLogger("libai." + __name__)

# What --fast-dev-run makes of any config: a few steps of everything.
FAST_DEV_RUN = (
    "train.train_iter=20",
    "train.train_epoch=0",
    "train.log_period=5",
    "train.checkpointer.period=10",
    "train.evaluation.eval_period=10",
    "train.evaluation.eval_iter=5",
)


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    cfg = configure(args, flow.env.get_world_size())
    mend_libai()
    try:
        default_setup(cfg, args)
    except (AssertionError, ValueError) as error:  # sizes that do not divide
        raise InputError(str(error)) from error
    np.random.seed(cfg.train.seed)
    flow.manual_seed(cfg.train.seed)
    if args.eval_only:
        evaluate_only(cfg)
    else:
        SegformerTrainer(cfg).train()


def parse(arguments: list[str]):
    """LiBai's arguments, with options and overrides in any order.

    LiBai's parser takes everything after the first override for an override, so those go last.
    """
    overrides = [word for word in arguments if "=" in word and not word.startswith("-")]
    options = [word for word in arguments if word not in overrides]
    return default_argument_parser().parse_args(options + overrides)


def configure(args, processes: int) -> DictConfig:
    """The config that the arguments describe, for this many processes. Raises InputError."""
    overrides = [*args.opts, *(FAST_DEV_RUN if args.fast_dev_run else ())]
    cfg = load_config(args.config_file, overrides)
    plan_ranks(cfg, processes)
    return cfg


def evaluate_only(cfg) -> None:
    model = SegformerTrainer.build_model(cfg)
    if not cfg.train.load_weight:
        logger.warning("train.load_weight is not set: evaluating the initial weights")
    SegformerTrainer.test(cfg, SegformerTrainer.build_test_loader(cfg), model)


def run(arguments: list[str]) -> int:
    """`main`, with what a person can mend told in one line; the exit code."""
    # OneFlow takes the signal for itself and ends the process without a word.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main(arguments)
        return 0
    except (InputError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    code = run(sys.argv[1:])
    if code and flow.env.get_world_size() > 1:
        # At exit OneFlow would wait for the other ranks, which wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
