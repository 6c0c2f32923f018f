"""Weights of transformers, of the paper's authors and of LiBai: every tensor where it belongs."""

import json
import pickle
import re

import numpy as np
import oneflow as flow
import pytest
import torch
import transformers
from libai.utils.checkpoint import Checkpointer

from projects.SegFormer.model_utils.key_rules import (
    HUGGINGFACE,
    HUGGINGFACE_STAGES,
    KEY_FORMATS,
    LIBAI,
    MMSEGMENTATION,
    OFFICIAL_IMAGENET,
    OFFICIAL_SEGMENTATION,
    from_here,
    to_here,
)
from projects.SegFormer.model_utils.lazy_state import LazyState
from projects.SegFormer.model_utils.load_pretrained_imagenet1k import SegFLoaderImageNet1kPretrain
from projects.SegFormer.model_utils.model_weights import load_state, state_of
from projects.SegFormer.model_utils.segf_loader import (
    SegFLoaderHuggerFace,
    SegFLoaderLiBai,
    SegFLoaderOfficial,
    eps_in,
    load_weights,
)
from projects.SegFormer.model_utils.unwrapping import find_fit
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)
from projects.SegFormer.modeling.segformer_model import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
    SegformerPreTrainModel,
)

B0 = dict(
    depths=[2] * 4, hidden_sizes=[32, 64, 160, 256], sr_ratios=[8, 4, 2, 1], mlp_ratios=[4] * 4
)
TINY = dict(
    depths=[1, 2, 1, 1],
    hidden_sizes=[8, 12, 16, 16],
    num_attention_heads=[1, 2, 2, 4],
    sr_ratios=[4, 2, 2, 1],
    mlp_ratios=[2, 3, 4, 4],
)
SEGMENTATION = "SegformerForSemanticSegmentation"
CLASSIFICATION = "SegformerForImageClassification"
OURS = {
    SEGMENTATION: SegformerForSemanticSegmentation,
    CLASSIFICATION: SegformerForImageClassification,
}
both_kinds = pytest.mark.parametrize("kind", OURS)


