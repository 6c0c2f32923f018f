"""SegFormer (Xie et al., NeurIPS 2021): the MiT encoder and the models built on it."""

import difflib
import inspect
import zlib

import numpy as np
import oneflow as flow
from libai.config import configurable
from libai.utils import distributed as dist
from oneflow import nn
from oneflow.nn.graph import GraphModule

from projects.SegFormer.modeling.arrays import on_cpu
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.head import DecodeHead
from projects.SegFormer.modeling.layers import (
    BatchNorm,
    Conv2d,
    DepthwiseConv2d,
    DropPath,
    KeyValueLinear,
    LayerNorm,
    Linear,
    attend,
    batch_sbp,
    channels_last,
    gelu,
    placed,
    sum_gradients,
    tensor_parallel,
)
from projects.SegFormer.modeling.losses import SegmentationLoss
from projects.SegFormer.modeling.settings import check_settings

MIN_SIDE = 32  # the coarsest map has a stride of 32


class PatchEmbed(nn.Module):
    """Overlapping patches to tokens (paper section 3.1): a strided convolution and a layer norm.

    Shape: (N, H, W, C_in) -> (N, H', W', C_out), sides divided by the stride, rounded up.
    """

    def __init__(self, in_channels, embed_dim, patch_size, stride, norm_eps, *, layer_idx):
        super().__init__()
        self.proj = Conv2d(
            in_channels, embed_dim, patch_size, stride, padding=patch_size // 2, layer_idx=layer_idx
        )
        self.norm = LayerNorm(embed_dim, norm_eps, layer_idx=layer_idx)

    @on_cpu
    def forward(self, x):
        return self.norm(self.proj(x))


