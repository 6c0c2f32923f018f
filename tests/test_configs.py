"""Every config: it loads, says what the paper says, and leaves the others alone."""

import importlib
import math
import re

import numpy as np
import pytest
from libai.config import LazyConfig, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from conftest import ROOT
from projects.SegFormer.dataset.transforms import Compose
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.trainer import SegformerTrainer
from projects.SegFormer.modeling.errors import InputError

CONFIGS = ROOT / "configs"
TO_RUN = sorted(path.name for path in CONFIGS.glob("segformer_*.py"))
MODELS = {path.stem: path for path in sorted(CONFIGS.glob("models/**/mit_*.py"))}
CITY = str(CONFIGS / "segformer_city.py")
CAMVID = str(CONFIGS / "segformer_camvid.py")

# The paper's table 6, and its heads.
DEPTHS = {
    "b0": [2, 2, 2, 2],
    "b1": [2, 2, 2, 2],
    "b2": [3, 4, 6, 3],
    "b3": [3, 4, 18, 3],
    "b4": [3, 8, 27, 3],
    "b5": [3, 6, 40, 3],
}
ENCODER = dict(
    num_channels=3,
    num_attention_heads=[1, 2, 5, 8],
    sr_ratios=[8, 4, 2, 1],
    mlp_ratios=[4, 4, 4, 4],
    patch_sizes=[7, 3, 3, 3],
    strides=[4, 2, 2, 2],
    drop_path_rate=0.1,
    layer_norm_eps=1e-6,
    embed_norm_eps=1e-5,
)


def expected_model(name):
    size = name[-2:]
    model = dict(ENCODER, depths=DEPTHS[size])
    model["hidden_sizes"] = [32, 64, 160, 256] if size == "b0" else [64, 128, 320, 512]
    if "cls" in name:
        return dict(model, num_classes=1000, label_smoothing=0.1)
    return dict(
        model,
        num_classes=150,
        decoder_hidden_size=256 if size in ("b0", "b1") else 768,
        decoder_dropout=0.1,
        ignore_index=255,
        loss=dict(
            class_weights=None,
            label_smoothing=0.0,
            ohem_threshold=None,
            ohem_min_kept=100_000,
            dice_weight=0.0,
        ),
        pretrained_model_path=None,
    )


def plain(node):
    if not OmegaConf.is_config(node):
        return dict(node)
    return OmegaConf.to_container(node, resolve=True)


def test_all_models_are_there():
    sizes = [f"b{size}" for size in range(6)]
    assert sorted(MODELS) == sorted([f"mit_{s}" for s in sizes] + [f"mit_cls_{s}" for s in sizes])
    assert {"segformer_city.py", "segformer_camvid.py", "segformer_quickstart.py"} <= set(TO_RUN)


@pytest.mark.parametrize("name", MODELS)
def test_model_is_the_paper_s(name):
    config = LazyConfig.load(str(MODELS[name]))
    assert plain(config.cfg) == plain(config.model.cfg) == expected_model(name)


def test_loading_a_model_changes_no_other():
    """Changes to one that is loaded stay in it, also those to its lists."""
    for name, path in MODELS.items():
        config = LazyConfig.load(str(path))
        assert plain(config.model.cfg) == expected_model(name)
        for cfg in (config.cfg, config.model.cfg):
            cfg.num_classes = 3
            cfg.depths[0] = cfg.sr_ratios[0] = 77
    for name, path in MODELS.items():
        assert plain(LazyConfig.load(str(path)).model.cfg) == expected_model(name)


def test_importing_the_models_changes_none_of_them():
    """As a LiBai project imports them: as modules, which Python holds once for all."""
    package = "projects.SegFormer.configs.models."
    modules = {
        name: importlib.import_module(package + ("classification." if "cls" in name else "") + name)
        for name in reversed(MODELS)
    }
    for name, module in modules.items():
        assert plain(module.cfg) == plain(module.model.cfg) == expected_model(name)
    assert len({id(module.cfg) for module in modules.values()}) == len(MODELS)
    assert len({id(module.model.cfg) for module in modules.values()}) == len(MODELS)


@pytest.mark.parametrize("name", TO_RUN)
def test_config_to_run_builds_its_model(name, data_root):
    config = load_config(str(CONFIGS / name), [f"data.root={data_root}"])
    model = instantiate(config.model)
    dataset = config.dataloader.test[0].dataset
    if "imgnet1k" in name:
        assert type(model).__name__ == "SegformerForImageClassification"
        assert model.head.weight.shape[-1] == 1000  # (in, out), as in LiBai's Linear
        assert instantiate(config.dataloader.train.mixing).num_classes == 1000
        return
    assert type(model).__name__ == "SegformerSegmentationLoadImageNetPretrain"
    assert model.head.linear_pred.weight.shape[0] == config.model.cfg.num_classes
    classes = dataset.get("classes") or dataset._target_.CLASSES
    assert len(classes) == config.model.cfg.num_classes