def distinct(shapes: dict[str, tuple]) -> dict[str, np.ndarray]:
    """Tensors of these shapes; no two of all their elements have the same value."""
    start, state = 1, {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        state[name] = (np.arange(start, start + count) / 2**20).astype(np.float32).reshape(shape)
        start += count
    return state


def huggingface_model(kind, settings):
    config = transformers.SegformerConfig(**settings, num_labels=5, decoder_hidden_size=12)
    model = getattr(transformers, kind)(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state = distinct({name: shape for name, shape in shapes.items() if shape})
    model.load_state_dict({n: torch.tensor(v) for n, v in state.items()}, strict=False)
    return model


def huggingface_state(kind, settings):
    """Without batch norm's count of steps, which has no place here."""
    state = huggingface_model(kind, settings).state_dict()
    return {name: value.numpy() for name, value in state.items() if value.ndim}


def official_shapes(depths, hidden_sizes, sr_ratios, mlp_ratios, num_classes=5, **_):
    """The names and shapes in the paper's mit_bX.pth."""
    shapes = {}

    def add(name, *shape):
        shapes.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    channels = 3
    for stage, size in enumerate(hidden_sizes):
        kernel = 3 if stage else 7
        add(f"patch_embed{stage + 1}.proj", size, channels, kernel, kernel)
        add(f"patch_embed{stage + 1}.norm", size)
        for index in range(depths[stage]):
            block, ratio = f"block{stage + 1}.{index}", sr_ratios[stage]
            hidden = size * mlp_ratios[stage]
            add(f"{block}.norm1", size)
            add(f"{block}.attn.q", size, size)
            add(f"{block}.attn.kv", 2 * size, size)
            add(f"{block}.attn.proj", size, size)
            if ratio > 1:
                add(f"{block}.attn.sr", size, size, ratio, ratio)
                add(f"{block}.attn.norm", size)
            add(f"{block}.norm2", size)
            add(f"{block}.mlp.fc1", hidden, size)
            add(f"{block}.mlp.dwconv.dwconv", hidden, 1, 3, 3)
            add(f"{block}.mlp.fc2", size, hidden)
        add(f"norm{stage + 1}", size)
        channels = size
    add("head", num_classes, channels)
    return shapes


# ---- Where a tensor belongs, spelled out ----------------------------------------------------

# Of a stage and of a block: the names here, in transformers, and in the paper's code.
STAGE = (
    ("patch_embeds.{i}.proj", "patch_embeddings.{i}.proj", "patch_embed{I}.proj"),
    ("patch_embeds.{i}.norm", "patch_embeddings.{i}.layer_norm", "patch_embed{I}.norm"),
    ("layer_norms.{i}", "layer_norm.{i}", "norm{I}"),
)
BLOCK = (
    ("norm1", "layer_norm_1", "norm1"),
    ("attn.q", "attention.self.query", "attn.q"),
    ("attn.proj", "attention.output.dense", "attn.proj"),
    ("attn.sr", "attention.self.sr", "attn.sr"),
    ("attn.norm", "attention.self.layer_norm", "attn.norm"),
    ("norm2", "layer_norm_2", "norm2"),
    ("mlp.dense_h_to_4h", "mlp.dense1", "mlp.fc1"),
    ("mlp.dwconv.dwconv", "mlp.dwconv.dwconv", "mlp.dwconv.dwconv"),
    ("mlp.dense_4h_to_h", "mlp.dense2", "mlp.fc2"),
)
HEADS = (
    *((f"head.linear_c.{i}.proj", f"decode_head.linear_c.{i}.proj", "") for i in range(4)),
    ("head.linear_fuse", "decode_head.linear_fuse", ""),
    ("head.batch_norm", "decode_head.batch_norm", ""),
    ("head.linear_pred", "decode_head.classifier", ""),
    ("head", "classifier", "head"),
)
PREFIXES = ("segformer.", "segformer.encoder.", "")
BLOCKS = ("segformer.blocks.{i}.{j}.", "segformer.encoder.block.{i}.{j}.", "block{I}.{j}.")
TRANSFORMERS, PAPER = 1, 2  # columns of the tables


def modules(depths):
    """Rows (here, transformers, paper), of all modules whose tensors have a partner one to one."""
    for i, depth in enumerate(depths):
        for row in STAGE:
            yield [(pre + name).format(i=i, I=i + 1) for pre, name in zip(PREFIXES, row)]
        for j in range(depth):
            for row in BLOCK:
                yield [(pre + name).format(i=i, I=i + 1, j=j) for pre, name in zip(BLOCKS, row)]
    yield from HEADS


def keys_values(depths):
    """Rows (here, transformers with a `{part}`, paper) of all joint layers of keys and values."""
    for i, depth in enumerate(depths):
        for j in range(depth):
            here, theirs, paper = (pre.format(i=i, I=i + 1, j=j) for pre in BLOCKS)
            yield here + "attn.kv", theirs + "attention.self.{part}", paper + "attn.kv"


def transposed(value):
    """Linear layers are (in, out) here, convolutions as everywhere."""
    return value.T if value.ndim == 2 else value


def as_here(state, depths, column):
    expected = {}
    for row in modules(depths):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            if f"{row[column]}.{leaf}" in state:
                expected[f"{row[0]}.{leaf}"] = transposed(state[f"{row[column]}.{leaf}"])
    for row in keys_values(depths):
        for leaf in ("weight", "bias"):
            # Keys first; in the paper's code they are joined, in this order.
            parts = ("key", "value") if column == TRANSFORMERS else ("",)
            names = [f"{row[column]}.{leaf}".format(part=part) for part in parts]
            joined = np.concatenate([transposed(state[name]) for name in names], axis=-1)
            expected[f"{row[0]}.{leaf}"] = joined
    return expected


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].shape == expected[name].shape, name
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


@both_kinds
def test_every_tensor_of_transformers_lands_where_it_belongs(kind):
    state = huggingface_state(kind, B0)
    here = to_here(dict(state), HUGGINGFACE)
    assert_same(here, as_here(state, B0["depths"], TRANSFORMERS))
    assert_same(from_here(here, HUGGINGFACE), state)


def test_every_tensor_of_the_paper_lands_where_it_belongs():
    state = distinct(official_shapes(**B0))
    here = to_here(dict(state), OFFICIAL_IMAGENET)
    assert_same(here, as_here(state, B0["depths"], PAPER))
    assert_same(from_here(here, OFFICIAL_IMAGENET), state)


def test_weights_of_the_paper_compute_what_they_do_in_transformers(tmp_path):
    """An order or a layout that the tables above had wrong alike would show in the logits."""
    rng = np.random.default_rng(0)
    shapes = official_shapes(**TINY)
    state = {n: rng.normal(0, 0.4, s).astype(np.float32) for n, s in shapes.items()}
    torch.save({n: torch.tensor(value) for n, value in state.items()}, tmp_path / "mit_b0.pth")
    settings = dict(TINY, num_classes=5)
    loader = SegFLoaderImageNet1kPretrain(
        SegformerForImageClassification,
        settings,
        str(tmp_path / "mit_b0.pth"),
        layer_norm_eps=1e-5,  # transformers'
    )

    reference = huggingface_model(CLASSIFICATION, TINY).eval()
    renamed = {}
    for leaf in ("weight", "bias"):
        for _, theirs, paper in modules(TINY["depths"]):
            if f"{paper}.{leaf}" in state:
                renamed[f"{theirs}.{leaf}"] = torch.tensor(state[f"{paper}.{leaf}"])
        for _, theirs, paper in keys_values(TINY["depths"]):
            for part, half in zip(("key", "value"), np.split(state[f"{paper}.{leaf}"], 2)):
                renamed[f"{theirs}.{leaf}".format(part=part)] = torch.tensor(half)
    reference.load_state_dict(renamed)
    images = rng.normal(size=(2, 3, 48, 64)).astype(np.float32)
    with torch.no_grad():
        expected = reference.double()(torch.tensor(images).double()).logits.numpy()
    actual = loader.load()(flow.tensor(images))["prediction_scores"].numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@both_kinds
@pytest.mark.parametrize(
    "key_format", [LIBAI, HUGGINGFACE, OFFICIAL_IMAGENET], ids=lambda f: f.name
)
def test_every_key_of_a_model_has_a_name_and_comes_back(kind, key_format):
    state = state_of(OURS[kind](**B0))
    if kind == SEGMENTATION and key_format is OFFICIAL_IMAGENET:
        with pytest.raises(InputError, match=r"official ImageNet-1K.*head\."):
            from_here(state, key_format)
    else:
        assert_same(to_here(from_here(state, key_format), key_format), state)


def test_half_of_a_pair(tmp_path):
    """It is named with all else that does not fit, and the rest is loaded when not strict."""
    model = huggingface_model(SEGMENTATION, TINY)
    model.save_pretrained(tmp_path, safe_serialization=False)
    state = model.state_dict()
    half = "segformer.encoder.block.1.0.attention.self.{}.weight"
    del state[half.format("key")], state["decode_head.classifier.bias"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError) as caught:
        load_folder(tmp_path)
    missing = "head.linear_pred.bias, segformer.blocks.1.0.attn.kv.weight"
    assert f"2 missing: {missing}; 1 unexpected: {half.format('value')}" in str(caught.value)
    loaded = state_of(load_folder(tmp_path, strict=False))
    for name, value in tiny_here(SEGMENTATION).items():
        assert (loaded[name] == value).all() == (name not in missing.split(", ")), name


# ---- Other names of the same tensors --------------------------------------------------------

# What transformers 5.10 renamed, as its own conversion of older checkpoints has it.
STAGES = (
    (r"encoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
    (r"encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
    (r"encoder\.layer_norm\.(\d+)", r"stages.\1.layer_norm"),
    (r"attention\.self\.(query|key|value)", lambda match: f"attention.{match[1][0]}_proj"),
    (r"attention\.self\.sr", "attention.sequence_reduction.sequence_reduction"),
    (r"attention\.self\.layer_norm", "attention.sequence_reduction.layer_norm"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"mlp\.dense(\d)", r"mlp.fc\1"),
    (r"layer_norm_1", "layernorm_before"),
    (r"layer_norm_2", "layernorm_after"),
    (r"decode_head\.linear_c", "decode_head.linear_projections"),
)


def by_stages(state):
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in STAGES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


@both_kinds
def test_keys_by_stages(kind):
    state = huggingface_state(kind, B0)
    renamed = by_stages(state)
    assert len(renamed) == len(state) and not renamed.keys() & {n for n in state if "block" in n}
    expected = to_here(state, HUGGINGFACE)
    assert_same(to_here(renamed, HUGGINGFACE_STAGES), expected)
    assert_same(from_here(expected, HUGGINGFACE_STAGES), renamed)
    # With the encoder still a module of its own, and the head's layers under their old name.
    between = {
        name.replace("segformer.stages", "segformer.encoder.stages").replace(
            "linear_projections", "linear_c"
        ): value
        for name, value in renamed.items()
    }
    assert_same(to_here(between, HUGGINGFACE_STAGES), expected)


def as_mmsegmentation(depths, paper):
    """A checkpoint of the paper's encoder as mmsegmentation has it."""
    state = {}

    def move(theirs, name, layout=lambda value: value):
        for leaf in ("weight", "bias"):
            if f"{name}.{leaf}" in paper:
                state[f"{theirs}.{leaf}"] = layout(paper[f"{name}.{leaf}"])

    def pointwise(value):
        return value[:, :, None, None] if value.ndim == 2 else value

    for i, depth in enumerate(depths):
        move(f"layers.{i}.0.projection", f"patch_embed{i + 1}.proj")
        move(f"layers.{i}.0.norm", f"patch_embed{i + 1}.norm")
        for j in range(depth):
            block, theirs = f"block{i + 1}.{j}", f"layers.{i}.1.{j}"
            for leaf in ("weight", "bias"):  # of nn.MultiheadAttention: query, key, value
                parts = [paper[f"{block}.attn.{name}.{leaf}"] for name in ("q", "kv")]
                state[f"{theirs}.attn.attn.in_proj_{leaf}"] = np.concatenate(parts)
            move(f"{theirs}.attn.attn.out_proj", f"{block}.attn.proj")
            for name in ("norm1", "attn.sr", "attn.norm", "norm2"):
                move(f"{theirs}.{name}", f"{block}.{name}")
            move(f"{theirs}.ffn.layers.0", f"{block}.mlp.fc1", pointwise)
            move(f"{theirs}.ffn.layers.1", f"{block}.mlp.dwconv.dwconv")
            move(f"{theirs}.ffn.layers.4", f"{block}.mlp.fc2", pointwise)
        move(f"layers.{i}.2", f"norm{i + 1}")
    return state


def test_keys_of_mmsegmentation():
    paper = distinct(official_shapes(**B0))
    del paper["head.weight"], paper["head.bias"]
    state = as_mmsegmentation(B0["depths"], paper)
    here = to_here(state, MMSEGMENTATION)
    assert_same(here, to_here(paper, OFFICIAL_IMAGENET))
    assert_same(from_here(here, MMSEGMENTATION), state)
    backbone = {f"backbone.{name}": value for name, value in state.items()}
    assert_same(to_here(backbone, MMSEGMENTATION), here)


def as_official_segmentation(depths, state):
    """transformers' state as the paper's segmentation checkpoint."""
    official = {}
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        for _, theirs, paper in modules(depths):
            if f"{theirs}.{leaf}" in state and paper:
                official[f"backbone.{paper}.{leaf}"] = state[f"{theirs}.{leaf}"]
        for name, paper in (
            *((f"linear_c.{i}.proj", f"linear_c{i + 1}.proj") for i in range(4)),
            ("linear_fuse", "linear_fuse.conv"),
            ("batch_norm", "linear_fuse.bn"),
            ("classifier", "linear_pred"),
        ):
            if f"decode_head.{name}.{leaf}" in state:
                official[f"decode_head.{paper}.{leaf}"] = state[f"decode_head.{name}.{leaf}"]
    for leaf in ("weight", "bias"):
        for _, theirs, paper in keys_values(depths):
            parts = [state[f"{theirs}.{leaf}".format(part=part)] for part in ("key", "value")]
            official[f"backbone.{paper}.{leaf}"] = np.concatenate(parts)
    return official


def test_keys_of_the_papers_segmentation():
    state = huggingface_state(SEGMENTATION, B0)
    official = as_official_segmentation(B0["depths"], state)
    here = to_here(official, OFFICIAL_SEGMENTATION)
    assert_same(here, to_here(state, HUGGINGFACE))
    assert_same(from_here(here, OFFICIAL_SEGMENTATION), official)


def test_linear_weights_as_a_later_libai_has_them():
    state = tiny_here(SEGMENTATION)
    # A bias or a convolution is no matrix; of two axes are the weights of Linear alone.
    turned = {name: np.ascontiguousarray(transposed(value)) for name, value in state.items()}
    key_format = find_fit({n: v.shape for n, v in turned.items()}, "checkpoint").key_format
    assert_same(to_here(turned, key_format), state)


@pytest.mark.parametrize("key_format", KEY_FORMATS, ids=lambda f: f.name)
def test_formats_are_told_by_their_keys(key_format):
    encoder = {k: v for k, v in tiny_here(SEGMENTATION).items() if k.startswith("segformer.")}
    keys = from_here(encoder, key_format)
    shapes = {name: value.shape for name, value in keys.items()}
    fit = find_fit(shapes, "weights")
    assert fit.key_format is key_format and fit.prefix == "" and set(fit.keys) == set(shapes)


# ---- Loaders --------------------------------------------------------------------------------


def load_folder(path, **options):
    return SegFLoaderHuggerFace(SegformerForSemanticSegmentation, {}, str(path), **options).load()


def tiny_here(kind):
    """What the tiny model of transformers is here."""
    return as_here(huggingface_state(kind, TINY), TINY["depths"], TRANSFORMERS)


@both_kinds
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("shard, index", [("1GB", ""), ("20KB", ".index.json")])
def test_folder_of_transformers(tmp_path, kind, file, shard, index):
    """Sizes and number of classes come from its config.json, eps from what transformers does."""
    is_safe = file.endswith(".safetensors")
    reference = huggingface_model(kind, TINY)
    reference.save_pretrained(tmp_path, max_shard_size=shard, safe_serialization=is_safe)
    assert (tmp_path / (file + index)).is_file()
    model = SegFLoaderHuggerFace(OURS[kind], {"num_classes": 150}, str(tmp_path)).load()
    assert_same(state_of(model), tiny_here(kind))
    assert not model.training
    assert model.segformer.layer_norms[0].eps == model.segformer.patch_embeds[0].norm.eps == 1e-5


def test_settings_go_over_what_is_stored(tmp_path):
    huggingface_model(SEGMENTATION, TINY).save_pretrained(tmp_path)
    model = load_folder(tmp_path, layer_norm_eps=1e-3)
    assert model.segformer.layer_norms[0].eps == 1e-3


PAPER_STATE = distinct(official_shapes(**TINY, num_classes=1000))


@pytest.fixture
def paper_file(tmp_path):
    """mit_b0.pth in a folder of its own."""
    path = tmp_path / "pretrained" / "mit_b0.pth"
    path.parent.mkdir()
    torch.save({name: torch.tensor(value) for name, value in PAPER_STATE.items()}, path)
    return path


@pytest.mark.parametrize("place", ["file", "folder", "pytorch_model.bin"])
def test_imagenet_weights_fill_the_encoder_and_leave_the_head(paper_file, place):
    path = paper_file if place == "file" else paper_file.parent
    if place == "pytorch_model.bin":
        paper_file.rename(path / place)
    settings = dict(TINY, decoder_hidden_size=12, num_classes=5)
    flow.manual_seed(3)
    bare = state_of(SegformerSegmentationLoadImageNetPretrain(**settings))
    flow.manual_seed(3)
    model = SegformerSegmentationLoadImageNetPretrain(**settings, pretrained_model_path=str(path))
    paper = as_here(PAPER_STATE, TINY["depths"], PAPER)
    expected = {n: paper[n] if n.startswith("segformer.") else bare[n] for n in bare}
    assert_same(state_of(model), expected)


@pytest.mark.parametrize(
    "rename, eps",
    [(None, (1e-6, 1e-5)), (as_mmsegmentation, (1e-6, 1e-6))],
    ids=["paper", "mmsegmentation"],
)
def test_eps_comes_with_the_weights(paper_file, rename, eps):
    if rename:
        state = rename(TINY["depths"], PAPER_STATE)
        torch.save({name: torch.tensor(value) for name, value in state.items()}, paper_file)
    model = SegFLoaderImageNet1kPretrain(
        SegformerModel, dict(TINY, layer_norm_eps=1e-3), str(paper_file)
    ).load()
    assert (model.layer_norms[0].eps, model.patch_embeds[0].norm.eps) == eps


def test_imagenet_weights_fill_a_classifier(paper_file):
    ours, settings = SegformerForImageClassification, dict(TINY, num_classes=1000)
    model = SegFLoaderImageNet1kPretrain(ours, settings, str(paper_file)).load()
    assert_same(state_of(model), as_here(PAPER_STATE, TINY["depths"], PAPER))
    assert not model.training


@pytest.fixture
def libai_checkpoint(tmp_path):
    """A model with random weights, its settings, and the folder where it is."""
    settings = dict(TINY, decoder_hidden_size=12, num_classes=5)
    model = SegformerForSemanticSegmentation(**settings)
    values = distinct({n: v.shape for n, v in state_of(model).items()})
    load_state(model, lambda: LazyState.of(values), "test")
    local = {name: flow.tensor(value) for name, value in state_of(model).items()}
    flow.save(local, str(tmp_path / "checkpoint" / "model"))
    return model, settings, str(tmp_path / "checkpoint")


def test_checkpoint_of_libai(libai_checkpoint):
    model, settings, path = libai_checkpoint
    loaded = SegFLoaderLiBai(SegformerForSemanticSegmentation, settings, path).load()
    assert_same(state_of(loaded), state_of(model))
    assert not loaded.training


def test_checkpoint_that_libai_itself_wrote(libai_checkpoint, tmp_path):
    """As the first port's: global tensors, and batch norm's count of batches beside its others."""
    model, settings, _ = libai_checkpoint
    model.head.batch_norm.register_buffer(
        "num_batches_tracked",
        flow.tensor(7, placement=flow.placement("cpu", [0]), sbp=flow.sbp.broadcast),
    )
    Checkpointer(model, str(tmp_path)).save("model_0000099")
    path = str(tmp_path / "model_0000099")
    loaded = SegFLoaderLiBai(SegformerForSemanticSegmentation, settings, path).load()
    expected = state_of(model)
    assert expected.pop("head.batch_norm.num_batches_tracked") == 7
    assert_same(state_of(loaded), expected)


@both_kinds
def test_bare_encoder(kind, tmp_path):
    """Of a whole model a bare encoder takes its part, and of a bare encoder's folder all."""
    reference = huggingface_model(kind, TINY)
    reference.save_pretrained(tmp_path / "whole")
    reference.segformer.save_pretrained(tmp_path / "bare")
    here = {n: v for n, v in tiny_here(kind).items() if n.startswith("segformer.")}
    for path in (tmp_path / "whole", tmp_path / "bare"):
        for ours in (SegformerModel, SegformerPreTrainModel):
            state = state_of(SegFLoaderHuggerFace(ours, {"num_classes": 4}, str(path)).load())
            assert_same({f"segformer.{name}": value for name, value in state.items()}, here)
    with pytest.raises(InputError, match=r"bare.*missing: head\."):
        SegFLoaderHuggerFace(OURS[kind], {}, str(tmp_path / "bare")).load()


@both_kinds
def test_another_number_of_classes(kind, tmp_path, caplog):
    """It is an error, or by wish the classifier alone starts fresh, and the log says so."""
    huggingface_model(kind, TINY).save_pretrained(tmp_path)
    settings = {"num_classes": 9}
    assert SegFLoaderHuggerFace(OURS[kind], settings, str(tmp_path)).load() is not None  # its 5
    with pytest.raises(InputError, match=r"of another shape: head\."):
        SegFLoaderHuggerFace(OURS[kind], {}, str(tmp_path), num_classes=9).load()
    flow.manual_seed(3)
    loader = SegFLoaderHuggerFace(OURS[kind], settings, str(tmp_path), ignore_mismatched_head=True)
    model = loader.load()
    flow.manual_seed(3)
    head = {"decoder_hidden_size": 12} if kind == SEGMENTATION else {}
    fresh = state_of(OURS[kind](**TINY, **head, **settings))
    classifier = "head.linear_pred." if kind == SEGMENTATION else "head."
    expected = {
        name: fresh[name] if name.startswith(classifier) else value
        for name, value in tiny_here(kind).items()
    }
    assert_same(state_of(model), expected)
    (message,) = [r.message for r in caplog.records if "starts fresh" in r.message]
    assert f"{classifier}weight" in message and f"{classifier}bias" in message

    # Another width is no other number of classes.
    with pytest.raises(InputError, match=r"of another shape:"):
        SegFLoaderHuggerFace(
            OURS[kind],
            settings,
            str(tmp_path),
            ignore_mismatched_head=True,
            hidden_sizes=[8, 12, 16, 20],
        ).load()


def test_folder_of_transformers_for_fine_tuning(tmp_path, caplog):
    """pretrained_model_path takes any format, and the eps of the weights' code, with a word."""
    huggingface_model(CLASSIFICATION, TINY).save_pretrained(tmp_path)
    settings = dict(TINY, decoder_hidden_size=12, pretrained_model_path=str(tmp_path))
    caplog.set_level("INFO", "libai")
    model = SegformerSegmentationLoadImageNetPretrain(**settings)
    state = state_of(model)
    for name, value in tiny_here(CLASSIFICATION).items():
        if name.startswith("segformer."):
            np.testing.assert_array_equal(state[name], value, err_msg=name)
    assert eps_in(model) == (1e-5, 1e-5)
    assert "(1e-05, 1e-05), which are taken; the config has (1e-06, 1e-05)" in caplog.text


def test_half_precision(tmp_path):
    """float16 and bfloat16 become the float32 that they are."""
    for dtype in (torch.float16, torch.bfloat16):
        reference = huggingface_model(SEGMENTATION, TINY).to(dtype)
        expected = {n: v.float().numpy() for n, v in reference.state_dict().items() if v.ndim}
        for is_safe in (True, False):
            path = tmp_path / f"{dtype}{is_safe}"
            reference.save_pretrained(path, safe_serialization=is_safe)
            assert_same(
                state_of(load_folder(path)), as_here(expected, TINY["depths"], TRANSFORMERS)
            )


def test_format_is_told_by_the_folder(libai_checkpoint, tmp_path):
    model, settings, path = libai_checkpoint
    settings |= dict(pretrained_model_path="not read")
    assert_same(state_of(load_weights(settings, path)), state_of(model))
    huggingface_model(SEGMENTATION, TINY).save_pretrained(tmp_path / "huggingface")
    state = state_of(load_weights(settings, str(tmp_path / "huggingface")))
    assert_same(state, tiny_here(SEGMENTATION))


# ---- Weights that cannot be used ------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    huggingface_model(SEGMENTATION, TINY).save_pretrained(tmp_path)
    return tmp_path


def write_torch(folder, value):
    """`value` in place of the folder's weights."""
    (folder / "model.safetensors").unlink()
    torch.save(value, folder / "pytorch_model.bin")


@pytest.fixture
def misfit(folder):
    """One tensor is missing, one is too many, one is of another shape."""
    state = huggingface_model(SEGMENTATION, TINY).state_dict()
    del state["segformer.encoder.block.1.1.layer_norm_2.bias"]
    state["segformer.encoder.block.1.2.layer_norm_2.bias"] = torch.zeros(12)
    state["decode_head.linear_fuse.weight"] = torch.zeros(12, 36, 1, 1)
    write_torch(folder, state)
    return folder


def test_keys_that_do_not_fit_are_all_named(misfit):
    with pytest.raises(InputError) as caught:
        load_folder(misfit)
    message = str(caught.value)
    assert "\n" not in message
    assert str(misfit) in message
    assert "1 missing: segformer.blocks.1.1.norm2.bias" in message
    assert "1 unexpected: segformer.blocks.1.2.norm2.bias" in message
    assert "head.linear_fuse.weight (12, 36, 1, 1) for (12, 48, 1, 1)" in message


def test_what_fits_is_loaded_when_not_strict(misfit):
    flow.manual_seed(0)
    state = state_of(load_folder(misfit, strict=False))
    left = {"segformer.blocks.1.1.norm2.bias", "head.linear_fuse.weight"}
    for name, value in tiny_here(SEGMENTATION).items():
        assert (state[name] == value).all() == (name not in left), name


def test_imagenet_weights_of_another_size(paper_file):
    with pytest.raises(InputError, match=r"mit_b0\.pth.*missing: segformer\.blocks\.0\.1\."):
        SegformerSegmentationLoadImageNetPretrain(
            **dict(TINY, depths=[2, 2, 1, 1]), pretrained_model_path=str(paper_file)
        )


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no weights at .*nowhere\.pth"):
        SegformerSegmentationLoadImageNetPretrain(
            **TINY, pretrained_model_path=str(tmp_path / "nowhere.pth")
        )
    with pytest.raises(InputError, match=r"no weights in .*pytorch_model\.bin.*\.pth"):
        SegformerSegmentationLoadImageNetPretrain(**TINY, pretrained_model_path=str(tmp_path))


def test_folder_without_config(tmp_path, folder):
    (folder / "config.json").unlink()
    for path in (folder, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"config\.json.*save_pretrained"):
            load_folder(path)


def test_folder_with_a_broken_config(folder):
    (folder / "config.json").write_text('{"depths": [2')
    with pytest.raises(InputError, match=r"config\.json"):
        load_folder(folder)


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no weights in .*model\.safetensors"):
        load_folder(folder)


@pytest.mark.parametrize(
    "options", [{}, {"safe_serialization": False}], ids=["safetensors", "torch"]
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_file(tmp_path, options, share):
    huggingface_model(SEGMENTATION, TINY).save_pretrained(tmp_path, **options)
    file = next(path for path in tmp_path.iterdir() if path.suffix != ".json")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=file.name):
        load_folder(tmp_path)


def test_shard_that_is_missing(tmp_path):
    huggingface_model(SEGMENTATION, TINY).save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(InputError, match=rf"index\.json names {shard.name}"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "{}", "[" * 9999, '{"weight_map": [1]}', '{"weight_map": {"a": 1}}']
)
def test_broken_index(tmp_path, content):
    huggingface_model(SEGMENTATION, TINY).save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=r"index\.json"):
        load_folder(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {1: torch.zeros(2)}], ids=repr)