class EfficientSelfAttention(nn.Module):
    """Self-attention whose keys and values are reduced in space by `sr_ratio` (paper equation 2).

    The tensor-parallel ranks share the heads, where their number allows it, and the output channels
    of the reduction.

    Shape: (N, H, W, C) -> (N, H, W, C).
    """

    def __init__(self, dim, num_heads, sr_ratio, norm_eps, *, layer_idx):
        super().__init__()
        if dim % num_heads:
            raise InputError(
                f"hidden size {dim} is not divisible by {num_heads} attention heads: "
                "change hidden_sizes or num_attention_heads"
            )
        self.num_heads, self.sr_ratio = num_heads, sr_ratio
        self.scale = (dim // num_heads) ** -0.5
        split, join = (tensor_parallel(num_heads, parallel) for parallel in ("col", "row"))
        self.q = Linear(dim, dim, parallel=split, layer_idx=layer_idx)
        self.kv = KeyValueLinear(dim, dim, parallel=split, layer_idx=layer_idx)
        if sr_ratio > 1:
            self.sr = Conv2d(
                *(dim, dim, sr_ratio, sr_ratio),
                parallel=tensor_parallel(dim),
                layer_idx=layer_idx,
            )
            self.norm = LayerNorm(dim, norm_eps, layer_idx=layer_idx)
        self.proj = Linear(dim, dim, parallel=join, layer_idx=layer_idx)

    def forward(self, x):
        n, _, _, dim = x.shape
        tokens = sum_gradients(x, self.q.parallel)
        query = self.q(tokens.reshape(n, -1, dim))
        if self.sr_ratio > 1:
            both = self.sr.parallel == self.q.parallel
            reduced = self.sr(tokens if both else sum_gradients(x, self.sr.parallel))
            tokens = sum_gradients(self.norm(reduced), self.kv.parallel)
        key, value = self.kv(tokens.reshape(n, -1, dim))
        heads = self.num_heads * query.shape[-1] // dim
        return self.proj(attend(query, key, value, heads, self.scale)).reshape(*x.shape)


class DWConv(nn.Module):
    """The depthwise convolution of Mix-FFN, under the name it has in checkpoints."""

    def __init__(self, channels, *, layer_idx, parallel):
        super().__init__()
        self.dwconv = DepthwiseConv2d(channels, layer_idx=layer_idx, parallel=parallel)

    def forward(self, x):
        return self.dwconv(x)


class MixFFN(nn.Module):
    """Two linear layers with a depthwise 3x3 convolution and GELU between (paper equation 3).

    The hidden channels are split over the tensor-parallel ranks, the convolution with them.

    Shape: (N, H, W, C) -> (N, H, W, C).
    """

    def __init__(self, dim, hidden_dim, *, layer_idx):
        super().__init__()
        split, join = (tensor_parallel(hidden_dim, parallel) for parallel in ("col", "row"))
        self.dense_h_to_4h = Linear(dim, hidden_dim, parallel=split, layer_idx=layer_idx)
        self.dwconv = DWConv(hidden_dim, parallel=split, layer_idx=layer_idx)
        self.dense_4h_to_h = Linear(hidden_dim, dim, parallel=join, layer_idx=layer_idx)

    def forward(self, x):
        x = self.dense_h_to_4h(sum_gradients(x, self.dense_h_to_4h.parallel))
        return self.dense_4h_to_h(gelu(self.dwconv(x)))


class SegformerBlock(nn.Module):
    """A transformer block: attention and Mix-FFN, each normalised before and dropped by DropPath.

    Shape: x (N, H, W, C), noise (N, 2) or None -> (N, H, W, C).
    """

    def __init__(
        self, dim, num_heads, sr_ratio, mlp_ratio, drop_path, norm_eps, sr_norm_eps, *, layer_idx
    ):
        super().__init__()
        self.layer_idx = layer_idx
        self.norm1 = LayerNorm(dim, norm_eps, layer_idx=layer_idx)
        self.attn = EfficientSelfAttention(
            dim, num_heads, sr_ratio, sr_norm_eps, layer_idx=layer_idx
        )
        self.norm2 = LayerNorm(dim, norm_eps, layer_idx=layer_idx)
        self.mlp = MixFFN(dim, int(dim * mlp_ratio), layer_idx=layer_idx)
        self.drop_path = DropPath(drop_path)

    def forward(self, x, noise=None):
        placement = dist.get_layer_placement(self.layer_idx)
        noise = None if noise is None else placed(noise, placement)
        return self._branches(placed(x, placement), noise)

    @on_cpu
    def _branches(self, x, noise):
        attention_noise = mlp_noise = None
        if noise is not None:
            attention_noise, mlp_noise = noise.narrow(1, 0, 1), noise.narrow(1, 1, 1)
        x = x + self.drop_path(self.attn(self.norm1(x)), attention_noise)
        return x + self.drop_path(self.mlp(self.norm2(x)), mlp_noise)


class SegformerPreTrainModel(nn.Module):
    """The hierarchical Mix Transformer (MiT) encoder, as it is pre-trained for classification.

    Args (one entry a stage where a list is asked for):
        num_channels: channels of the images.
        depths: number of blocks.
        hidden_sizes: channels.
        num_attention_heads, sr_ratios: of the efficient self-attention.
        mlp_ratios: hidden channels of Mix-FFN over channels.
        patch_sizes, strides: of the overlapping patch embeddings.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        layer_norm_eps: of the norms in blocks and after stages.
        embed_norm_eps: of the norms after patch embedding and spatial reduction.
    Shape: images (N, C, H, W), noise (N, `noise_size`) or None -> tokens of the last stage (N, L,
        C).
    """

    def __init__(
        self,
        *,
        num_channels=3,
        depths=(2, 2, 2, 2),
        hidden_sizes=(32, 64, 160, 256),
        num_attention_heads=(1, 2, 5, 8),
        sr_ratios=(8, 4, 2, 1),
        mlp_ratios=(4, 4, 4, 4),
        patch_sizes=(7, 3, 3, 3),
        strides=(4, 2, 2, 2),
        drop_path_rate=0.1,
        layer_norm_eps=1e-6,
        embed_norm_eps=1e-5,
    ):
        super().__init__()
        check_settings(
            dict(
                num_channels=num_channels,
                depths=depths,
                hidden_sizes=hidden_sizes,
                num_attention_heads=num_attention_heads,
                sr_ratios=sr_ratios,
                mlp_ratios=mlp_ratios,
                patch_sizes=patch_sizes,
                strides=strides,
                drop_path_rate=drop_path_rate,
                layer_norm_eps=layer_norm_eps,
                embed_norm_eps=embed_norm_eps,
            )
        )
        drop_path_rates = np.linspace(0, drop_path_rate, sum(depths)).tolist()
        in_channels = [num_channels, *hidden_sizes[:-1]]
        first_blocks = np.cumsum([0, *depths[:-1]]).tolist()
        self.noise_size = 2 * sum(depths)
        self.patch_embeds = nn.ModuleList(
            [
                PatchEmbed(*sizes, embed_norm_eps, layer_idx=first)
                for *sizes, first in zip(
                    in_channels, hidden_sizes, patch_sizes, strides, first_blocks
                )
            ]
        )
        self.blocks = nn.ModuleList(
            [
                nn.ModuleList(
                    [
                        SegformerBlock(
                            hidden_sizes[stage],
                            num_attention_heads[stage],
                            sr_ratios[stage],
                            mlp_ratios[stage],
                            drop_path_rates[layer_idx],
                            layer_norm_eps,
                            embed_norm_eps,
                            layer_idx=layer_idx,
                        )
                        for layer_idx in range(first, first + depths[stage])
                    ]
                )
                for stage, first in enumerate(first_blocks)
            ]
        )
        self.layer_norms = nn.ModuleList(
            [
                LayerNorm(size, layer_norm_eps, layer_idx=first + depth - 1)
                for size, first, depth in zip(hidden_sizes, first_blocks, depths)
            ]
        )

    def forward(self, images, noise=None):
        x = self.encode(images, noise)[-1]
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def encode(self, images, noise=None):
        """The maps after each stage: [(N, H / stride, W / stride, C)], finest first."""
        height, width = images.shape[-2:]
        if min(height, width) < MIN_SIDE:
            raise InputError(
                f"images of {height}x{width} are too small: both sides must be {MIN_SIDE} or more"
            )
        return self._stages(to_input(images), noise)

    @on_cpu
    def _stages(self, images, noise):
        x = channels_last(images)
        features = []
        used = 0
        for patch_embed, blocks, norm in zip(self.patch_embeds, self.blocks, self.layer_norms):
            x = patch_embed(placed(x, patch_embed.norm.weight.placement))
            for block in blocks:
                x = block(x, None if noise is None else noise.narrow(1, used, 2))
                used += 2
            x = norm(x)
            features.append(x)
        return features


class SegformerModel(SegformerPreTrainModel):
    """The encoder as the backbone for segmentation.

    Shape: images (N, C, H, W), noise or None -> maps of all stages [(N, H_i, W_i, C_i)].
    """

    def forward(self, images, noise=None):
        return self.encode(images, noise)


def to_input(tensor):
    """A local tensor as each data-parallel rank's share of the batch; a global one as it is."""
    if tensor.is_global:
        return tensor
    return tensor.to_global(placement=dist.get_layer_placement(0), sbp=batch_sbp())


class _ConfigurableModel(nn.Module):
    """What the two models share: construction from a config, initial weights, pipeline stages."""

    @classmethod
    def from_config(cls, cfg):
        """The keyword arguments in `cfg`. Raises InputError for a name that no argument has."""
        known = cls.argument_names()
        for name in cfg:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3) or sorted(known)
                raise InputError(
                    f"{cls.__name__} has no setting {name!r}: did you mean {', '.join(near)}?"
                )
        return dict(cfg)

    @classmethod
    def argument_names(cls) -> set[str]:
        names = set()
        for owner in (*cls.__mro__, SegformerPreTrainModel):
            if owner.__module__.startswith("projects."):
                names |= set(inspect.signature(owner.__init__).parameters)
        return names - {"self", "args", "kwargs", "encoder", "segmentation"}

    def init_weights(self):
        """The initial values of the paper's code, drawn from OneFlow's seed.

        Every parameter has its own stream of random numbers, named by the parameter: the values are
        the same for every split of the ranks.
        """
        for module_name, module in self.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                stream = zlib.crc32(f"{module_name}.{name}".encode())
                rng = np.random.default_rng((flow.initial_seed(), stream))
                values = _initial_values(module_name, module, name, tuple(parameter.shape), rng)
                assign(parameter, values)

    @staticmethod
    def set_pipeline_stage_id(model):
        """Tell the graph which stage each block belongs to."""
        dist_util = dist.get_dist_util()
        for module in model.modules():
            block = module.to(nn.Module)
            if isinstance(block, SegformerBlock):
                stage = dist_util.get_layer_stage_id(block.layer_idx)
                module.to(GraphModule).set_stage(stage, dist.get_layer_placement(block.layer_idx))
            elif isinstance(block, DecodeHead):
                module.to(GraphModule).set_stage(
                    dist_util.get_layer_stage_id(-1), dist.get_layer_placement(-1)
                )


