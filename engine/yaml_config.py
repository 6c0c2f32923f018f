"""A YAML config as data: the config.yaml of a training, whoever gave it.

LiBai reads it with yaml.unsafe_load, which builds any object, and calls whatever `_target_` names.
"""

import inspect
import logging
import re
from contextlib import suppress

import yaml
from libai.config.lazy import _convert_target_to_string, locate
from omegaconf import DictConfig, OmegaConf

from projects.SegFormer.modeling.bounds import (
    NESTING,
    YAML_BYTES,
    YAML_REFERENCES,
    YAML_VALUES,
)
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_bytes, reason, write_whole

logger = logging.getLogger("libai." + __name__)

# Modules whose classes and functions a `_target_` may name: they build parts of a training and
# neither write files nor run what they read. A name without a dot at its end is that one alone.
TARGETS = (
    *(
        f"projects.SegFormer.dataset.{module}."
        for module in (
            *("ade20k", "build", "cityscapes", "classification", "classification_transforms"),
            *("coco_stuff", "folder", "mixing", "pascal_voc", "segmentation", "transforms"),
        )
    ),
    "projects.SegFormer.engine.graph.SegformerGraph",
    "projects.SegFormer.engine.optim.",
    "projects.SegFormer.evaluation.inference.Inference",
    "projects.SegFormer.modeling.segformer_loadmodel.",
    "projects.SegFormer.modeling.segformer_model.",
    *("libai.data.samplers.", "libai.layers.", "libai.optim.", "libai.scheduler."),
    *("oneflow.nn.optimizer.", "oneflow.optim."),
)
NUMBER = 40  # letters
REFERENCE = re.compile(r"\$\{([\w.\[\]]*)\}")  # without another in it


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML's plain values, lists and mappings, and nothing else that it can build."""

    def flatten_mapping(self, node):
        """No merge keys (<<): what they write out would be there before it is counted."""


def _number(loader, node):
    """A number, but not 1:30, of which YAML 1.1 takes long to make 90 where it has many parts."""
    if ":" in node.value or len(node.value) > NUMBER:
        return node.value
    return yaml.SafeLoader.yaml_constructors[node.tag](loader, node)


_TAG = "tag:yaml.org,2002:"
_KNOWN = {
    _TAG + name: yaml.SafeLoader.yaml_constructors[_TAG + name]
    for name in ("null", "bool", "str", "seq", "map")
}
_Loader.yaml_constructors = {
    None: yaml.SafeLoader.yaml_constructors[None],  # refuses
    **_KNOWN,
    **{_TAG + name: _number for name in ("int", "float")},
    _TAG + "timestamp": _KNOWN[_TAG + "str"],
    _TAG + "python/tuple": _KNOWN[_TAG + "seq"],  # LiBai's configs may have had them
}


def load_yaml(file: str) -> DictConfig:
    """The config in a YAML file, with a class or function for the name in each `_target_`.

    Raises InputError for what is not YAML, is not data, asks for more than `modeling.bounds`, names
    a `_target_` that is none of TARGETS, or refers to anything but a plain value of the file.
    """
    try:
        text = read_bytes(file, YAML_BYTES)
        _check_events(text)
        content = yaml.load(text, _Loader)
        if not isinstance(content, dict):
            raise InputError("it is no mapping of names to values")
        values = _values(content)
        _check_references([value for *_, value in values], content)
        for holder, key, value in values:
            if key == "_target_":
                holder[key] = _target(value)
        return OmegaConf.create(content, flags={"allow_objects": True})
    except yaml.constructor.ConstructorError as error:
        raise InputError(
            f"{file} is refused: line {error.problem_mark.line + 1}, {error.problem}; a YAML "
            "config is data. What has to be code belongs in a .py config"
        ) from error
    except Exception as error:  # PyYAML's and OmegaConf's have no common class
        text = str(error) if isinstance(error, InputError) else reason(error)
        raise InputError(f"cannot load the config {file}: {text}") from error


