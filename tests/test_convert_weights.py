"""tools/convert_weights.py: from every format to every other, and what their readers make of it."""

import importlib
import json
import logging
import re
import resource

import cv2
import numpy as np
import oneflow as flow
import pytest
import torch
import transformers
from libai.config import LazyConfig

from conftest import ROOT, error_line, run_tool
from projects.SegFormer.dataset.transforms import Normalize
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.model_utils.huggingface_config import (
    ARCHITECTURES,
    from_settings,
    to_settings,
)
from projects.SegFormer.model_utils.key_rules import (
    HUGGINGFACE,
    OFFICIAL_IMAGENET,
    OFFICIAL_SEGMENTATION,
    from_here,
    to_here,
)
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.segf_loader import (
    SegFLoaderHuggerFace,
    SegFLoaderLiBai,
    SegFLoaderOfficial,
)
from projects.SegFormer.model_utils.sizes import sizes_of
from projects.SegFormer.model_utils.test_segloader import random_images, random_model
from projects.SegFormer.model_utils.weight_files import read_weights
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)
from projects.SegFormer.tools.convert_weights import _from_config, main

TOOL = "tools/convert_weights.py"
MODELS = dict(
    zip(ARCHITECTURES, (SegformerForSemanticSegmentation, SegformerForImageClassification))
)
SEGMENTATION, CLASSIFICATION = ARCHITECTURES
CLASSES = ["road", "sky", "köttbulle", "人"]
TINY = dict(
    depths=[1, 2, 1, 1],
    hidden_sizes=[8, 16, 20, 16],
    decoder_hidden_size=12,
    num_labels=len(CLASSES),
    id2label=dict(enumerate(CLASSES)),
    label2id={name: index for index, name in enumerate(CLASSES)},
)


def convert(source, target, output, *more: str) -> None:
    main(["--from", str(source), "--to", target, "--output", str(output), *map(str, more)])


def stored(path) -> dict[str, np.ndarray]:
    """The tensors in a file of PyTorch or in a save_pretrained folder, all of them."""
    if path.suffix != ".pth":
        from safetensors.numpy import load_file

        return load_file(path / "model.safetensors")
    content = torch.load(path, weights_only=True)
    content = content.get("state_dict", content)
    return {name: value.numpy() for name, value in content.items()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape), name
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.fixture(params=ARCHITECTURES)
def original(request, tmp_path):
    """A save_pretrained folder with an image processor, and its model."""
    reference = random_model(request.param, **TINY)
    if request.param == SEGMENTATION:
        reference.decode_head.batch_norm.num_batches_tracked.fill_(1234)
    reference.save_pretrained(tmp_path / "original")
    processor = transformers.SegformerImageProcessor(do_reduce_labels=True, size=96)
    processor.save_pretrained(tmp_path / "original")
    return tmp_path / "original", reference


def test_round_trip_from_hugging_face_through_libai_is_exact(original, tmp_path):
    folder, reference = original
    convert(folder, "libai", tmp_path / "libai")
    convert(tmp_path / "libai", "huggingface", tmp_path / "back")
    assert_same(stored(tmp_path / "back"), stored(folder))
    before, after = (
        transformers.AutoConfig.from_pretrained(path).to_dict()
        for path in (folder, tmp_path / "back")
    )
    for config in (before, after):
        config.pop("_name_or_path")
    assert after == before
    processors = (
        json.loads((path / "preprocessor_config.json").read_text())
        for path in (folder, tmp_path / "back")
    )
    assert next(processors) == next(processors)


def test_round_trip_through_the_papers_format_is_exact(original, tmp_path, capsys):
    folder, reference = original
    convert(folder, "official", tmp_path / "first.pth")
    assert re.search(
        r"note: .*\(1e-05, 1e-05\).* official .*\(1e-06, 1e-05\)", capsys.readouterr().out
    )
    convert(tmp_path / "first.pth", "libai", tmp_path / "libai")
    assert "note:" not in capsys.readouterr().out
    convert(tmp_path / "libai", "official", tmp_path / "second.pth")
    assert_same(stored(tmp_path / "second.pth"), stored(tmp_path / "first.pth"))
    convert(tmp_path / "second.pth", "huggingface", tmp_path / "back")
    assert_same(stored(tmp_path / "back"), stored(folder))


def settings_of(size: str) -> dict:
    cfg = importlib.import_module(f"projects.SegFormer.configs.models.mit_{size}").cfg
    return {key: cfg[key] for key in ("depths", "hidden_sizes", "decoder_hidden_size")}