def assign(tensor, values: np.ndarray):
    """Copy `values`, the whole tensor on every rank, into a global parameter or buffer.

    Waits for it: OneFlow copies later, and a loop would leave copies of the whole model in memory.
    """
    tensor.data.copy_(
        flow.from_numpy(np.ascontiguousarray(values, np.float32)).to_global(
            placement=tensor.placement, sbp=[flow.sbp.broadcast] * tensor.placement.ranks.ndim
        )
    )
    flow._oneflow_internal.eager.Sync()


def _initial_values(module_name, module, name, shape, rng) -> np.ndarray:
    if module_name.startswith(("head.linear_c", "head.linear_pred")):
        # The paper's code leaves these as PyTorch makes them: uniform by the number of inputs.
        bound = module.in_features**-0.5
        return rng.uniform(-bound, bound, shape)
    if name == "bias":
        return np.zeros(shape)
    if isinstance(module, (LayerNorm, BatchNorm)):
        return np.ones(shape)
    if isinstance(module, Linear):
        return rng.normal(0, 0.02, shape)
    # Convolutions, the fuse layer included: normal with fan-out k * k * out / groups.
    groups = shape[0] if isinstance(module, DepthwiseConv2d) else 1
    return rng.normal(0, (2 * groups / (shape[0] * shape[2] * shape[3])) ** 0.5, shape)


