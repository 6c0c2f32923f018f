"""The table of settings: what each may be, in a config of each kind, and what it then means."""

import copy
import math
import os
import re

import pytest
from libai.config import LazyConfig
from omegaconf import OmegaConf

from conftest import ROOT
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.config_values import LARGEST, TABLE, is_path, kind_of
from projects.SegFormer.modeling.errors import InputError

CONFIGS = {name: str(ROOT / f"configs/segformer_{name}.py") for name in ("city", "camvid")}
IMAGENET = str(ROOT / "configs/segformer_imgnet1k_pretrain.py")


@pytest.fixture(autouse=True, scope="module")
def read_once():
    """Running the files of a config takes most of the time of loading it."""
    read, known = LazyConfig.load, {}

    def load(file, *keys):
        if file not in known:
            known[file] = read(file, *keys)
        return copy.deepcopy(known[file])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LazyConfig, "load", load)
        yield


WRONG = {
    "train.output_dir": ("null", "''", "[a,b]"),
    "train.seed": ("-1", "abc", "1.5", "null", "true", str(2**32)),
    "train.global_batch_size": ("0", "-1", "abc", "2.5", "false"),
    "train.test_micro_batch_size": ("0", "null", "x"),
    "train.train_iter": ("abc", "-1", "1.5", "null", "true", "1e20"),
    "train.train_epoch": ("-1", "two", "null"),
    "train.warmup_ratio": ("1", "-0.1", "1.0", "abc", "null"),
    "train.scheduler.power": ("-1", "abc", "null"),
    "train.scheduler.warmup_factor": ("2", "x"),
    "train.log_period": ("-2", "abc", "0.5", "true"),
    "train.checkpointer.period": ("-3", "often"),
    "train.checkpointer.max_to_keep": ("0", "-2", "few", "1.5"),
    "train.evaluation.eval_period": ("-5", "x"),
    "train.evaluation.eval_iter": ("0", "x"),
    "train.evaluation.enabled": ("1", "0", "yes", "off", "null"),
    "train.evaluation.worst_images": ("-1", "some"),
    "train.evaluation.boundary_iou": ("on", "1"),
    "train.watchdog_seconds": ("0.5", "-2", "long"),
    "train.ema.decay": ("1", "-0.1", "x"),
    "train.ema.enabled": ("yes",),
    "train.zero_optimization.stage": ("-1", "4", "two"),
    "train.dist.tensor_parallel_size": ("0", "-1", "null", "1.5"),
    "graph.enabled": ("on", "1"),
    "graph.debug": ("4", "-2"),
    "optim.params.lr": ("abc", "-1", "null", "true", "nan", "inf"),
    "optim.params.weight_decay": ("abc", "-0.1"),
    "optim.params.head_lr_multiplier": ("x", "-10"),
    "optim.params.clip_grad_norm": ("abc", "-1"),
    "optim.params.lr_multipliers": ("0.5", "{head: x}", "{head: -1}", "[0.5]"),
    "optim.betas": ("0.9", "[0.9]", "[0.9,1.0]", "[0.9,x]", "null"),
    "optim.eps": ("-1e-8", "small"),
    "inference.flip": ("off", "no", "0", "null", "'false'"),
    "inference.divisor": ("0", "x", "null"),
    "inference.scales": ("[]", "1.0", "[0]", "[big]", "null"),
    "inference.crop_size": ("512", "[512]", "[0,512]", "[a,b]"),
    "cfg.num_classes": ("abc", "0", "1.5", "null"),
    "cfg.depths": ("2", "[2,2,2,x]"),
    "cfg.drop_path_rate": ("1", "x", "-0.1"),
    "cfg.loss.dice_weight": ("-1", "x"),
    "cfg.loss.ohem_threshold": ("2", "x"),
    "cfg.loss.class_weights": ("1", "[x]", "[-1]"),
    "dataloader.train.num_workers": ("-1", "x", "null"),
    "dataloader.test.0.num_workers": ("-1", "1.5"),
    "dataloader.train.dataset.transforms.2.prob": ("1.5", "half"),
    "dataloader.train.dataset.transforms.0.ratio_range": ("[0.5]", "1", "[a,b]"),
    "dataloader.train.dataset.transforms.1.size": ("0", "[64]", "x"),
    "data.root": ("null", "''", "[a,b]"),
}


@pytest.mark.parametrize(
    "key, value", [(key, value) for key, values in WRONG.items() for value in values]
)
def test_value_that_is_none_is_told_in_a_line(key, value):
    with pytest.raises(InputError) as caught:
        load_config(CONFIGS["camvid"], [f"{key}={value}"])
    message = str(caught.value)
    assert "expected" in message and "\n" not in message
    assert key.rpartition(".")[2].removeprefix("cfg.") in message