def _check_events(text: bytes) -> None:
    """PyYAML builds all there is before it can be counted, and each level by a call, in C, of which
    many crash.
    """
    depth = 0
    for count, event in enumerate(yaml.parse(text, _Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > NESTING or count > YAML_VALUES:
            raise InputError(
                f"it has more than {YAML_VALUES:,} values, or they are more than {NESTING} deep"
            )


def _values(content) -> list[tuple]:
    """(container, key, value) of all there is, as often as anchors repeat it."""
    found, waiting = [], [content]
    while waiting:
        container = waiting.pop()
        pairs = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in pairs:
            found.append((container, key, value))
            if isinstance(value, (dict, list)):
                waiting.append(value)
        if len(found) > YAML_VALUES:
            raise InputError(f"it has more than {YAML_VALUES:,} values")
    return found


def _target(name):
    """The class or function that a `_target_` names."""
    found = None
    if _is_allowed(name):
        with suppress(Exception):  # there is no such, or its module cannot be imported
            found = locate(name)
    is_callable = inspect.isclass(found) or inspect.isfunction(found)
    # An allowed module may import what is not.
    if not is_callable or not _is_allowed(f"{found.__module__}.{found.__qualname__}"):
        raise InputError(
            f"_target_ {name!r} is none of those that a YAML config may name (TARGETS in "
            "engine/yaml_config.py): use a .py config for it"
        )
    return found


def _is_allowed(name) -> bool:
    if not isinstance(name, str) or any(part.startswith("_") for part in name.split(".")):
        return False
    return any(name == known or known[-1] == "." and name.startswith(known) for known in TARGETS)


def _check_references(values: list, content: dict) -> None:
    """Raises InputError unless each ${...} names a value of the file that has no such in it.

    So nothing of the environment gets in, which OmegaConf's resolvers read, and nothing grows: a
    value that refers twice to one that refers twice doubles at each step.
    """
    known, left = {}, YAML_REFERENCES
    for text in _texts(values):
        rest = text
        while "${" in rest:
            reference, left = REFERENCE.search(rest), left - 1
            key = reference and reference[1]
            if key not in known:
                known[key] = _written_out(key, content)
            if known[key] is None or left < 0 or len(rest) > YAML_BYTES:
                raise InputError(f"{text[:80]!r} refers to more than a plain value of the file")
            rest = rest.replace(reference[0], known[key], 1)


def _texts(values: list) -> list[str]:
    """Those of the values that are texts, one that an anchor repeats only once."""
    return list({id(value): value for value in values if isinstance(value, str)}.values())


def _written_out(key: str | None, content) -> str | None:
    """The value at "data.root" or "dataloader.test[0].dataset" as text, "" for a list or mapping;
    None if there is none, or a reference in it.
    """
    try:
        for part in key.replace("[", ".").replace("]", "").split("."):
            content = content[int(part)] if isinstance(content, list) else content[part]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
    is_one = not isinstance(content, (dict, list))
    inside = [content] if is_one else [value for *_, value in _values(content)]
    if any("${" in text for text in _texts(inside)):
        return None
    return str(content) if is_one else ""


# ---- Writing ------------------------------------------------------------------------------------


def save_yaml(config: DictConfig, file: str) -> None:
    """Write a config as `load_yaml` reads it. That it cannot be written is logged, in one line.

    LiBai pickles a config that YAML has no form for, and shows a stack trace on a full disk.
    """
    try:
        content = _plain(OmegaConf.to_container(config, resolve=False))
        text = yaml.safe_dump(content, default_flow_style=None, allow_unicode=True, width=9999)
        write_whole(file, text.encode())
    except (InputError, yaml.YAMLError, UnicodeEncodeError) as error:
        logger.error(f"{file} is not there: {reason(error)}; the run goes on")


def _plain(value):
    """`value` with names for classes and functions, and lists for tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if inspect.isclass(value) or inspect.isfunction(value):
        return _convert_target_to_string(value)
    return value
