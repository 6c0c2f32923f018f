"""How a segmentation model is trained: the paper's schedule, logging, checkpoints, evaluation."""

from libai.config import LazyCall

from projects.SegFormer.engine.libai_mends import mend_libai
from projects.SegFormer.engine.optim import warmup_poly

mend_libai()  # for LiBai's own tools/train_net.py, which takes nothing else from this project

train = dict(
    output_dir="output",
    seed=0,
    # The batch of one step, over all ranks and accumulation steps.
    global_batch_size=16,
    train_micro_batch_size=None,
    num_accumulation_steps=None,
    test_micro_batch_size=1,
    train_iter=160_000,
    train_epoch=0,
    warmup_ratio=1_500 / 160_000,
    # max_iter and warmup_iter follow from the three values above.
    scheduler=LazyCall(warmup_poly)(warmup_factor=1e-6, power=1.0, max_iter=None, warmup_iter=None),
    # Weights to start from, in any format. With --eval-only also a list or a pattern.
    load_weight="",
    resume=False,
    start_iter=0,
    log_period=20,  # iterations, as all periods are; 0 for never
    # A run of which nothing is heard for so long hangs, and is ended; 0 for no such limit.
    watchdog_seconds=1800,
    checkpointer=dict(period=4_000, max_to_keep=3),  # -1 for all
    # The checkpoint of the highest mIoU (or top-1 accuracy) is kept as model_best.
    evaluation=dict(
        enabled=True,
        eval_period=4_000,  # and after the last iteration
        eval_iter=1_000_000,  # at most so many batches; -1 for all
        boundary_iou=False,  # count the boundaries of classes as well
        worst_images=0,  # draw so many images of lowest mIoU
    ),
    # A moving average of the weights, which is evaluated in their place and kept as `ema` in each
    # checkpoint. After a step: decay * average + (1 - decay) * weight.
    ema=dict(enabled=False, decay=0.9999),
    amp=dict(enabled=False),
    activation_checkpoint=dict(enabled=False),
    zero_optimization=dict(enabled=False, stage=1),
    nccl_fusion_threshold_mb=16,
    nccl_fusion_max_ops=24,
    rdma_enabled=False,  # between machines, by a LiBai of 0.2 or later and OneFlow built with RDMA
    dist=dict(
        # 1 for all processes that the other two leave.
        data_parallel_size=1,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        # The stage of each block, as [0,0,0,1,1,1,1,1]; None for stages of nearly equal cost.
        custom_pipeline_stage_id=None,
        # Follows from the model's depths.
        pipeline_num_layers=None,
    ),
)