def rows_of(name: str) -> dict:
    """The settings of a config that the table knows."""
    config = load_config(name)
    found = {}

    def visit(node, key):
        if key and kind_of(key):
            found[key] = node
        if OmegaConf.is_config(node):
            pairs = node.items() if OmegaConf.is_dict(node) else enumerate(node)
            for child_key, child in pairs:
                if child_key != "_target_":
                    visit(child, f"{key}.{child_key}" if key else str(child_key))

    visit(config, "")
    return found


NONSENSE = ({"a": 1}, [[1]], [None], [], "abc", -0.5, -2, math.nan, math.inf, object())


@pytest.mark.parametrize("name", [*CONFIGS.values(), IMAGENET], ids=["city", "camvid", "imagenet"])
def test_no_setting_takes_nonsense(name):
    """The whole table. Text is a path, or names where a list of it is asked for."""
    for key in rows_of(name):
        for value in NONSENSE:
            is_text = isinstance(value, str) and is_path(key)
            is_fine = value == [] and key.endswith("classes")
            is_fine |= value == {"a": 1} and key.endswith("lr_multipliers")
            if is_text or is_fine:
                continue
            with pytest.raises((ValueError, TypeError)):
                print(key, value, kind_of(key).take(value))


def test_every_row_is_of_some_setting():
    """A pattern that nothing fits would check nothing."""
    keys = set()
    for name in (*CONFIGS.values(), IMAGENET):
        keys |= rows_of(name).keys()
    used = {id(kind_of(key)) for key in keys}
    unused = {pattern for pattern, kind in TABLE if id(kind) not in used}
    # Only there where somebody writes them, or where a data config has them.
    assert unused <= {"optim.params.lr_multipliers.*", "data.mean", "data.std"}


MEANINGS = {
    ("train.train_iter", "1e3"): 1000,
    ("train.train_iter", "12.0"): 12,
    ("train.log_period", "0"): LARGEST,
    ("train.log_period", "-1"): LARGEST,
    ("train.checkpointer.period", "null"): LARGEST,
    ("train.evaluation.eval_period", "0"): LARGEST,
    ("train.checkpointer.max_to_keep", "-1"): LARGEST,
    ("train.checkpointer.max_to_keep", "null"): LARGEST,
    ("train.evaluation.eval_iter", "-1"): LARGEST,
    ("train.watchdog_seconds", "null"): 0,
    ("train.watchdog_seconds", "-1"): 0,
    ("train.load_weight", "null"): "",
    ("train.global_batch_size", "null"): None,
    ("inference.flip", "true"): True,
    ("inference.crop_size", "[64.0,32]"): [64, 32],
    ("optim.params.lr", "1"): 1,
    ("cfg.pretrained_model_path", "''"): None,
    ("optim.params.lr_multipliers", "{segformer.blocks.0: 0.5, head: 2}"): {
        "segformer.blocks.0": 0.5,
        "head": 2,
    },
    ("dataloader.train.dataset.classes", "[1,2,03]"): ["1", "2", "03"],
}


@pytest.mark.parametrize("key, value", MEANINGS)
def test_what_a_value_means(key, value):
    config = load_config(CONFIGS["camvid"], [f"{key}={value}"])
    found = OmegaConf.select(config, key.replace("cfg.", "model.cfg.", 1))
    meant = MEANINGS[key, value]
    found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
    assert found == meant and type(found) is type(meant)


def test_reference_to_nothing_is_told():
    with pytest.raises(InputError, match=r"inference.resize has no value: .*nowhere"):
        load_config(CONFIGS["camvid"], ["inference.resize=${nowhere.scale}"])


# ---- Paths as the shell hands them over -----------------------------------------------------

PATHS = (
    "数据",
    "data (1)",
    "a,b",
    "a=b",
    "mit_b0 (1).pth",
    "it's",
    'say "yes"',
    "[old]",
    "{x}",
    "a b  c",
    "123",
    "1e3",
    "true",
    "-x",
    "~user",
    "é\u0301",
    "a:b;c|d&e",
    "100%",
    "#1",
    "*.pth",
    "trailing ",
    "back\\slash",
)
PATH_KEYS = (
    "data.root",
    "train.output_dir",
    "cfg.pretrained_model_path",
    "train.load_weight",
)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_paths_are_taken_as_they_are(tmp_path, monkeypatch, path, exists):
    """But [a,b] is a list of paths, where nothing is called so."""
    monkeypatch.chdir(tmp_path)
    if exists:
        os.mkdir(path)
    elif path == "[old]":
        path = f"some/{path}"
    config = load_config(CONFIGS["camvid"], [f"{key}={path}" for key in PATH_KEYS])
    for key in PATH_KEYS:
        assert OmegaConf.select(config, key.replace("cfg.", "model.cfg.", 1)) == path
    assert config.dataloader.test[0].dataset.root == path