def test_file_that_holds_something_else(folder, content):
    write_torch(folder, content)
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        load_folder(folder)


def test_state_dict_with_other_things_beside_it(folder):
    state = huggingface_model(SEGMENTATION, TINY).state_dict()
    write_torch(folder, {"state_dict": state, "meta": {"epoch": 3}})
    assert_same(state_of(load_folder(folder)), tiny_here(SEGMENTATION))


@pytest.mark.parametrize(
    "name, shape",
    [
        ("segformer.encoder.block.0.0.attention.self.key.weight", (8, 4)),
        ("segformer.encoder.block.0.0.attention.self.key.weight", ()),
        ("segformer.encoder.block.0.0.attention.self.query.weight", (8, 8, 3, 3)),
        ("decode_head.linear_c.0.proj.weight", (12,)),
    ],
)
def test_tensor_of_another_shape(folder, name, shape):
    state = huggingface_model(SEGMENTATION, TINY).state_dict()
    write_torch(folder, state | {name: torch.zeros(shape)})
    with pytest.raises(InputError, match=r"does not fit the model: .*(of another shape|missing): "):
        load_folder(folder)


@pytest.mark.parametrize("is_safe", [True, False], ids=["safetensors", "torch"])
def test_tensor_of_another_type(tmp_path, is_safe):
    model = huggingface_model(SEGMENTATION, TINY)
    name = "segformer.encoder.block.1.0.mlp.dense1.weight"
    model.get_submodule(name.rpartition(".")[0]).weight = torch.nn.Parameter(
        torch.zeros(36, 12, dtype=torch.int8), requires_grad=False
    )
    model.save_pretrained(tmp_path, safe_serialization=is_safe)
    with pytest.raises(InputError, match=rf"{re.escape(name)} is of type .*, expected floating"):
        load_folder(tmp_path)