@pytest.mark.parametrize(
    ("size", "architecture"),
    [
        *(("b0", architecture) for architecture in ARCHITECTURES),
        *(pytest.param(f"b{i}", SEGMENTATION, marks=pytest.mark.slow) for i in range(1, 6)),
    ],
)
def test_every_size_goes_there_and_back(size, architecture):
    """Bit for bit, and all settings are read off the weights but heads and strides."""
    with transformers.modeling_utils.no_init_weights():
        reference = getattr(transformers, architecture)(
            transformers.SegformerConfig(**settings_of(size), num_labels=7)
        )
    state = {
        name: np.arange(value.numel(), dtype=value.numpy().dtype).reshape(value.shape)
        for name, value in reference.state_dict().items()
    }
    here = to_here(state, HUGGINGFACE)
    assert_same(from_here(here, HUGGINGFACE), state)
    is_segmentation = architecture == SEGMENTATION
    official = OFFICIAL_SEGMENTATION if is_segmentation else OFFICIAL_IMAGENET
    papers = from_here(here, official)
    assert_same(from_here(to_here(papers, official), official), papers)
    assert_same(to_here(papers, official), here)

    settings = to_settings(reference.config.to_dict(), "reference")
    sizes = sizes_of({name: value.shape for name, value in here.items()})
    assert {"depths", "hidden_sizes", "sr_ratios", "mlp_ratios", "num_classes"} <= sizes.keys()
    assert sizes == {name: settings[name] for name in sizes}
    assert ("decoder_hidden_size" in sizes) == is_segmentation


# ---- What transformers makes of it --------------------------------------------------------------


@pytest.fixture
def warned(caplog):
    """What transformers logs from warnings upwards."""
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_propagation()
    yield lambda: [
        record.message
        for record in caplog.records
        if record.name.startswith("transformers") and record.levelno >= logging.WARNING
    ]
    transformers.logging.disable_propagation()


def test_transformers_loads_it_without_a_warning(original, tmp_path, warned, recwarn):
    folder, reference = original
    convert(folder, "official", tmp_path / "weights.pth")
    convert(tmp_path / "weights.pth", "huggingface", tmp_path / "written")
    recwarn.clear()
    model, info = type(reference).from_pretrained(tmp_path / "written", output_loading_info=True)
    assert not any(info.values()) and not warned() and not recwarn.list
    images = torch.from_numpy(random_images((1, 3, 64, 64)))
    with torch.no_grad():
        assert torch.equal(model(images).logits, reference(images).logits)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text("{}")
    with pytest.raises(OSError):  # or else nothing was looked at
        type(reference).from_pretrained(folder)


def test_names_of_classes(tmp_path):
    """The paper's files have them under `meta`."""
    reference = random_model(SEGMENTATION, **TINY)
    reference.save_pretrained(tmp_path / "original")
    convert(tmp_path / "original", "official", tmp_path / "weights.pth")
    convert(tmp_path / "weights.pth", "huggingface", tmp_path / "written")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "written")
    assert config.id2label == dict(enumerate(CLASSES))
    assert config.label2id == {name: index for index, name in enumerate(CLASSES)}


def test_image_processor_prepares_as_evaluation_does(tmp_path):
    reference = random_model(SEGMENTATION, **TINY)
    reference.save_pretrained(tmp_path / "original")
    convert(tmp_path / "original", "huggingface", tmp_path / "written")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "written")
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    actual = processor(image, return_tensors="np")["pixel_values"][0]
    expected, _ = Normalize()(image, None, None)
    np.testing.assert_allclose(actual, expected.transpose(2, 0, 1), rtol=0, atol=1e-5)


def test_a_config_s_own_mean_and_std(tmp_path):
    """Of a .py file, whose transforms are classes, and of a config.yaml, where they are names."""
    file = tmp_path / "config.py"
    file.write_text(
        "from libai.config import LazyConfig\n"
        f"globals().update(LazyConfig.load('{ROOT}/configs/segformer_camvid.py'))\n"
        "for transform in dataloader.test[0].dataset.transforms:\n"
        "    transform.update(mean=[51.0, 102.0, 153.0], std=[25.5, 51.0, 102.0])\n"
    )
    config = load_config(str(file))
    config.train.output_dir = str(tmp_path)
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    for name in ("config.py", "config.yaml"):
        processor = _from_config(str(tmp_path / name)).image_processor
        assert processor["image_mean"] == [0.2, 0.4, 0.6]
        assert processor["image_std"] == [0.1, 0.2, 0.4]


