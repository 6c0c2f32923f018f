"""What LiBai gets wrong under OneFlow 0.9, on a CPU or with several stages, and what its versions
do differently: 0.1.1 of the package index, v0.2.0, v0.3.0 and main of its repository.

`mend_libai` replaces functions in LiBai's modules; each mend can go when LiBai itself does what the
replacement does. What else the versions do differently, the project does not call: `Linear`, whose
weight they lay out in two ways, is in modeling/layers.py, a step and the loaders in
engine/trainer.py.
"""

import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import libai.engine.default
import oneflow as flow
from libai.config import LazyConfig
from libai.engine.default import DefaultTrainer
from libai.utils import distributed as dist
from libai.utils.checkpoint import Checkpointer
from omegaconf import OmegaConf

from projects.SegFormer.engine.config import complete
from projects.SegFormer.engine.log import set_up_log
from projects.SegFormer.engine.parallel import plan_ranks
from projects.SegFormer.engine.yaml_config import save_yaml

logger = logging.getLogger("libai." + __name__)


def mend_libai() -> None:
    """Mend LiBai in this process; a second call changes nothing.

    Tools call it before anything else, and each config where it is loaded: LiBai's own scripts
    import nothing else of this project.
    """
    # It runs `make` in a folder without a Makefile and then exits the process. What it would build,
    # a helper for text data, is in the wheel.
    libai.engine.default._compile_dependencies = lambda: None
    # Where the disk is full, a stack trace for every line of the log, and for config.yaml.
    libai.engine.default.setup_logger = set_up_log
    libai.engine.default.LazyConfig = SimpleNamespace(save=save_yaml)
    dist.get_data_parallel_rank = _data_parallel_rank
    dist._DistributeUtil._init_placement_group = _init_placement_group
    # From 0.2 on it wraps what a constructor raises, an InputError too, in an exception of Hydra's.
    instantiation = sys.modules["libai.config.instantiate"]
    if hasattr(instantiation, "_call_target"):
        instantiation._call_target = lambda target, arguments: target(**arguments)
    if "projects.SegFormer.engine.process" not in sys.modules:
        _serve_scripts()


def mend_for_one_process() -> None:
    """`mend_libai`, and LiBai's ranks as they are for a tool, which is one process."""
    mend_libai()
    dist.setup_dist_util(
        OmegaConf.create({f"{of}_parallel_size": 1 for of in ("data", "tensor", "pipeline")})
    )


def _data_parallel_rank() -> int:
    """This rank's place along the data axis of its own stage.

    LiBai divides the rank by tensor times pipeline size, as if the stages of one replica were
    neighbours. But its placements give each stage a run of neighbouring ranks: with 2 x 2, ranks 0
    and 1 are the first stage, and both would read the same samples.
    """
    util = dist.get_dist_util()
    ranks_per_stage = util.world_size // util.pipeline_parallel_size
    return flow.env.get_rank() % ranks_per_stage // util.tensor_parallel_size


_libai_init_placement_group = dist._DistributeUtil._init_placement_group


def _init_placement_group(self, cfg):
    """Stages as `custom_pipeline_stage_id` has them, later LiBai's name for each block's stage.

    LiBai 0.1.1 gives all stages the same number of blocks, and fails where that does not divide.
    """
    stages = cfg.get("custom_pipeline_stage_id")
    if stages is None:
        _libai_init_placement_group(self, cfg)
        return
    size = self.world_size // self.pipeline_parallel_size
    self._layer_stage_ids = list(stages)
    self._layer_ranks = [list(range(stage * size, (stage + 1) * size)) for stage in stages]


# ---- LiBai's own scripts ------------------------------------------------------------------------


def _serve_scripts() -> None:
    """Have LiBai's tools/train_net.py, which calls these by name, run the project's.

    Its DefaultTrainer evaluates classifiers only, and would leave out settings without a word.
    """
    LazyConfig.apply_overrides = staticmethod(_apply_overrides)
    DefaultTrainer.__new__ = staticmethod(_new_trainer)
    for name in ("build_model", "build_graph", "build_test_loader", "test"):
        setattr(DefaultTrainer, name, _handed_over(name))
    Checkpointer._load_file = _load_file
    if not flow.cuda.is_available():
        flow.cuda.manual_seed = lambda seed: None  # v0.3.0 calls it on CPUs too, where it aborts


def _apply_overrides(config, overrides: list[str]):
    config = complete(config, overrides)
    plan_ranks(config, flow.env.get_world_size())
    return config


def _trainer() -> type[DefaultTrainer]:
    from projects.SegFormer.engine.trainer import SegformerTrainer  # configs load without it

    return SegformerTrainer


def _new_trainer(cls, *arguments):
    if cls is not DefaultTrainer:
        return object.__new__(cls)
    logger.info(
        "SegformerTrainer runs in the place of LiBai's DefaultTrainer. Only the project's "
        "tools/train.sh tells errors in one line, saves a checkpoint on a signal and ends ranks "
        "that hang"
    )
    return object.__new__(_trainer())


def _handed_over(name: str) -> classmethod:
    libai_method = vars(DefaultTrainer)[name].__func__

    def method(cls, *arguments, **options):
        if cls is DefaultTrainer:
            return getattr(_trainer(), name)(*arguments, **options)
        return libai_method(cls, *arguments, **options)

    return classmethod(method)


def _load_file(self, path: str) -> dict:
    """A checkpoint, or the weights in any format.

    LiBai reads each file of a folder by flow.load, which ends at checkpoint.json and executes what
    a pickle says.
    """
    from projects.SegFormer.engine.checkpoint import load_part, read_record
    from projects.SegFormer.model_utils.segf_loader import fill_model

    fill_model(self.model, path)
    state = {"model": self.model.state_dict(), "iter": 0}
    for name in filter(lambda name: os.path.isdir(os.path.join(path, name)), self.checkpointables):
        state[name] = load_part(os.path.join(path, name))
        state["iter"] = (read_record(Path(path)) or state)["iteration"]
    return state
