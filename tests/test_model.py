"""The network against transformers' SegFormer in float64: structure, logits, gradients."""

import copy
import re
from functools import partial

import numpy as np
import oneflow as flow
import pytest
import torch
import transformers
from libai.config import LazyConfig, instantiate
from libai.utils import distributed as dist
from omegaconf import OmegaConf

from conftest import ROOT
from projects.SegFormer.engine.graph import SegformerGraph
from projects.SegFormer.model_utils.key_rules import HUGGINGFACE, from_here, to_here
from projects.SegFormer.model_utils.lazy_state import LazyState
from projects.SegFormer.model_utils.model_weights import load_state, state_of
from projects.SegFormer.modeling import arrays
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.layers import broadcast_sbp
from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)
from projects.SegFormer.modeling.segformer_model import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)

torch.set_num_threads(1)  # several wait for each other where the cores are busy

# The paper's tables 6 and 1: depths, channels, the head's channels, and millions of parameters.
PAPER = {
    "b0": ([2, 2, 2, 2], [32, 64, 160, 256], 256, 3.4, 0.4),
    "b1": ([2, 2, 2, 2], [64, 128, 320, 512], 256, 13.1, 0.6),
    "b2": ([3, 4, 6, 3], [64, 128, 320, 512], 768, 24.2, 3.3),
    "b3": ([3, 4, 18, 3], [64, 128, 320, 512], 768, 44.0, 3.3),
    "b4": ([3, 8, 27, 3], [64, 128, 320, 512], 768, 60.8, 3.3),
    "b5": ([3, 6, 40, 3], [64, 128, 320, 512], 768, 81.4, 3.3),
}
B0 = dict(depths=[2, 2, 2, 2], hidden_sizes=[32, 64, 160, 256])
# Nothing here follows from anything else, and the two eps are large enough to show.
IRREGULAR = dict(
    num_channels=4,
    depths=[1, 2, 1, 2],
    hidden_sizes=[12, 20, 24, 40],
    num_attention_heads=[1, 2, 3, 5],
    sr_ratios=[4, 3, 2, 1],
    mlp_ratios=[2, 4, 3, 1],
    patch_sizes=[7, 3, 5, 3],
    strides=[4, 2, 2, 2],
    layer_norm_eps=0.1,
    embed_norm_eps=0.3,
)
TINY = dict(
    depths=[1, 2, 1, 1],
    hidden_sizes=[8, 8, 16, 16],
    num_attention_heads=[1, 2, 2, 4],
    decoder_hidden_size=12,
    num_classes=7,
)
SEGMENTATION = (SegformerForSemanticSegmentation, transformers.SegformerForSemanticSegmentation)
CLASSIFICATION = (SegformerForImageClassification, transformers.SegformerForImageClassification)


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---- Structure ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
@pytest.mark.parametrize(
    "size", [pytest.param(s, marks=[pytest.mark.slow] if s > "b2" else []) for s in PAPER]
)
def test_structure_and_parameter_counts(size, kind):
    """The tensors of every config are those of transformers, in name and shape."""
    depths, hidden_sizes, head_size, encoder_millions, head_millions = PAPER[size]
    if kind == "segmentation":
        reference_class, classes = SEGMENTATION[1], 150
        file = ROOT / "configs/models" / f"mit_{size}.py"
    else:
        reference_class, classes = CLASSIFICATION[1], 1000
        file = ROOT / "configs/models/classification" / f"mit_cls_{size}.py"
    config = transformers.SegformerConfig(
        depths=depths, hidden_sizes=hidden_sizes, decoder_hidden_size=head_size, num_labels=classes
    )
    with transformers.modeling_utils.no_init_weights():
        expected = {
            name: tuple(tensor.shape)
            for name, tensor in reference_class(config).state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
    model = instantiate(LazyConfig.load(str(file)).model)
    state = from_here(state_of(model), HUGGINGFACE)
    assert {name: value.shape for name, value in state.items()} == expected

    assert [len(blocks) for blocks in model.segformer.blocks] == depths
    if kind == "segmentation":
        counts = {"segformer": 0, "head": 0}
        for name, parameter in model.named_parameters():
            counts[name.split(".")[0]] += parameter.numel()
        assert counts["segformer"] / 1e6 == pytest.approx(encoder_millions, abs=0.1)
        assert counts["head"] / 1e6 == pytest.approx(head_millions, abs=0.15)


# ---- The same numbers as transformers -------------------------------------------------------


def random_pair(classes, settings):
    """A model and transformers' in float64 with the same random weights, no initial value left."""
    ours_class, reference_class = classes
    same_names = {name: value for name, value in settings.items() if not name.endswith("_eps")}
    no_dropout = {"decoder_dropout": 0.0} if classes is SEGMENTATION else {}
    model = ours_class(**settings, **no_dropout, num_classes=7, drop_path_rate=0.0)
    reference = reference_class(
        transformers.SegformerConfig(
            **same_names, num_labels=7, drop_path_rate=0.0, classifier_dropout_prob=0.0
        )
    )
    torch.manual_seed(0)
    for name, module in reference.named_modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim > 1:
                parameter.data.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
            else:
                is_norm_weight = parameter is module.weight
                parameter.data.normal_(1 if is_norm_weight else 0, 0.3)
        if isinstance(module, torch.nn.LayerNorm):
            # After a patch embedding or a reduction; the others are in blocks and after stages.
            is_embed_norm = ".patch_embeddings." in name or ".self." in name
            default = 1e-5 if is_embed_norm else 1e-6
            module.eps = settings.get(
                "embed_norm_eps" if is_embed_norm else "layer_norm_eps", default
            )
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    state = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    load_state(model, lambda: LazyState.of(to_here(state, HUGGINGFACE)), "transformers")
    return model, reference.double()


@pytest.fixture(scope="module", params=[B0, IRREGULAR], ids=["B0", "irregular"])
def settings(request):
    return request.param


@pytest.fixture(scope="module")
def segmentation(settings):
    return random_pair(SEGMENTATION, settings)


@pytest.fixture(scope="module")
def classification(settings):
    return random_pair(CLASSIFICATION, settings)


def make_images(settings, batch, size):
    return normal(batch, settings.get("num_channels", 3), *size)


def make_labels(batch, size, num_classes=7):
    labels = np.random.default_rng(1).integers(0, num_classes, (batch, *size))
    labels[0, : size[0] // 3] = 255
    return labels


def assert_close(actual, expected, tolerance=4e-6):
    """Equal to `tolerance` of the largest expected value."""
    assert actual.shape == tuple(expected.shape)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (70, 101), (33, 47), (32, 160)])
