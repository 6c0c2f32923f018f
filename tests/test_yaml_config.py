"""A YAML config: what a training writes of any config is read back; all else is data or refused."""

from pathlib import Path

import oneflow as flow
import pytest
import yaml
from libai.config import LazyConfig, instantiate
from omegaconf import OmegaConf

from conftest import ROOT
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.yaml_config import load_yaml, save_yaml
from projects.SegFormer.modeling.errors import InputError

CONFIGS = sorted((ROOT / "configs").glob("segformer_*.py"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_every_config_comes_back(tmp_path, data_root, file):
    """With its interpolations: overrides of what they name still reach all places."""
    config = load_config(str(file), [f"data.root={data_root}"])
    save_yaml(config, str(tmp_path / "config.yaml"))
    again = load_config(str(tmp_path / "config.yaml"))
    for overrides in ([], ["data.root=/elsewhere"]):
        one = LazyConfig.apply_overrides(config, overrides)
        two = LazyConfig.apply_overrides(again, overrides)
        assert plain(two) == plain(one)
    if "inference" in again:
        assert list(instantiate(again.inference).scales) == [1.0]


def plain(config):
    """All values, resolved; tuples as lists."""
    return as_lists(OmegaConf.to_container(config, resolve=True))


def as_lists(value):
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def load(tmp_path: Path, text: str):
    (tmp_path / "config.yaml").write_text(text)
    return load_yaml(str(tmp_path / "config.yaml"))


def test_values(tmp_path):
    config = load(tmp_path, "a: !!python/tuple [1, 2.5]\nb: ${a}\nc: x${d.e[0]}y\nd: {e: [z]}")
    assert OmegaConf.to_container(config, resolve=True) == {
        "a": [1, 2.5],
        "b": [1, 2.5],
        "c": "xzy",
        "d": {"e": ["z"]},
    }


@pytest.mark.parametrize(
    "name",
    [
        "oneflow.optim.SGD",
        "oneflow.optim.lr_scheduler.CosineAnnealingLR",
        "libai.scheduler.WarmupCosineLR",
        "projects.SegFormer.dataset.folder.SegmentationFolder",
        "projects.SegFormer.modeling.segformer_model.SegformerForImageClassification",
    ],
)
def test_what_a_target_may_name(tmp_path, name):
    assert load(tmp_path, f"_target_: {name}")._target_.__name__ == name.rpartition(".")[2]


def test_target_is_built(tmp_path):
    config = load(tmp_path, "_target_: oneflow.optim.SGD\nlr: 0.5")
    optimizer = instantiate({**config, "params": [flow.nn.Parameter(flow.ones(1))]})
    assert isinstance(optimizer, flow.optim.SGD)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1", "no mapping"),
        ("a: !!python/name:os.system", "line 1.*python/name:os.system"),
        ("a: !thing 1", "line 1.*!thing"),
        ("a: b\nc: ]", "while parsing"),
        ("a: ${b}", r"'\$\{b\}' refers to more"),
        ("_target_: collections.OrderedDict", "_target_ 'collections.OrderedDict'"),
        ("_target_: projects.SegFormer.dataset.build.nowhere", "_target_ .*nowhere"),
        ("_target_: [oneflow.optim.SGD]", "_target_"),
    ],
)
def test_what_is_refused(tmp_path, text, words):
    with pytest.raises(InputError, match=rf"config\.yaml.*{words}") as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_an_anchor_is_repeated(tmp_path):
    text = yaml.safe_dump(dict.fromkeys("ab", [1, [2]]))
    assert "&id" in text
    assert load(tmp_path, text) == {"a": [1, [2]], "b": [1, [2]]}