def test_weights_that_are_not_finite(folder, caplog):
    """They may be what somebody looks for, so they are loaded, with a word about them."""
    state = huggingface_model(SEGMENTATION, TINY).state_dict()
    state["decode_head.classifier.bias"][1] = np.nan
    write_torch(folder, state)
    assert np.isnan(state_of(load_folder(folder))["head.linear_pred.bias"]).sum() == 1
    assert "head.linear_pred.bias is not finite" in caplog.text


def test_same_tensor_in_two_files_or_under_two_names(tmp_path, folder):
    model = huggingface_model(SEGMENTATION, TINY)
    state = model.state_dict()
    name = "decode_head.classifier.bias"
    write_torch(folder, state | {f"module.{name}": state[name] + 1})
    with pytest.raises(InputError, match=r"hold head\.linear_pred\.bias twice"):
        load_folder(folder)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB", safe_serialization=False)
    shard = sorted((tmp_path / "sharded").glob("pytorch_model-*.bin"))[0]
    torch.save(torch.load(shard) | {name: state[name]}, shard)
    with pytest.raises(InputError, match=rf"{re.escape(name)} in two files"):
        load_folder(tmp_path / "sharded")


def test_state_of_parameters(folder):
    write_torch(folder, dict(huggingface_model(SEGMENTATION, TINY).state_dict(keep_vars=True)))
    assert_same(state_of(load_folder(folder)), tiny_here(SEGMENTATION))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_page_in_place_of_a_download(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_text("<!DOCTYPE html><title>Too many downloads</title>")
    with pytest.raises(InputError, match=rf"{re.escape(name)} is no .*: download it again"):
        load_folder(folder)


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "bare pickle"])
def test_code_in_a_torch_file_does_not_run(folder, is_zip):
    victim = folder / "victim"
    write_torch(folder, {"weight": Malicious(victim)})
    if not is_zip:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Malicious(victim)}))
    with pytest.raises(InputError, match=r"pytorch_model\.bin is refused.*could run code"):
        load_folder(folder)
    assert not victim.exists()
    pickle.loads(pickle.dumps(Malicious(victim))).close()
    assert victim.exists()  # it would have


