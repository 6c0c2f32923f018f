"""YAML configs that would run code, read the environment, fill memory, or never end."""

import os

import pytest
import yaml
from libai.config import instantiate
from omegaconf import OmegaConf

from contained import MEMORY, contained
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.yaml_config import load_yaml
from projects.SegFormer.modeling.errors import InputError

TOUCH = "{_target_: os.system, command: touch MARKER}"

# MARKER is a file that is there if something ran.
CODE = {
    "apply": "x: !!python/object/apply:os.system [touch MARKER]",
    "apply with mapping": "x: !!python/object/apply:os.system {args: [touch MARKER]}",
    "new": "x: !!python/object/new:subprocess.Popen [[touch, MARKER]]",
    "object": "x: !!python/object:argparse.Namespace {x: 1}",
    "name": "x: !!python/name:os.system",
    "module": "x: !!python/module:os",
    "tuple of apply": "x: !!python/tuple [!!python/object/apply:os.system [touch MARKER]]",
    "whole tag": "x: !<tag:yaml.org,2002:python/object/apply:os.system> [touch MARKER]",
    "tag by a handle": (
        "%TAG !p! tag:yaml.org,2002:python/\n---\nx: !p!object/apply:os.system [touch MARKER]"
    ),
    "key": "? !!python/object/apply:os.system [touch MARKER]\n: 1",
    "state": (
        "x: !!python/object/new:type {args: [T, !!python/tuple [], {}], state: {a: 1},"
        " listitems: !!python/object/apply:os.system [touch MARKER]}"
    ),
    "target": f"x: {TOUCH}",
    "target in lists": f"x: [[{TOUCH}]]",
    "target in a tuple": f"x: !!python/tuple [{TOUCH}]",
    "target in pairs": f"x: !!pairs [a: {TOUCH}]",
    "target in an ordered map": f"x: !!omap [a: {TOUCH}]",
    "target behind a merge": f"a: &a {TOUCH}\nx: {{<<: *a}}",
    "target behind an anchor": f"x: [&a {TOUCH}, *a]",
    "target as a reference": "n: os.system\nx: {_target_: '${n}', command: touch MARKER}",
    "target in two parts": "n: os\nx: {_target_: '${n}.system', command: touch MARKER}",
    "target of a target": f"x: {{_target_: {TOUCH}}}",
    "target through an allowed module": (
        "x: {_target_: projects.SegFormer.dataset.folder.os.system, command: touch MARKER}"
    ),
    "target through another": "x: {_target_: libai.layers.linear.nn.Module}",
    "target through a private one": "x: {_target_: libai.layers.__builtins__.eval}",
    "target of a method": (
        "x: {_target_: projects.SegFormer.dataset.folder.Path.touch, self: MARKER}"
    ),
    "target of LiBai's loader": "x: {_target_: libai.config.LazyConfig.load, filename: MARKER.py}",
    "target that locates": "x: {_target_: libai.config.lazy.locate, name: antigravity}",
    "target of another module": "x: {_target_: projects.SegFormer.tools.export.write}",
    "target of a test": "x: {_target_: projects.SegFormer.tools.train_net.main, arguments: []}",
    "target with a name below": "x: {_target_: oneflow.optim.Adam.__init__.__globals__}",
    "target that is a number": "x: {_target_: 1}",
    "target that is nothing": "x: {_target_: }",
    "environment": "x: ${oc.env:SECRET}",
    "environment in a text": "x: before ${oc.env:SECRET} after",
    "environment by parts": "a: oc.env\nx: '${${a}:SECRET}'",
    "environment by a dollar": "a: '{oc.env:SECRET}'\nx: '$${a}'",
    "environment, decoded": "x: '${oc.decode:\"${oc.env:SECRET}\"}'",
    "environment in a key": "x: {'${oc.env:SECRET}': '${oc.env:SECRET}'}",
    "environment in pairs": "x: !!pairs [a: '${oc.env:SECRET}']",
    "environment in an ordered map": "x: !!omap [a: ['${oc.env:SECRET}']]",
    "environment, escaped": "x: '\\\\${oc.env:SECRET}'",
    "a resolver": "x: ${oc.create:{a: 1}}",
    "deprecated environment": "x: ${env:SECRET}",
}


def everything(config):
    """All values of a config, resolved and built as a training would."""
    from omegaconf import OmegaConf

    instantiate(config)
    return repr(OmegaConf.to_container(config, resolve=True))


def test_the_attacks_work_on_unsafe_load(tmp_path):
    content = yaml.unsafe_load(CODE["apply"].replace("MARKER", str(tmp_path / "marker")))
    assert (tmp_path / "marker").exists() and content == {"x": 0}
    (tmp_path / "marker").unlink()
    content = yaml.safe_load(TOUCH.replace("MARKER", str(tmp_path / "marker")))
    instantiate(OmegaConf.create(content))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("attack", CODE)