def values(node, key=""):
    """(key, value) of all leaves, interpolations as they are written."""
    if isinstance(node, (DictConfig, ListConfig)):
        node = OmegaConf.to_container(node, resolve=False)
    if isinstance(node, dict):
        for name, child in node.items():
            yield from values(child, f"{key}.{name}")
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from values(child, f"{key}.{index}")
    else:
        yield key, node


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("*.py")), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_no_absolute_paths(path):
    for key, value in values(LazyConfig.load(str(path))):
        assert not (isinstance(value, str) and re.match(r"[/~\\]|[A-Za-z]:[/\\]", value)), key


# ---- The recipe -----------------------------------------------------------------------------


def test_recipe_for_cityscapes():
    config = load_config(CITY)
    train, optim = config.train, config.optim
    assert optim._target_.__name__ == "AdamW"
    assert optim.params.lr == 6e-5
    assert optim.params.weight_decay == 0.01
    assert optim.params.head_lr_multiplier == 10
    assert list(optim.betas) == [0.9, 0.999]
    assert "clip_grad_max_norm" not in optim.params

    assert train.train_iter == 160_000 and train.train_epoch == 0
    assert math.ceil(train.train_iter * train.warmup_ratio) == 1_500  # what LiBai makes of it
    assert train.scheduler.power == 1.0
    assert train.scheduler.warmup_factor == 1e-6
    assert train.global_batch_size == 8
    assert not train.amp.enabled

    transforms = config.dataloader.train.dataset.transforms
    by_name = {transform._target_.__name__: transform for transform in transforms}
    assert list(by_name) == [
        "RandomResize",
        "RandomCrop",
        "RandomFlip",
        "PhotometricDistortion",
        "Normalize",
        "Pad",
    ]
    assert tuple(by_name["RandomResize"].size) == (1024, 2048)
    assert tuple(by_name["RandomResize"].ratio_range) == (0.5, 2.0)
    assert tuple(by_name["RandomCrop"].size) == tuple(by_name["Pad"].size) == (1024, 1024)
    assert by_name["RandomCrop"].cat_max_ratio == 0.75
    assert by_name["RandomFlip"].prob == 0.5
    for loader in config.dataloader.test:  # nothing random, no crop, no padding
        assert [t._target_.__name__ for t in loader.dataset.transforms] == ["Normalize"]
        assert loader.dataset.split == "val"
    assert plain(config.model.cfg) == dict(expected_model("mit_b0"), num_classes=19)


# Scale and crop, batch, iterations, classes, and how images go through the network at the end:
# facts of the paper and of its code's configs; VOC's and COCO-Stuff 10k's schedules are our own.
WHOLE = (None, None)
SLIDE = ([1024, 1024], [768, 768])
RECIPES = {
    "city": ([1024, 2048], [1024, 1024], 8, 160_000, 19, SLIDE, 1),
    "city_512x1024": ([512, 1024], [512, 1024], 8, 160_000, 19, WHOLE, 1),
    "city_640x1280": ([640, 1280], [640, 1280], 8, 160_000, 19, WHOLE, 1),
    "city_768x768": ([768, 1536], [768, 768], 8, 160_000, 19, ([768, 768], [768, 768]), 1),
    "ade20k": ([512, 2048], [512, 512], 16, 160_000, 150, WHOLE, 32),
    "ade20k_640x640": ([640, 2048], [640, 640], 16, 160_000, 150, WHOLE, 32),
    "coco_stuff": ([512, 2048], [512, 512], 16, 80_000, 171, WHOLE, 32),
    "coco_stuff_10k": ([512, 2048], [512, 512], 16, 40_000, 171, WHOLE, 32),
    "voc": ([512, 2048], [512, 512], 16, 40_000, 21, WHOLE, 32),
}


@pytest.mark.parametrize("name, recipe", RECIPES.items())
def test_recipes(name, recipe):
    scale, crop, batch, iterations, classes, windows, divisor = recipe
    config = load_config(str(CONFIGS / f"segformer_{name}.py"))
    resize, random_crop, *_, pad = config.dataloader.train.dataset.transforms
    assert resize.size == scale and list(resize.ratio_range) == [0.5, 2.0]
    assert random_crop.size == pad.size == crop and random_crop.cat_max_ratio == 0.75
    assert config.train.global_batch_size == batch
    assert config.train.train_iter == iterations
    assert math.ceil(iterations * config.train.warmup_ratio) == 1_500
    assert config.optim.params.lr == 6e-5 and config.optim.params.head_lr_multiplier == 10
    assert config.model.cfg.num_classes == classes
    inference = config.inference
    assert (inference.crop_size, inference.stride) == windows
    assert inference.resize == scale and inference.divisor == divisor
    assert list(inference.scales) == [1.0] and not inference.flip
    assert config.train.output_dir == f"output/segformer_{name}"
    size = "b5" if name == "ade20k_640x640" else "b0"
    assert config.model.cfg.depths == DEPTHS[size]
    instantiate(inference)