def test_home_is_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = load_config(CONFIGS["camvid"], ["data.root=~/x y", "train.output_dir=~/out"])
    assert config.dataloader.test[0].dataset.root == "/home/somebody/x y"
    assert config.train.output_dir == "/home/somebody/out"


@pytest.mark.parametrize(
    "written, meant",
    [
        ("'a b'", "a b"),
        ('"a,b"', "a,b"),
        ("[a,b]", ["a", "b"]),
        ("['a b','c=d']", ["a b", "c=d"]),
        ("null", ""),
    ],
)
def test_hydra_s_form_still_counts_where_no_file_is_called_so(
    tmp_path, monkeypatch, written, meant
):
    monkeypatch.chdir(tmp_path)
    assert (
        load_config(CONFIGS["camvid"], [f"train.load_weight={written}"]).train.load_weight == meant
    )


def test_quote_that_is_left_open_is_told():
    with pytest.raises(InputError, match=re.escape("data.root='a b")):
        load_config(CONFIGS["camvid"], ["data.root='a b"])


def test_numbers_stay_what_they_were():
    config = load_config(CONFIGS["city"])
    assert math.isclose(config.optim.params.lr, 6e-5)
    assert config.dataloader.train.dataset.transforms[1].size == [1024, 1024]


# ---- What a value means beside others -----------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        *(
            "graph=true",
            "train.amp=true",
            "train.ema=true",
            "train.evaluation=false",
            "train.ema=null",
        ),
        *("data=data/mine", "train.dist=2", "optim.params=0.1"),
    ],
)
def test_settings_in_the_place_of_one_are_told(override):
    key = override.partition("=")[0]
    with pytest.raises(
        InputError, match=rf"^{key} holds settings: set one of them, as {key}\.\w+="
    ):
        load_config(CONFIGS["camvid"], [override])


@pytest.mark.parametrize("override", ["train=null", "dataloader.test=[]", "dataloader.test=null"])
def test_a_part_that_is_taken_away_is_told(override):
    with pytest.raises(
        InputError, match="with these overrides it is not a config to run: it has no"
    ):
        load_config(CONFIGS["camvid"], [override])


@pytest.mark.parametrize("name", ["own", "camvid", "ade20k"])
def test_one_number_is_a_square(name, data_root):
    config = load_config(
        str(ROOT / f"configs/segformer_{name}.py"),
        [f"data.root={data_root}", "data.crop=64", "data.scale=96"],
    )
    assert (config.data.crop, config.data.scale) == ([64, 64], [96, 96])
    sizes = [it.size for it in config.dataloader.train.dataset.transforms if "size" in it]
    assert sizes == [[96, 96], [64, 64], [64, 64]]


def test_a_short_side_stays_a_number():
    config = load_config(IMAGENET, ["data.scale=96"])
    assert config.data.scale == 96


@pytest.mark.parametrize(
    ("overrides", "iterations", "period"),
    [
        (["train.train_epoch=20"], 0, 10),  # 20 epochs of 10 images, 4 a step
        (["train.train_epoch=20", "train.train_iter=7"], 7, 2),
        (["train.train_epoch=0"], 600, 120),
    ],
)
def test_epochs_count_where_iterations_are_not_set_too(overrides, iterations, period, data_root):
    own = str(ROOT / "configs/segformer_own.py")
    train = load_config(own, [f"data.root={data_root}", *overrides]).train
    assert (train.train_iter, train.evaluation.eval_period) == (iterations, period)
    if iterations == 0:
        assert load_config(CONFIGS["city"], overrides).train.train_iter == 0


@pytest.mark.parametrize(
    "override",
    [
        *("train.train_iter=abc", "train.train_epoch=abc", "train.global_batch_size=abc"),
        *("data.scale=abc", "data.root=null", "train.train_epoch=null"),
    ],
)
def test_values_that_the_data_are_asked_for_are_checked_before(override, data_root):
    own = str(ROOT / "configs/segformer_own.py")
    with pytest.raises(InputError, match=f"^{override}: expected"):
        load_config(own, [f"data.root={data_root}", override])
