"""The static graph of a model, for training and evaluation."""

from functools import partial

import oneflow as flow
from libai.utils import distributed as dist
from oneflow import nn
from oneflow.nn.graph import GraphModule, GraphTensor
from oneflow.nn.graph.graph_block import GraphBlockType

from projects.SegFormer.engine.optim import clip_gradients, gradient_limit
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import SegformerBlock


class SegformerGraph(nn.Graph):
    """LiBai's GraphBase for OneFlow 0.9, whose graphs wrap modules in another way.

    LiBai's `build_graph` sets the arguments from the config: `fp16` from train.amp,
    `activation_checkpoint` and `zero_optim`, `zero_stage` from train.zero_optimization; from 0.2 on
    also `auto_parallel_conf` from graph.auto_parallel and `global_mode`, which are for models that
    do not say themselves how they are split. Raises InputError where one is enabled.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: flow.optim.Optimizer | None = None,
        lr_scheduler: flow.optim.lr_scheduler._LRScheduler | None = None,
        fp16: bool = False,
        activation_checkpoint: bool = False,
        grad_acc_steps: int = 1,
        zero_optim: bool = False,
        zero_stage: int = 0,
        is_train: bool = True,
        auto_parallel_conf: dict | None = None,
        global_mode: dict | None = None,
    ):
        super().__init__()
        for name, setting in (("auto_parallel", auto_parallel_conf), ("global_mode", global_mode)):
            if setting and setting["enabled"]:
                raise InputError(
                    f"graph.{name}.enabled=True: this project splits its layers itself, by the "
                    "sizes in train.dist; set it to False"
                )
        self.model = model
        self.is_train = is_train
        if is_train:
            self.add_optimizer(optimizer, lr_sch=lr_scheduler)
            # Gradients are the sum over the micro-batches there; the mean is taken later.
            self._clip = partial(clip_gradients, optimizer, scale=grad_acc_steps)
            if fp16:
                self._enable_mixed_precision(optimizer)
            if grad_acc_steps > 1:
                self.config.set_gradient_accumulation_steps(grad_acc_steps)
                if not fp16:
                    # OneFlow 0.9 updates a late layer before the last micro-batch's backward pass
                    # has read its weight. A scaler, here always 1, waits for all gradients.
                    self.set_grad_scaler(
                        flow.amp.GradScaler(init_scale=1.0, growth_interval=2**31 - 1)
                    )
            if activation_checkpoint:
                self._checkpoint_blocks()
            if zero_optim:
                if zero_stage not in (1, 2, 3):
                    raise InputError(
                        f"train.zero_optimization.stage={zero_stage}: ZeRO has stages 1, 2 and 3"
                    )
                self.config.enable_zero(True, stage=zero_stage)
            if dist.get_dist_util().is_pipeline_model_parallel():
                model.set_pipeline_stage_id(self.model)
        # On a CPU they save nothing, and looking for them is a quarter of what compiling takes.
        on_gpu = flow.cuda.is_available()
        self.config.allow_fuse_add_to_output(on_gpu)
        self.config.allow_fuse_model_update_ops(on_gpu)
        self.config.allow_fuse_cast_scale(on_gpu)
        flow.boxing.nccl.enable_use_compute_stream(True)

    def _create_states_builder(self):
        """On CPU ranks let the model read copies of its parameters.

        OneFlow 0.9 keeps parameters in memory that a CPU rank cannot send: where another needs it,
        as with ZeRO, the process aborts ("separated_header_mem_ptr() == nullptr"). The copy's
        gradient has the parameter's split, so that nothing is sliced anew for the optimizer. It can
        go when graphs on CPU ranks train with ZeRO without it.
        """
        super()._create_states_builder()
        if flow.cuda.is_available() or flow.env.get_world_size() == 1:
            return
        builders = {
            id(state.lazy_origin_builder()): state.lazy_origin_builder()
            for state in self._state()
            if state.to(GraphTensor).type == GraphBlockType.PARAMETER
        }
        for builder in builders.values():
            builder.method = partial(_copy_of, builder.method)

    def build(self, **data):
        outputs = self.model(**data)
        if self.is_train:
            sum(outputs.values()).backward()
            self._clip()
        return outputs

    def _enable_mixed_precision(self, optimizer):
        if gradient_limit(optimizer) is not None:
            # The gradients are still scaled where they are clipped, and squared they overflow.
            raise InputError(
                "optim.params.clip_grad_norm does not go with train.amp.enabled=True: set it to "
                "null, or mixed precision to False"
            )
        if not flow.cuda.is_available():
            raise InputError("train.amp.enabled: mixed precision needs a GPU; set it to False")
        self.config.enable_amp(True)
        # LiBai begins at 2 ** 30, which overflows for many steps before it takes effect.
        self.set_grad_scaler(flow.amp.GradScaler(init_scale=2.0**16, growth_interval=2000))

    def _checkpoint_blocks(self):
        for module in self.model.modules():
            if isinstance(module.to(nn.Module), SegformerBlock):
                module.to(GraphModule).activation_checkpointing = True


def _copy_of(parameter):
    tensor = parameter()
    return flow._C.identity(tensor).to_global(grad_sbp=tensor.sbp)