def test_recipe_for_imagenet():
    config = load_config(str(CONFIGS / "segformer_imgnet1k_pretrain.py"))
    train = config.train
    assert train.global_batch_size == 1024
    assert train.train_iter == round(300 * 1_281_167 / 1024)
    assert train.train_iter * train.warmup_ratio == pytest.approx(5 * 1_281_167 / 1024, rel=1e-3)
    assert config.optim.params.lr == 1e-3 and config.optim.params.weight_decay == 0.05
    assert train.scheduler.warmup_factor * 1e-3 == pytest.approx(1e-6)
    assert train.scheduler.min_factor * 1e-3 == pytest.approx(1e-5)
    assert config.model.cfg.label_smoothing == 0.1 and config.model.cfg.drop_path_rate == 0.1
    mixing = config.dataloader.train.mixing
    assert (mixing.mixup_alpha, mixing.cutmix_alpha) == (0.8, 1.0)


@pytest.mark.parametrize("size", DEPTHS)
@pytest.mark.parametrize("name", ["city", "ade20k", "coco_stuff", "voc", "imgnet1k_pretrain"])
def test_model_size_is_one_override(name, size):
    """Also in the config that a training saves, and other settings of the model stay."""
    config = load_config(str(CONFIGS / f"segformer_{name}.py"), [f"model_size={size}"])
    expected = expected_model(f"mit_{'cls_' if name.startswith('img') else ''}{size}")
    expected["num_classes"] = config.model.cfg.num_classes
    assert plain(config.model.cfg) == expected


def test_model_size_survives_saving(tmp_path):
    config = load_config(CITY, ["model_size=b2", "cfg.depths=[1,1,1,1]"])
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    saved = load_config(str(tmp_path / "config.yaml"))
    assert saved.model.cfg.hidden_sizes == [64, 128, 320, 512]
    assert saved.model.cfg.depths == [1, 1, 1, 1]
    assert load_config(str(tmp_path / "config.yaml"), ["model_size=b0"]).model.cfg.hidden_sizes == [
        32, 64, 160, 256
    ]  # fmt: skip


def test_weights_path_may_follow_the_size():
    path = "cfg.pretrained_model_path='pretrained/mit_${model_size.name}.pth'"
    config = load_config(CITY, [path, "model_size=b4"])
    assert config.model.cfg.pretrained_model_path == "pretrained/mit_b4.pth"


def test_model_size_that_is_none():
    with pytest.raises(InputError, match="model_size=b6: expected one of b0, b1, b2, b3, b4, b5"):
        load_config(CITY, ["model_size=b6"])


def test_windows_that_do_not_fit_are_told_before_the_training():
    config = load_config(CITY, ["data.crop=[512,512]"])
    with pytest.raises(InputError, match="inference.stride=.*768.*larger than inference.crop_size"):
        SegformerTrainer(config)


def test_crop_of_a_recipe_is_written_once():
    config = load_config(CITY, ["data.crop=[512,512]"])
    _, random_crop, *_, pad = config.dataloader.train.dataset.transforms
    assert random_crop.size == pad.size == config.inference.crop_size == [512, 512]


def test_defaults_are_those_of_the_paper():
    config = LazyConfig.load(str(CONFIGS / "common" / "train.py"))
    assert config.train.global_batch_size == 16
    assert config.train.train_iter == 160_000


# ---- load_config ----------------------------------------------------------------------------


def test_override_reaches_where_it_is_meant_for():
    config = load_config(
        CAMVID,
        [
            "cfg.num_classes=3",
            "cfg.hidden_sizes=[8,16,24,32]",
            "model.cfg.drop_path_rate=0.25",
            "train.output_dir=somewhere/else",
            "optim.params.lr=0.5",
            "dataloader.train.dataset.transforms.1.size=[64,32]",
            "data.root=my/data",
        ],
    )
    assert config.model.cfg.num_classes == 3
    assert config.model.cfg.hidden_sizes == [8, 16, 24, 32]
    assert config.model.cfg.drop_path_rate == 0.25
    assert config.model.cfg.depths == [2, 2, 2, 2]
    assert config.train.output_dir == "somewhere/else"
    assert config.optim.params.lr == 0.5
    assert config.dataloader.train.dataset.transforms[1].size == [64, 32]
    assert config.dataloader.train.dataset.root == "my/data"
    assert config.dataloader.test[0].dataset.root == "my/data"