def test_keys_by_stages(original, tmp_path):
    folder, reference = original
    convert(folder, "huggingface", tmp_path / "stages", "--key-layout", "stages")
    written = stored(tmp_path / "stages")
    assert "segformer.stages.1.blocks.1.attention.k_proj.weight" in written
    assert len(written) == len(stored(folder))
    convert(tmp_path / "stages", "huggingface", tmp_path / "back")
    assert_same(stored(tmp_path / "back"), stored(folder))


@pytest.mark.slow
def test_what_was_trained_here(folder_data, trained, tmp_path):
    """Checkpoint of the trainer to transformers: same logits there, class names of the data set."""
    convert(trained / "model_final", "huggingface", tmp_path / "written")
    reference = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "written")
    assert list(reference.config.id2label.values()) == ["disc", "field", "sky"]
    image = cv2.imread(str(next((folder_data / "images/val").iterdir())))[..., ::-1]
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "written")
    inputs = processor(np.ascontiguousarray(image), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = reference.eval()(inputs).logits.numpy()
    # eps apart, which transformers has at 1e-5, it is the model that was trained.
    model = SegFLoaderHuggerFace(
        SegformerForSemanticSegmentation, {}, str(tmp_path / "written")
    ).load()
    actual = model(flow.tensor(inputs.numpy()))["prediction_scores"].numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert_same(state_of(model), read_weights(str(trained / "model_final")))


# ---- What the paper's code makes of it ----------------------------------------------------------


def with_official_eps(reference):
    """transformers' model as the paper's code computes it."""
    for name, module in reference.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            is_embed = "patch_embeddings" in name or "attention.self" in name
            module.eps = 1e-5 if is_embed else 1e-6
    return reference


def test_papers_segmentation_weights_compute_what_its_code_does(tmp_path):
    """With its eps, which is 1e-6 in blocks and after stages."""
    reference = random_model(SEGMENTATION, **TINY)
    # Activations so small that eps counts.
    for embedding in reference.segformer.encoder.patch_embeddings:
        embedding.layer_norm.weight.data.mul_(3e-3)
        embedding.layer_norm.bias.data.mul_(3e-3)
    images = random_images((2, 3, 64, 96))
    with torch.no_grad():
        other = reference.double()(torch.from_numpy(images).double()).logits.numpy()
        reference = with_official_eps(reference)
        expected = reference(torch.from_numpy(images).double()).logits.numpy()
    reference.float().save_pretrained(tmp_path / "original")
    convert(tmp_path / "original", "official", tmp_path / "weights.pth")
    cfg = dict(
        depths=TINY["depths"],
        hidden_sizes=TINY["hidden_sizes"],
        decoder_hidden_size=12,
        num_classes=len(CLASSES),
        layer_norm_eps=1e-3,  # the weights' own goes over it
    )
    loader = SegFLoaderOfficial(
        SegformerForSemanticSegmentation, cfg, str(tmp_path / "weights.pth")
    )
    actual = loader.load()(flow.tensor(images))["prediction_scores"].numpy()
    largest = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * largest)
    assert np.abs(other - expected).max() > 1e-3 * largest


def test_papers_file_has_what_its_code_wants(tmp_path):
    """mmcv's loader is strict about conv_seg, a layer of 128 channels that nothing calls."""
    random_model(SEGMENTATION, **TINY).save_pretrained(tmp_path / "original")
    convert(tmp_path / "original", "official", tmp_path / "weights.pth")
    state = stored(tmp_path / "weights.pth")
    assert state["decode_head.conv_seg.weight"].shape == (len(CLASSES), 128, 1, 1)
    assert state["decode_head.conv_seg.bias"].shape == (len(CLASSES),)
    assert state["decode_head.linear_fuse.bn.num_batches_tracked"].shape == ()
    assert state["backbone.block2.1.attn.kv.weight"].shape == (32, 16)
    here = to_here(state, OFFICIAL_SEGMENTATION)
    state["decode_head.conv_seg.weight"][...] = 3
    torch.save(
        {"state_dict": {name: torch.from_numpy(value) for name, value in state.items()}},
        tmp_path / "other.pth",
    )
    convert(tmp_path / "other.pth", "libai", tmp_path / "libai")
    convert(tmp_path / "libai", "official", tmp_path / "back.pth")
    assert_same(stored(tmp_path / "back.pth"), state)  # also what nothing calls
    model = SegFLoaderLiBai(SegformerForSemanticSegmentation, {}, str(tmp_path / "libai")).load()
    for name, value in state_of(model).items():
        np.testing.assert_array_equal(value, here[name], err_msg=name)