def test_broken_checkpoint_of_libai(libai_checkpoint, tmp_path):
    _, settings, path = libai_checkpoint
    with pytest.raises(InputError, match=r"no weights at .*nowhere"):
        load_weights(settings, str(tmp_path / "nowhere"))
    for file in (tmp_path / "checkpoint" / "model").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(InputError, match="checkpoint"):
        load_weights(settings, path)


def test_code_in_a_checkpoint_of_libai_does_not_run(libai_checkpoint, tmp_path):
    _, settings, path = libai_checkpoint
    victim = tmp_path / "victim"
    pickled = tmp_path / "checkpoint" / "model" / "pickled_data"
    pickled.write_bytes(pickle.dumps({"protocol_version": 1, "data": {"a": Malicious(victim)}}))
    with pytest.raises(InputError, match=r"refused: it holds .*open, which could run code"):
        SegFLoaderLiBai(SegformerForSemanticSegmentation, settings, path).load()
    assert not victim.exists()


def test_several_files_to_choose_from(paper_file):
    (paper_file.parent / "mit_b1.pth").write_bytes(paper_file.read_bytes())
    with pytest.raises(InputError, match=r"holds mit_b0\.pth, mit_b1\.pth: say which"):
        SegformerSegmentationLoadImageNetPretrain(
            **TINY, pretrained_model_path=str(paper_file.parent)
        )


