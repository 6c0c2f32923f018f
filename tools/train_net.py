"""Train or evaluate what a config describes; `tools/train.sh` starts it on every rank."""

import sys

from projects.SegFormer.engine import command_line, signals
from projects.SegFormer.engine.train_arguments import parse

# isort: split
if __name__ == "__main__":
    parse(sys.argv[1:])  # --help and wrong words, before OneFlow waits for other ranks
    signals.catch_while_loading()

import projects.SegFormer.engine.process  # noqa: F401

# isort: split
import copy
import glob
import logging
import os
import traceback
from contextlib import suppress
from types import SimpleNamespace

import oneflow as flow
from libai.engine import default_setup
from libai.utils import distributed as dist
from omegaconf import OmegaConf

from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.libai_mends import mend_libai
from projects.SegFormer.engine.output_folder import claim
from projects.SegFormer.engine.parallel import plan_ranks
from projects.SegFormer.engine.ranks import on_all_ranks
from projects.SegFormer.engine.report import logged_failure
from projects.SegFormer.engine.stopping import Stopped, Stopping
from projects.SegFormer.engine.trainer import SegformerTrainer
from projects.SegFormer.engine.watchdog import LIMIT, Watchdog
from projects.SegFormer.engine.yaml_config import save_yaml
from projects.SegFormer.evaluation.report.page import write_report
from projects.SegFormer.model_utils.segf_loader import fill_model
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import write_json

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
    asked = load_config(args.config_file, overrides_of(args))
    cfg = copy.deepcopy(asked)
    plan_ranks(cfg, flow.env.get_world_size())
    claim(cfg.train.output_dir)
    mend_libai()
    default_setup(cfg, SimpleNamespace(resume=args.resume, overrides=args.opts))
    if dist.is_main_process():  # over LiBai's: without what belongs to this number of processes
        save_yaml(asked, os.path.join(cfg.train.output_dir, "config.yaml"))
    logger.info(f"Config: {args.config_file}")
    for line in OmegaConf.select(cfg, "data.chosen") or ():
        logger.info(f"Chosen: {line}")
    if args.eval_only or args.format_only:
        evaluate_only(cfg, args.format_only)
    else:
        SegformerTrainer(cfg, (args.config_file, overrides_of(args))).train()


def overrides_of(args) -> list[str]:
    return [*args.opts, *(FAST_DEV_RUN if args.fast_dev_run else ())]


def evaluate_only(cfg, format_only: bool) -> None:
    """Evaluate the weights in train.load_weight, one after the other where it names several.

    With `format_only` write predictions as files instead.
    """
    paths = weight_paths(cfg.train.load_weight)
    if not paths:
        logger.warning("train.load_weight is not set: evaluating the initial weights")
    if format_only and len(paths) > 1:
        raise InputError(
            f"--format-only writes the predictions of one set of weights; train.load_weight="
            f"{cfg.train.load_weight} are {len(paths)}"
        )
    cfg.train.load_weight = ""
    model = SegformerTrainer.build_model(cfg)
    loaders = SegformerTrainer.build_test_loader(cfg)
    results = {}
    stopping = Stopping()
    with Watchdog(cfg.train.get("watchdog_seconds", LIMIT)) as watchdog:

        def after_batch():
            watchdog.alive("evaluating")
            stopping.check("evaluating")

        for path in paths or ["initial weights"]:
            if paths:
                fill_model(model, path)
            watchdog.alive("evaluating")
            if format_only:
                SegformerTrainer.write_results(cfg, loaders, model, after_batch)
            else:
                results[path] = SegformerTrainer.test(cfg, loaders, model, after_batch=after_batch)
    if len(results) > 1 and dist.is_main_process():
        write_json(os.path.join(cfg.train.output_dir, "evaluation.json"), results)
        logger.info("All of them:\n" + comparison(results))
    elif results and dist.is_main_process():
        with logged_failure("report.html"):
            logger.info(f"The report is {write_report(cfg.train.output_dir)}")


def weight_paths(load_weight) -> list[str]:
    """What train.load_weight names: a path, a pattern such as "output/x/model_*", or a list."""
    named = [load_weight] if isinstance(load_weight, str) else list(load_weight)
    found = []
    for name in filter(None, named):
        is_pattern = glob.has_magic(name) and not os.path.exists(name)
        matches = sorted(glob.glob(name)) if is_pattern else [name]
        if not matches:
            raise InputError(f"train.load_weight={name}: nothing is called so; is the path right?")
        found += matches
    return found


def comparison(results: dict[str, dict]) -> str:
    """A line for each set of weights with its means, in percent."""
    figures = [
        name
        for name, value in next(iter(results.values())).items()
        if "/" not in name and isinstance(value, float)
    ]
    width = max(map(len, results))
    lines = [f"{'weights':<{width}}  " + "  ".join(f"{name:>13}" for name in figures)]
    for path, result in results.items():
        cells = "  ".join(f"{result[name]:13.2f}" for name in figures)
        lines.append(f"{path:<{width}}  {cells}")
    return "\n".join(lines)


def run(arguments: list[str]) -> int:
    """`main`, with what a person can mend told in one line; the exit code."""
    try:
        command_line.check_clone()
        main(arguments)
        return 0
    except Stopped as stop:
        tell(on_all_ranks(stop), str(stop))
        return 128 + stop.number
    except (InputError, FloatingPointError, OSError) as error:
        tell(error, f"error: {error}")
        return 1
    except MemoryError as error:
        tell(error, f"error: {command_line.OUT_OF_MEMORY}")
        return 1
    except Exception as error:
        tell(error, traceback.format_exc().rstrip())
        return 1


def tell(error: BaseException, line: str) -> None:
    """Print what ends the run; where all ranks raise it, one does, before the first is gone."""
    together = getattr(error, "on_all_ranks", False) and flow.env.get_world_size() > 1
    if not together or dist.is_main_process():
        with suppress(OSError):  # standard error may be a full disk or a closed terminal
            print(line, file=sys.stderr, flush=True)
    if together:
        flow.comm.barrier()


def leave(code: int) -> None:
    """End the process."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try again, and end with a code of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code and flow.env.get_world_size() > 1:
        # At exit OneFlow would wait for the other ranks, which wait for this one.
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    signals.catch()
    leave(run(sys.argv[1:]))