@pytest.mark.parametrize("name", TO_RUN)
def test_root_of_the_data_is_written_once(name, data_root):
    config = load_config(str(CONFIGS / name), [f"data.root={data_root}"])
    datasets = [config.dataloader.train.dataset, *(t.dataset for t in config.dataloader.test)]
    assert [dataset.root for dataset in datasets] == [data_root] * len(datasets)


@pytest.mark.parametrize("name", TO_RUN)
def test_crop_and_scale_are_set_once(name, data_root):
    """Every recipe takes them, and its training gives images of that size."""
    overrides = [f"data.root={data_root}", "data.crop=[64,96]", "dataloader.train.num_workers=0"]
    config = load_config(str(CONFIGS / name), overrides)
    assert config.data.scale is not None
    dataset = config.dataloader.train.dataset
    image, label = np.zeros((300, 500, 3), np.uint8), np.zeros((300, 500), np.uint8)
    result, _ = Compose(instantiate(dataset.transforms))(image, label, np.random.default_rng(0))
    assert result.shape == (64, 96, 3)


def test_overrides_stay_in_their_config():
    load_config(CITY, ["cfg.num_classes=3", "train.global_batch_size=1", "optim.params.lr=1"])
    config = load_config(CITY)
    assert config.model.cfg.num_classes == 19
    assert config.train.global_batch_size == 8
    assert config.optim.params.lr == 6e-5


def test_config_that_a_training_saved(tmp_path):
    """config.yaml gives the same model as the config it was made from."""
    config = load_config(CAMVID, ["cfg.depths=[1,1,1,1]"])
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    saved = load_config(str(tmp_path / "config.yaml"), ["cfg.num_classes=4"])
    assert plain(saved.model.cfg) == dict(plain(config.model.cfg), num_classes=4)
    assert type(instantiate(saved.model)) is type(instantiate(config.model))


@pytest.mark.parametrize(
    "override, found, near",
    [
        ("cfg.num_clases=3", "num_clases", "num_classes"),
        ("model.cfg.depth=3", "depth", "depths"),
        ("trian.train_iter=3", "trian", "train"),
        ("train.output=x", "output", "output_dir"),
        ("train.evaluation.period=3", "period", "eval_period"),
        ("optim.lr=3", "'lr'", "params"),
        ("optim.params.learning_rate=3", "learning_rate", "lr"),
        ("dataloader.test.3.num_workers=3", "'3'", "0"),
        ("dataloader.train.dataset.transforms.RandomFlip=3", "RandomFlip", "0"),
        ("data.roots=x", "roots", "root"),
    ],
)
def test_key_that_is_not_there(override, found, near):
    with pytest.raises(InputError, match=f"no .*{found}.* in .*did you mean .*{near}"):
        load_config(CITY, [override])


@pytest.mark.parametrize("override", ["train.seed.more=3", "cfg.num_classes.x=1"])
def test_key_inside_a_value(override):
    """It has no names to offer, and does not pretend to."""
    key = override.split("=")[0].replace("cfg.", "model.cfg.").rpartition(".")[0]
    with pytest.raises(InputError, match=re.escape(key)) as caught:
        load_config(CITY, [override])
    assert not str(caught.value).endswith("did you mean ?")


@pytest.mark.parametrize("override", ["train.seed", "resume", "train.seed:3"])
def test_override_that_is_none(override):
    with pytest.raises(InputError, match=f"{override}.*key=value"):
        load_config(CITY, [override])


@pytest.mark.parametrize(
    "override",
    ["cfg.depths=[1,2", "train.output_dir='x", "dataloader.train.dataset.transforms.1.size=64,64"],
)
def test_override_that_cannot_be_read(override):
    """A bracket or a quote that is left open; a list without its brackets."""
    with pytest.raises(InputError, match=re.escape(override)):
        load_config(CITY, [override])


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("nowhere.py", None, "no config file"),
        ("broken.py", "train = dict(", "cannot load the config"),
        ("broken.py", "from .nowhere import cfg", "cannot load the config"),
        ("broken.py", "import no_such_module", "cannot load the config"),
        ("config.txt", "train: 1", "cannot load the config"),
        ("broken.yaml", "train: {seed: [", "cannot load the config"),
        ("model.py", "model = dict(cfg=dict())", "is not a config to run.*`train`"),
    ],
)
def test_file_that_is_no_config(tmp_path, name, text, expected):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=expected) as caught:
        load_config(str(tmp_path / name))
    assert name in str(caught.value)


def test_model_alone_is_no_config_to_run():
    with pytest.raises(InputError, match="mit_b0.py is not a config to run"):
        load_config(str(MODELS["mit_b0"]))