class TestForward:
    def test_segmentation(self, segmentation, settings, size, batch):
        model, reference = (network.eval() for network in segmentation)
        images = make_images(settings, batch, size)
        with torch.no_grad():
            expected = reference(torch.tensor(images).double(), output_hidden_states=True)
        logits = model(flow.tensor(images))["prediction_scores"]
        assert logits.shape == (batch, 7, -(-size[0] // 4), -(-size[1] // 4))
        assert_close(logits.numpy(), expected.logits.numpy())
        features = model.segformer(flow.tensor(images))
        assert len(features) == len(expected.hidden_states)
        for feature, expected_feature in zip(features, expected.hidden_states):
            assert_close(feature.permute(0, 3, 1, 2).numpy(), expected_feature.numpy())

    def test_classification(self, classification, settings, size, batch):
        model, reference = (network.eval() for network in classification)
        images = make_images(settings, batch, size)
        with torch.no_grad():
            expected = reference(torch.tensor(images).double()).logits.numpy()
        assert_close(model(flow.tensor(images))["prediction_scores"].numpy(), expected)


def check_gradients(model, reference):
    """All gradients are the reference's, to rounding; some of those are exactly 0.

    Softmax does not see the bias of the keys, nor batch norm that of the projections before it:
    there the gradient is rounding, on the scale of the others.
    """
    actual = from_here({name: p.grad.numpy() for name, p in model.named_parameters()}, HUGGINGFACE)
    expected = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    assert actual.keys() == expected.keys()
    floor = 1e-7 * max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        tolerance = 2e-5 * np.abs(gradient).max() + floor
        np.testing.assert_allclose(actual[name], gradient, rtol=0, atol=tolerance, err_msg=name)


def pixel_loss(logits, labels, ignore_index=255):
    logits = torch.nn.functional.interpolate(logits, labels.shape[1:], mode="bilinear")
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index)


def check_training_step(model, reference, settings, labels, reference_loss, size=(70, 101)):
    """Loss and gradients of one step, image sides not even."""
    images = make_images(settings, 3, size)
    logits = reference.train()(torch.tensor(images).double()).logits
    expected = reference_loss(logits, torch.tensor(labels))
    expected.backward()
    loss = model.train()(flow.tensor(images), flow.tensor(labels))["losses"]
    loss.backward()
    assert loss.numpy() == pytest.approx(expected.item(), rel=1e-6)
    check_gradients(model, reference)


@pytest.mark.parametrize("size", [(70, 101), (112, 90)], ids=["whole", "loss_in_strips"])
def test_segmentation_training(segmentation, settings, size):
    model, reference = (copy.deepcopy(network) for network in segmentation)
    check_training_step(model, reference, settings, make_labels(3, size), pixel_loss, size)
    for name in ("running_mean", "running_var"):
        expected = getattr(reference.decode_head.batch_norm, name).numpy()
        assert_close(getattr(model.head.batch_norm, name).numpy(), expected)


@pytest.mark.slow
def test_segmentation_training_with_the_operators_of_oneflow(segmentation, settings, monkeypatch):
    """In eager mode on a CPU, which has kernels without being told otherwise."""
    monkeypatch.setattr(arrays, "_computes_here", lambda tensors: False)
    model, reference = (copy.deepcopy(network) for network in segmentation)
    check_training_step(model, reference, settings, make_labels(3, (70, 101)), pixel_loss)


def test_classification_training(classification, settings):
    pair = (copy.deepcopy(network) for network in classification)
    labels = np.array([6, 0, 2])
    check_training_step(*pair, settings, labels, torch.nn.functional.cross_entropy)


def test_folded_head(segmentation, settings):
    """Its linear layer gives what transformers' head has before the ReLU; nothing is changed."""
    model, reference = (network.eval() for network in segmentation)
    before = state_of(model)
    matrices, bias = model.head.folded()
    images = torch.tensor(make_images(settings, 2, (70, 101))).double()
    found = {}
    reference.decode_head.batch_norm.register_forward_hook(
        lambda module, inputs, output: found.update(expected=output)
    )
    with torch.no_grad():
        features = reference.segformer(images, output_hidden_states=True).hidden_states
        reference.decode_head(features)
    size = features[0].shape[2:]
    total = torch.tensor(bias.numpy()).double()[:, None, None]
    for feature, matrix in zip(features, matrices):
        part = torch.einsum("nchw,ce->nehw", feature, torch.tensor(matrix.numpy()).double())
        total = total + torch.nn.functional.interpolate(part, size, mode="bilinear")
    assert_close(total.numpy(), found["expected"].numpy())
    after = state_of(model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


# ---- The loss -------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore_index", [255, 0])
@pytest.mark.parametrize("label_size", [(16, 24), (61, 95), (4, 6), (3, 5)])
def test_loss_at_label_resolution(label_size, ignore_index):
    model = SegformerForSemanticSegmentation(**TINY, ignore_index=ignore_index)
    logits, labels = normal(2, 4, 6, 7) * 3, make_labels(2, label_size)
    labels[labels == 255] = ignore_index
    channels_first = torch.tensor(logits).double().permute(0, 3, 1, 2)
    expected = pixel_loss(channels_first, torch.tensor(labels), ignore_index)
    loss = model.loss(put(logits), put(labels))["losses"]
    assert loss.numpy() == pytest.approx(expected.item(), rel=1e-6)


def test_labels_that_are_all_ignored_give_no_loss_and_no_gradient():
    model = SegformerForSemanticSegmentation(**TINY)
    images, labels = (
        flow.tensor(normal(2, 3, 40, 40)),
        flow.full((2, 40, 40), 255, dtype=flow.int64),
    )
    loss = model(images, labels)["losses"]
    loss.backward()
    assert loss.numpy() == 0
    for name, parameter in model.named_parameters():
        assert (parameter.grad.numpy() == 0).all(), name


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_loss_of_indices_and_of_probabilities(smoothing):
    settings = {name: value for name, value in TINY.items() if name != "decoder_hidden_size"}
    model = SegformerForImageClassification(**settings, label_smoothing=smoothing)
    logits, indices = normal(4, 7) * 3, np.array([6, 0, 2, 2])
    mixed = np.random.default_rng(0).dirichlet(np.ones(7), 4).astype(np.float32)
    for labels in (indices, mixed):
        expected = torch.nn.functional.cross_entropy(
            torch.tensor(logits), torch.tensor(labels), label_smoothing=smoothing
        )
        assert model.loss(put(logits), put(labels)).numpy() == pytest.approx(
            expected.item(), rel=1e-6
        )


# ---- Noise, modes, inputs -------------------------------------------------------------------


def put(values) -> flow.Tensor:
    tensor = flow.tensor(values)
    return tensor.to_global(placement=dist.get_layer_placement(0), sbp=broadcast_sbp())


def with_random_weights(**settings):
    model = SegformerForSemanticSegmentation(**{**TINY, **settings})
    state = state_of(model)
    for seed, (name, value) in enumerate(sorted(state.items())):
        state[name] = np.abs(value + 0.3 * normal(*value.shape, seed=seed))
        if not name.endswith("running_var"):
            state[name] *= np.sign(normal(*value.shape, seed=1000 + seed))
    load_state(model, lambda: LazyState.of(state), "random")
    return model


def test_noise_drops_branches_and_channels_sample_by_sample():
    """What is dropped is as if that sample had gone through a network without it.

    A branch kept is scaled by 1 / keep, as if its last layer were; so is a channel of the head.
    """
    drop_path_rate, dropout = 0.6, 0.4
    model = with_random_weights(drop_path_rate=drop_path_rate, decoder_dropout=dropout).train()
    model.head.batch_norm.eval()
    images = normal(3, 3, 40, 52)
    noise = np.random.default_rng(5).random((3, model.noise_size), np.float32)
    dropped = model(flow.tensor(images), noise=put(noise))["prediction_scores"].numpy()

    blocks = [(i, j) for i, depth in enumerate(TINY["depths"]) for j in range(depth)]
    assert model.noise_size == 2 * len(blocks) + TINY["decoder_hidden_size"]
    plain = with_random_weights().eval()
    for sample in range(3):
        state = {name: value.copy() for name, value in state_of(model).items()}
        for k, (i, j) in enumerate(blocks):
            keep = 1 - drop_path_rate * k / (len(blocks) - 1)
            for branch, layer in enumerate(("attn.proj", "mlp.dense_4h_to_h")):
                factor = (noise[sample, 2 * k + branch] >= 1 - keep) / keep
                for leaf in ("weight", "bias"):
                    state[f"segformer.blocks.{i}.{j}.{layer}.{leaf}"] *= np.float32(factor)
        kept_channels = noise[sample, 2 * len(blocks) :] >= dropout
        factors = (kept_channels / (1 - dropout)).astype(np.float32)
        state["head.linear_pred.weight"] *= factors[:, None, None]
        load_state(plain, partial(LazyState.of, state), "thinned")
        expected = plain(flow.tensor(images[sample : sample + 1]))["prediction_scores"].numpy()
        assert_close(dropped[sample : sample + 1], expected)


def test_noise_of_its_own_is_new_in_every_step():
    model = with_random_weights(drop_path_rate=0.5)
    images, labels = flow.tensor(normal(4, 3, 32, 32)), flow.tensor(make_labels(4, (32, 32)))
    losses = {float(model(images, labels)["losses"].numpy()) for _ in range(3)}
    assert len(losses) == 3


def small_batch(is_segmentation: bool):
    """A model with dropping, and a batch for it."""
    settings = dict(TINY, depths=[1, 1, 1, 1], drop_path_rate=0.5)
    if is_segmentation:
        model, labels = SegformerForSemanticSegmentation(**settings), make_labels(2, (37, 45))
    else:
        del settings["decoder_hidden_size"]
        model, labels = SegformerForImageClassification(**settings), np.array([3, 5])
    noise = np.random.default_rng(0).random((2, model.noise_size), np.float32)
    return model, dict(images=put(normal(2, 3, 37, 45)), labels=put(labels), noise=put(noise))


kinds = pytest.mark.parametrize(
    "is_segmentation",
    [
        pytest.param(True, id="segmentation"),
        pytest.param(False, id="classification", marks=pytest.mark.slow),
    ],
)


@kinds
def test_evaluation_in_a_graph(is_segmentation):
    model, batch = small_batch(is_segmentation)
    expected = model.eval()(batch["images"])["prediction_scores"].numpy()
    graph = SegformerGraph(model, is_train=False)
    assert_close(graph(images=batch["images"])["prediction_scores"].numpy(), expected)


@pytest.mark.slow
@kinds
def test_training_in_a_graph(is_segmentation):
    """The loss with that noise, and what a step does to every parameter and statistic."""
    losses, states = [], []
    for in_graph in (False, True):
        flow.manual_seed(0)
        model, batch = small_batch(is_segmentation)
        model.train()
        optimizer = flow.optim.SGD(model.parameters(), lr=0.1)
        if in_graph:
            loss = SegformerGraph(model, optimizer)(**batch)["losses"]
        else:
            loss = model(**batch)["losses"]
            loss.backward()
            optimizer.step()
        losses.append(float(loss.numpy()))
        states.append(state_of(model))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=0, atol=1e-6, err_msg=name)


def test_local_tensors_are_a_share_of_the_batch():
    model = with_random_weights()
    images, labels = normal(2, 3, 40, 40), make_labels(2, (40, 40))
    noise = np.ones((2, model.noise_size), np.float32) / 2
    of_local = model(flow.tensor(images), flow.tensor(labels), put(noise))["losses"]
    of_global = model(put(images), put(labels), put(noise))["losses"]
    assert of_local.numpy() == of_global.numpy()


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
def test_image_that_is_too_small(size):
    model = SegformerForSemanticSegmentation(**TINY).eval()
    with pytest.raises(InputError, match=f"{size[0]}x{size[1]}.*32"):
        model(flow.tensor(normal(1, 3, *size)))


@pytest.mark.parametrize(
    "cls, wrong, near",
    [
        (SegformerForSemanticSegmentation, "num_clases", "num_classes"),
        (SegformerForSemanticSegmentation, "depth", "depths"),
        (SegformerForSemanticSegmentation, "label_smoothing", "SegformerForSemantic"),
        (SegformerForImageClassification, "label_smooth", "label_smoothing"),
        (SegformerForImageClassification, "ignore_index", "SegformerForImageClass"),
        (SegformerSegmentationLoadImageNetPretrain, "pretrained_path", "pretrained_model_path"),
        (SegformerSegmentationLoadImageNetPretrain, "layer_norm_epss", "layer_norm_eps"),
    ],
)
def test_unknown_setting(cls, wrong, near):
    with pytest.raises(InputError, match=f"(?=.*{wrong}).*{near}"):
        cls(cfg=OmegaConf.create({wrong: 1}))


def test_channels_that_the_heads_do_not_divide():
    with pytest.raises(InputError, match=r"64.*5.*num_attention_heads"):
        SegformerForSemanticSegmentation(num_attention_heads=[1, 5, 5, 8])


@pytest.mark.parametrize(
    "wrong",
    [
        {"depths": [2, 2, 2]},
        {"hidden_sizes": [32, 64, 160]},
        {"sr_ratios": [8, 4, 2]},
        {"patch_sizes": [7, 3, 3]},
        {"strides": [4, 2, 2, 2, 2]},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_of_another_number_of_stages(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        SegformerForSemanticSegmentation(**wrong)


# ---- Initial weights ------------------------------------------------------------------------


def expected_deviation(name, shape):
    """The deviation of the normal distribution that a weight is drawn from."""
    if len(shape) == 4:  # fan-out; of one channel in a depthwise convolution
        fan_out = 9 if "dwconv" in name else shape[0] * shape[2] * shape[3]
        return (2 / fan_out) ** 0.5
    return 0.02


@pytest.mark.parametrize("cls", [SegformerForSemanticSegmentation, SegformerForImageClassification])
def test_initial_weights(cls):
    flow.manual_seed(11)
    for name, value in state_of(cls()).items():
        count, is_norm = value.size, re.search(r"norm[12s]?\b", name)
        if name.startswith(("head.linear_c.", "head.linear_pred.")):
            # PyTorch's default for a linear layer: uniform up to the root of 1 / inputs, bias too.
            is_last = name.startswith("head.linear_pred.")
            bound = (256 if is_last else B0["hidden_sizes"][int(name.split(".")[2])]) ** -0.5
            assert 0.95 * bound < np.abs(value).max() <= bound
            assert value.std() == pytest.approx(bound / 3**0.5, rel=4 / count**0.5), name
        elif name.endswith((".bias", ".running_mean")):
            assert (value == 0).all(), name
        elif is_norm:
            assert (value == 1).all(), name
        else:
            value = value.astype(np.float64) / expected_deviation(name, value.shape)
            # Mean, deviation and kurtosis are as far from those of N(0, 1) as chance explains.
            assert abs(value.mean()) < 4.5 / count**0.5, name
            assert abs(value.std() - 1) < 4.5 / (2 * count) ** 0.5, name
            assert abs((value**4).mean() - 3) < 4.5 * (96 / count) ** 0.5, name


def test_seed_decides_the_initial_weights():
    def weights(seed):
        flow.manual_seed(seed)
        model = SegformerForSemanticSegmentation(**TINY)
        return {name: value.copy() for name, value in state_of(model).items()}

    first, same, other = weights(1), weights(1), weights(2)
    for name, value in first.items():
        np.testing.assert_array_equal(value, same[name], err_msg=name)
        if value.std() > 0:
            assert (value != other[name]).all(), name
    drawn = [value.ravel()[:8].tobytes() for value in first.values() if value.std() > 0]
    assert len(set(drawn)) == len(drawn)  # no two tensors are drawn alike