def test_nothing_runs_and_no_secret_gets_in(tmp_path, monkeypatch, attack):
    monkeypatch.setenv("SECRET", "sesame")
    marker, file = tmp_path / "marker", tmp_path / "config.yaml"
    file.write_text(CODE[attack].replace("MARKER", str(marker)) + "\n")
    try:
        seen = everything(load_yaml(str(file)))
    except InputError as error:
        assert str(file) in str(error) and len(str(error).splitlines()) == 1
        seen = str(error)
    assert not marker.exists() and "sesame" not in seen
    # None of these is what a config of a training has.
    with pytest.raises(InputError):
        load_yaml(str(file))


def levels(first: str, step: str, count: int) -> str:
    lines = [f"v0: &v0 {first}"]
    lines += [f"v{i}: &v{i} {step.format(i - 1)}" for i in range(1, count)]
    return "\n".join(lines)


def references(first: str, step: str, count: int) -> str:
    lines = [f"v0: {first}"]
    lines += [f"v{i}: '{step.format(i - 1)}'" for i in range(1, count)]
    return "\n".join(lines)


RESOURCES = {
    "anchors": levels("[x]", "[*v{0}, *v{0}, *v{0}, *v{0}]", 30),
    "anchors as values": levels("{a: 1}", "{{a: *v{0}, b: *v{0}, c: *v{0}}}", 30),
    "anchors in pairs": levels("[x]", "!!pairs [a: *v{0}, b: *v{0}]", 30),
    "anchors in a set of a tuple": levels("[x]", "!!python/tuple [*v{0}, *v{0}]", 40),
    "merges": levels("{a: 1}", "{{<<: [*v{0}, *v{0}, *v{0}]}}", 30),
    "references": references("xx", "${{v{0}}}${{v{0}}}", 60),
    "reference to many": "s: &s " + "x" * 400_000 + "\nl: [" + "*s," * 100_000 + "]\nr: ${l}",
    "many references": "a: ''\nt: '" + "x" * 500_000 + "${a}" * 120_000 + "'",
    "reference to itself": "a: ${a}",
    "references in a circle": "a: ${b}\nb: ${a}",
    "a circle": "a: &a [*a]",
    "deep": "a: " + "[" * 400_000,
    "deep and closed": "a: " + "[" * 5000 + "]" * 5000,
    "deep mappings": "a: " + "{a: " * 900 + "}" * 900,
    "values": "a: [" + "1," * 400_000 + "]",
    "keys": "\n".join(f"k{i}:" for i in range(120_000)),
    "empty mappings": "a: [" + "{}," * 190_000 + "]",
    "mappings by an anchor": "a: &a {b: 1}\nc: [" + "*a," * 95_000 + "]",
    "digits": "a: " + "9" * 900_000,
    "sixties": "a: " + ":".join(["59"] * 300_000),
    "large": "a: " + "x" * 2**21,
    "documents": "a: 1\n---\n" * 1000,
    "binary": "a: !!binary " + "A" * 900_000,
}


@pytest.mark.parametrize("attack", RESOURCES)
def test_little_memory_and_time(tmp_path, attack):
    file = tmp_path / "config.yaml"
    file.write_text(RESOURCES[attack] + "\n")
    outcome = contained(lambda: load_config(str(file)))
    assert outcome.kind == "refused", outcome
    assert str(file) in outcome.text and len(outcome.text) < 2000
    assert outcome.peak < MEMORY


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"a: \xff\xfe",
        b"[1]",
        b"a",
        b"- a",
        b"~",
        b"1: 2",
        b"? [a]\n: 1",
        b"&a a: 1\n*a : 2",
        b"%YAML 9.9\n---\na: 1",
        b"a: 2001-99-99",
        b"a: !!int x",
        b"a: !!float ''",
        b"a: !!binary '\xc3\xa9'",
        b"train: 1\nmodel: 2\ndataloader: 3\noptim: 4\ngraph: 5",
        b"a.b: 1\na: {b: 2}",
        b"a: '${'",
        b"train: {}\nmodel: 2\ndataloader: {}\noptim: {}\ngraph: {}\ncfg: {a: 1}",
        b"a: ${b.c}\nb: 1",
        b"train: []\nmodel: []\ndataloader: []\noptim: []\ngraph: []\ncfg: []",
        b"a: !!set {[a]}",
        b"<<: 1",
        b"<<: [1]",
        b"a: {<<: [*b]}",
        b"a: '${.b}'",
        b"a: '${..b}'",
        b"a: '???'",
        b"!!set {a, b}",
        b"!!omap [a: 1]",
        b"!!pairs [a: 1]",
        b"\xff\xfea\x00:\x00 \x001\x00",
        b'a: "\\ud800"',
        b"a: !x 1",
    ],
)
def test_what_is_no_config(tmp_path, content):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    outcome = contained(lambda: load_config(str(file)))
    assert outcome.kind == "refused" and str(file) in outcome.text, outcome
    assert len(outcome.text.splitlines()) == 1


def test_pipes_and_devices_are_no_configs(tmp_path):
    os.mkfifo(tmp_path / "x.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for file in (tmp_path / "x.yaml", tmp_path / "zero.yaml"):
        outcome = contained(lambda file=file: load_config(str(file)))
        assert outcome.kind == "refused" and str(file) in outcome.text
