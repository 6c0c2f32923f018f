"""The training of a config with transformers' SegFormer in PyTorch, to hold ours against.

    python tools/train_transformers.py configs/segformer_camvid.py output/reference [key=value ...]

The same initial weights, samples, augmentation, schedule and parameter groups; only the network and
the noise of its dropout are transformers'. It writes the loss of every iteration and the mIoU at
the end to metrics.json, the scores of all classes to evaluation.json, and needs torch and
transformers (bash tools/setup.sh --test).
"""

import projects.SegFormer.engine.process  # noqa: F401

import json
import os

import numpy as np
import oneflow as flow
import torch
import transformers
from libai.config import instantiate
from libai.utils import distributed as dist
from torch.nn.functional import cross_entropy, interpolate
from tqdm import tqdm

from projects.SegFormer.engine import command_line
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.libai_mends import mend_libai
from projects.SegFormer.evaluation.mean_iou import MeanIoUEvaluator, format_table, write_json
from projects.SegFormer.model_utils.key_rules import HUGGINGFACE, from_here
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.modeling.errors import InputError

# Norms after patch embedding and spatial reduction, by their names in transformers.
EMBED_NORMS = ("patch_embeddings", "attention.self.layer_norm")


def main(arguments: list[str]) -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config to run")
    parser.add_argument("folder", metavar="OUTPUT", help="gets metrics.json")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    args = parser.parse_args(arguments)
    folder, cfg = args.folder, load_config(args.config, args.overrides)
    other = [
        name for name, value in cfg.model.cfg.loss.items() if value and name != "ohem_min_kept"
    ]
    if other:
        raise InputError(f"cfg.loss: {', '.join(other)} set; here the loss is plain cross entropy")
    mend_libai()
    dist.setup_dist_util(cfg.train.dist)
    flow.manual_seed(cfg.train.seed)
    loader = training_loader(cfg)
    reference = transformers_model(instantiate(cfg.model), cfg.model.cfg)
    optimizer = adamw(reference, cfg.optim)

    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "metrics.json"), "w") as metrics:
        batches = zip(range(cfg.train.train_iter), loader)
        for iteration, batch in tqdm(batches, total=cfg.train.train_iter, unit="step"):
            images, labels = (to_torch(batch, name) for name in ("images", "labels"))
            loss = train_step(reference, optimizer, images, labels, rate(cfg.train, iteration))
            print(json.dumps({"iteration": iteration + 1, "total_loss": loss}), file=metrics)
        result = evaluate(reference, instantiate_test_loader(cfg))
        print(json.dumps({"iteration": cfg.train.train_iter, "mIoU": result["mIoU"]}), file=metrics)
    write_json(result, os.path.join(folder, "evaluation.json"))
    print(format_table(result))


def transformers_model(model, settings) -> transformers.SegformerForSemanticSegmentation:
    """transformers' SegFormer with the weights of `model` and the settings of its config."""
    same_names = {
        *("num_channels", "depths", "hidden_sizes", "num_attention_heads", "sr_ratios"),
        *("mlp_ratios", "patch_sizes", "strides", "drop_path_rate", "decoder_hidden_size"),
    }
    reference = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            **{
                name: value if np.isscalar(value) else list(value)
                for name, value in settings.items()
                if name in same_names
            },
            num_labels=settings["num_classes"],
            classifier_dropout_prob=settings["decoder_dropout"],
        )
    )
    for name, module in reference.named_modules():
        if isinstance(module, torch.nn.LayerNorm):  # transformers has no setting that is read
            is_embed_norm = any(part in name for part in EMBED_NORMS)
            module.eps = settings["embed_norm_eps" if is_embed_norm else "layer_norm_eps"]
    state = from_here(state_of(model), HUGGINGFACE)
    missing, unexpected = reference.load_state_dict(
        {key: torch.from_numpy(value) for key, value in state.items()}, strict=False
    )
    left = [name for name in missing if not name.endswith("num_batches_tracked")]
    if left or unexpected:
        raise RuntimeError(f"weights do not fit: missing {left}, unexpected {unexpected}")
    return reference


def adamw(reference, optim) -> torch.optim.AdamW:
    """PyTorch's AdamW with the parameter groups of engine.optim, told by transformers' names."""
    lr, decay = optim.params.lr, optim.params.weight_decay
    groups = {"encoder": [], "norm": [], "head": []}
    for name, parameter in reference.named_parameters():
        if name.startswith("decode_head."):
            groups["head"].append(parameter)
        else:
            groups["norm" if "layer_norm" in name else "encoder"].append(parameter)
    rates = {"encoder": lr, "norm": lr, "head": lr * optim.params.head_lr_multiplier}
    return torch.optim.AdamW(
        [
            dict(params=group, initial_lr=rates[name], weight_decay=decay * (name != "norm"))
            for name, group in groups.items()
        ],
        lr=lr,
        betas=tuple(optim.betas),
        eps=optim.eps,
    )


def rate(train, iteration: int) -> float:
    """The learning rate over its base: a line to the polynomial decay, and then that."""
    total = train.train_iter
    warmup = int(np.ceil(total * train.warmup_ratio))
    power, start = train.scheduler.power, train.scheduler.warmup_factor
    if iteration < warmup:
        return start + ((1 - warmup / total) ** power - start) * iteration / warmup
    return (1 - iteration / total) ** power


def train_step(reference, optimizer, images, labels, factor: float) -> float:
    """One step of the optimizer; the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    reference.train()
    logits = reference(images).logits
    logits = interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    loss = cross_entropy(logits, labels, ignore_index=255)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def evaluate(reference, loader) -> dict:
    evaluator = MeanIoUEvaluator(loader.dataset.classes)
    reference.eval()
    for batch in loader:
        images, labels = (to_torch(batch, name) for name in ("images", "labels"))
        with torch.no_grad():
            logits = reference(images).logits
            logits = interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        evaluator.update(logits.argmax(1).numpy(), labels.numpy())
    return evaluator.evaluate()


def training_loader(cfg):
    """The loader that the trainer would have on one rank, in eager mode."""
    loader = cfg.dataloader.train
    loader.dataset.seed = loader.seed = cfg.train.seed
    loader.train_batch_size = cfg.train.global_batch_size
    return instantiate(loader)[0]


def instantiate_test_loader(cfg):
    cfg.dataloader.test[0].test_batch_size = cfg.train.test_micro_batch_size
    return instantiate(cfg.dataloader.test[0])


def to_torch(batch, name: str) -> torch.Tensor:
    return torch.from_numpy(batch.get(name).tensor.numpy())


if __name__ == "__main__":
    command_line.run(main)