class SegformerForImageClassification(_ConfigurableModel):
    """The encoder and a linear classifier on the mean of its last tokens, for ImageNet.

    Args:
        num_classes: number of classes.
        label_smoothing: share of the target that is spread over all classes.
        encoder: see SegformerPreTrainModel.
    """

    @configurable
    def __init__(self, *, num_classes=1000, label_smoothing=0.0, **encoder):
        super().__init__()
        check_settings({**encoder, "num_classes": num_classes})
        self.segformer = SegformerPreTrainModel(**encoder)
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.noise_size = self.segformer.noise_size
        channels = self.segformer.layer_norms[-1].weight.shape[0]
        self.head = Linear(channels, num_classes, layer_idx=-1)
        self.init_weights()

    def forward(self, images, labels=None, noise=None):
        """Logits, or in training with labels the loss.

        Args:
            images: (N, C, H, W) float.
            labels: (N,) class indices, or (N, num_classes) probabilities.
            noise: (N, `noise_size`) uniform in [0, 1), or None.
        Returns:
            {"losses": scalar} in training with labels, else {"prediction_scores": (N,
            num_classes)}.
        """
        tokens = self.segformer(images, noise)
        tokens = tokens.to_global(placement=dist.get_layer_placement(-1))
        logits = self.head(tokens.mean(1))
        if not self.training or labels is None:
            return {"prediction_scores": logits}
        return {"losses": self.loss(logits, to_input(labels))}

    def loss(self, logits, labels):
        """Cross entropy against class indices or probabilities."""
        log_probabilities = flow.log_softmax(logits, dim=-1)
        if labels.ndim == 1:
            labels = flow._C.one_hot(labels, self.num_classes, 1.0, 0.0).to(logits.dtype)
        smoothing = self.label_smoothing
        targets = labels * (1 - smoothing) + smoothing / self.num_classes
        return -(targets * log_probabilities).sum(-1).mean()


class SegformerForSemanticSegmentation(_ConfigurableModel):
    """The encoder and the all-MLP decode head.

    Args:
        num_classes: number of classes.
        decoder_hidden_size: channels of the head; 256 for B0 and B1, 768 for B2 to B5.
        decoder_dropout: channel dropout before the classifier.
        ignore_index: the label that counts nowhere.
        loss: keyword arguments of SegmentationLoss; None for plain cross entropy.
        encoder: see SegformerPreTrainModel.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes=150,
        decoder_hidden_size=256,
        decoder_dropout=0.1,
        ignore_index=255,
        loss=None,
        **encoder,
    ):
        super().__init__()
        sizes = dict(num_classes=num_classes, decoder_hidden_size=decoder_hidden_size)
        check_settings({**encoder, **sizes, "decoder_dropout": decoder_dropout})
        self.segformer = SegformerModel(**encoder)
        self.ignore_index = ignore_index
        self.loss = SegmentationLoss.from_config(loss, num_classes, ignore_index)
        channels = [norm.weight.shape[0] for norm in self.segformer.layer_norms]
        self.head = DecodeHead(channels, decoder_hidden_size, num_classes, decoder_dropout)
        self.noise_size = self.segformer.noise_size + decoder_hidden_size
        self.init_weights()

    def forward(self, images, labels=None, noise=None):
        """Logits, or in training with labels the loss.

        Args:
            images: (N, C, H, W) float.
            labels: (N, H, W) class indices.
            noise: (N, `noise_size`) uniform in [0, 1), what stochastic depth and dropout go by;
                None for noise of their own.
        Returns:
            what SegmentationLoss gives in training with labels, else
            {"prediction_scores": (N, num_classes, H / 4, W / 4)}, sides rounded up.
        """
        placement = dist.get_layer_placement(-1)
        features = [
            feature.to_global(placement=placement) for feature in self.segformer(images, noise)
        ]
        head_noise = None
        if noise is not None:
            start = self.segformer.noise_size
            head_noise = noise.narrow(1, start, self.noise_size - start)
            head_noise = head_noise.to_global(placement=placement)
        if not self.training or labels is None:
            return {"prediction_scores": self.head(features, head_noise, channels_first=True)}
        return self.loss(self.head(features, head_noise), to_input(labels))