# ---- Errors -----------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path):
    """The conversion raises an error that matches, and writes nothing."""

    def check(message, source, target, *more):
        with pytest.raises(InputError, match=message):
            convert(source, target, tmp_path / "refused", *more)
        assert not (tmp_path / "refused").exists()

    return check


def test_error_is_one_line_on_the_command_line(tmp_path):
    output = tmp_path / "output"
    process = run_tool(*(TOOL, "--from", str(tmp_path), "--to", "libai", "--output", str(output)))
    assert f"no weights in {tmp_path}" in error_line(process)
    assert not output.exists()


@pytest.fixture
def small_files():
    """No file can get larger than 4 kB, which stands for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_disk_that_is_full_leaves_nothing_behind(original, small_files, tmp_path):
    for target, name in (("libai", "x"), ("huggingface", "y"), ("official", "z.pth")):
        arguments = ("--from", original[0], "--to", target, "--output", tmp_path / name)
        assert f"cannot write {tmp_path / name}" in error_line(run_tool(TOOL, *map(str, arguments)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]


def test_output_that_is_there_is_not_overwritten(original, tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} is already there"):
        convert(original[0], "libai", tmp_path)


def test_encoder_without_a_head(refused, tmp_path):
    encoder = transformers.SegformerModel(transformers.SegformerConfig(**TINY))
    encoder.save_pretrained(tmp_path / "encoder")
    refused("encoder without a head", tmp_path / "encoder", "official")


def test_checkpoint_without_its_config(trained, refused, tmp_path):
    (tmp_path / "checkpoint").symlink_to(trained / "model_final")
    refused("--config", tmp_path / "checkpoint", "official")
    config = trained / "config.yaml"
    convert(tmp_path / "checkpoint", "huggingface", tmp_path / "x", "--config", config)
    written = transformers.AutoConfig.from_pretrained(tmp_path / "x")
    assert list(written.id2label.values()) == ["disc", "field", "sky"]
    refused("num_attention_heads", tmp_path / "checkpoint", "official", "--config", config)


def test_classifier_of_libai_with_a_config_of_models(tmp_path):
    reference = random_model(CLASSIFICATION, num_labels=1000)
    reference.save_pretrained(tmp_path / "original")
    convert(tmp_path / "original", "libai", tmp_path / "libai")
    (tmp_path / "libai" / "segformer.json").unlink()
    config = ROOT / "configs/models/classification/mit_cls_b0.py"
    convert(tmp_path / "libai", "huggingface", tmp_path / "back", "--config", config)
    assert_same(stored(tmp_path / "back"), stored(tmp_path / "original"))


def test_heads_that_do_not_show_in_the_weights(tmp_path, refused):
    """They come from the config.json beside the file; the paper's files have no place for them."""
    settings = {**TINY, "num_attention_heads": [2, 4, 5, 4]}
    random_model(SEGMENTATION, **settings).save_pretrained(tmp_path / "original")
    convert(tmp_path / "original" / "model.safetensors", "huggingface", tmp_path / "written")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "written")
    assert config.num_attention_heads == [2, 4, 5, 4]
    refused(r"has num_attention_heads of \[1, 2, 5, 8\]", tmp_path / "original", "official")


def test_papers_file_that_is_not_whole(original, refused, tmp_path):
    convert(original[0], "official", tmp_path / "weights.pth")
    content = torch.load(tmp_path / "weights.pth")
    state = content.get("state_dict", content)
    del state[next(name for name in state if name.endswith("patch_embed3.proj.weight"))]
    torch.save(state, tmp_path / "broken.pth")
    refused(
        r"segformer\.patch_embeds\.2\.proj\.weight is missing", tmp_path / "broken.pth", "libai"
    )


def test_weights_that_do_not_fill_their_model(original, refused):
    folder, _ = original
    config = json.loads((folder / "config.json").read_text())
    config["depths"] = [1, 2, 1, 2]
    (folder / "config.json").write_text(json.dumps(config))
    refused(r"missing: segformer\.blocks\.3\.1\.", folder, "libai")


def test_config_json_of_a_setting_is_its_own_reverse():
    default = to_settings({}, "default")
    settings = to_settings(from_settings(default, SEGMENTATION, CLASSES), "written")
    assert settings == {**default, "num_classes": len(CLASSES)}
