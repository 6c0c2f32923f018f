"""What LiBai 0.1.1 gets wrong under OneFlow 0.9, on a CPU, or with several stages.

`mend_libai` replaces functions in LiBai's modules; it is called once, before anything else. Each
mend can go when LiBai itself does what the replacement does.
"""

from types import SimpleNamespace

import libai.engine.default
import oneflow as flow
from libai.utils import distributed as dist

from projects.SegFormer.engine.log import set_up_log
from projects.SegFormer.engine.yaml_config import save_yaml


def mend_libai() -> None:
    # It runs `make` in a folder without a Makefile and then exits the process. What it would build,
    # a helper for text data, is in the wheel.
    libai.engine.default._compile_dependencies = lambda: None
    # Where the disk is full, a stack trace for every line of the log, and for config.yaml.
    libai.engine.default.setup_logger = set_up_log
    libai.engine.default.LazyConfig = SimpleNamespace(save=save_yaml)
    dist.ttol = _to_local
    dist.get_data_parallel_rank = _data_parallel_rank
    dist._DistributeUtil._init_placement_group = _init_placement_group


def _to_local(tensor, pure_local=False, ranks=None):
    """The local part of a global tensor, on the device it is on; LiBai always asks for "cuda"."""
    if not tensor.is_global:
        return tensor
    placement = flow.placement(tensor.placement.type, ranks) if ranks else tensor.placement
    if pure_local:
        return tensor.to_global(placement=placement).to_local()
    sbp = [flow.sbp.broadcast] * placement.ranks.ndim
    return tensor.to_global(sbp=sbp, placement=placement).to_local()


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