def test_weights_of_another_network(folder):
    write_torch(folder, torch.nn.Linear(2, 3).state_dict())
    with pytest.raises(InputError, match=r"no SegFormer weights: its keys \(bias, weight\)"):
        load_folder(folder)


def test_file_without_a_tensor(folder):
    write_torch(folder, {})
    with pytest.raises(InputError, match=r"no SegFormer weights: its keys \(none at all\)"):
        load_folder(folder)


def test_head_of_mmsegmentation(tmp_path):
    """Its backbone is ours, its decode head is another network."""
    state = as_mmsegmentation(TINY["depths"], PAPER_STATE)
    state = {f"backbone.{name}": torch.tensor(value) for name, value in state.items()}
    state["decode_head.convs.0.bn.weight"] = torch.ones(12)
    torch.save({"state_dict": state}, tmp_path / "segformer.pth")
    settings = dict(TINY, decoder_hidden_size=12, num_classes=5)
    with pytest.raises(InputError, match=r"unexpected: decode_head\.convs\.0\.bn\.weight"):
        SegFLoaderOfficial(SegformerForSemanticSegmentation, settings, str(tmp_path)).load()
    model = SegformerSegmentationLoadImageNetPretrain(
        **settings, pretrained_model_path=str(tmp_path)
    )
    paper = as_here(PAPER_STATE, TINY["depths"], PAPER)
    name = "segformer.blocks.1.1.attn.kv.weight"
    np.testing.assert_array_equal(state_of(model)[name], paper[name])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "vit"}, r"config\.json is of a 'vit' model: expected 'segformer'"),
        ({"hidden_act": "relu"}, r"config\.json has the activation 'relu'"),
        ({"sr_ratios": [4, 2]}, r"config\.json of .* has sr_ratios \[4, 2\]: expected 4 numbers"),
        ({"depths": "2222"}, r"has depths '2222': expected 4 numbers above 0"),
        ({"strides": [4, 2, 0, 2]}, r"has strides .*: expected 4 numbers above 0"),
        ({"num_channels": "3"}, r"has num_channels '3': expected a whole number"),
        ({"num_encoder_blocks": 5}, r"has depths .*: expected 5 numbers"),
        ({"num_encoder_blocks": "4"}, r"expected a whole number above 0 for num_encoder_blocks"),
        ({"drop_path_rate": 1.5}, r"has drop_path_rate 1\.5: expected a number from 0"),
        ({"id2label": ["a"]}, r"has an id2label that is not names by number"),
        ({"id2label": None, "num_labels": "x"}, r"has num_labels 'x': expected a number"),
        (
            {"num_attention_heads": [3, 2, 2, 4]},
            r"config of .*: hidden size 8 is not divisible by 3",
        ),
        ({"depths": [1, 2, 1, 3]}, r"missing: segformer\.blocks\.3\.1"),
        ({"decoder_hidden_size": 24}, r"of another shape: head\.batch_norm"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_config_json_that_does_not_fit(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        load_folder(folder)


def test_setting_that_no_model_has(folder):
    with pytest.raises(InputError, match=r"no setting 'hiden_sizes': is it hidden_sizes"):
        load_folder(folder, hiden_sizes=[1, 2])
