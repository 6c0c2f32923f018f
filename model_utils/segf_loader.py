"""Loaders: a model class, a config and a path in; a model with those weights out."""

import difflib
import inspect
import logging
import os
from functools import cached_property
from math import prod

from projects.SegFormer.model_utils.huggingface_config import read_config, to_settings
from projects.SegFormer.model_utils.key_rules import EPS_NAMES, KeyFormat, lazily_here
from projects.SegFormer.model_utils.lazy_state import LazyState
from projects.SegFormer.model_utils.model_weights import load_state, on_rank_0
from projects.SegFormer.model_utils.unwrapping import find_fit, merge_adapters
from projects.SegFormer.model_utils.weight_files import (
    RECORD_FILE,
    SETTINGS_FILE,
    as_state,
    stored_tensors,
    told_by_file,
)
from projects.SegFormer.model_utils.weight_paths import LIBAI_FOLDER, snapshot
from projects.SegFormer.modeling.bounds import MODEL_SETTINGS, PARAMETERS_BEYOND_WEIGHTS
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_json
from projects.SegFormer.modeling.layers import LayerNorm
from projects.SegFormer.modeling.segformer_model import (
    SegformerForSemanticSegmentation,
    SegformerPreTrainModel,
)
from projects.SegFormer.modeling.settings import (
    STAGE_SETTINGS,
    check_settings,
    count_parameters,
)

logger = logging.getLogger("libai." + __name__)


class SegFLoader:
    """Builds `model` from a config and fills it with the weights at `pretrained_model_path`.

    The format of the weights is told by their keys. Sizes and eps that are stored with the weights
    go over `libai_cfg`, and keyword arguments over both. It is called on all ranks: rank 0 reads,
    and every rank takes its shard.

    Args:
        model: a model class of modeling/; a bare encoder takes the encoder's weights alone.
        libai_cfg: its config.
        pretrained_model_path: a folder or a file.
        strict: stop on missing, unexpected or wrongly shaped keys.
        ignore_mismatched_head: keep `num_classes` of `libai_cfg` also where the weights have
            another number of classes; the classifier then starts fresh.
        settings: config values that override the others.
    """

    def __init__(
        self,
        model,
        libai_cfg,
        pretrained_model_path: str,
        *,
        strict: bool = True,
        ignore_mismatched_head: bool = False,
        **settings,
    ):
        self.model, self.path = model, snapshot(str(pretrained_model_path))
        self.strict, self.ignore_mismatched_head = strict, ignore_mismatched_head
        self.libai_cfg, self.settings = libai_cfg, settings

    def stored_config(self) -> dict:
        """Config values that come with the weights: eps, as far as it is known.

        Called on rank 0.
        """
        _, key_format = self.opened
        return dict(zip(EPS_NAMES, eps_of(self.path, key_format) or ()))

    @cached_property
    def opened(self) -> tuple[LazyState, KeyFormat]:
        """The weights, on rank 0. They are there for one reading, by `load`."""
        return open_in_any_format(self.path)

    def load(self):
        """The model with its weights, in evaluation mode.

        Raises InputError for files that are missing, broken or do not fit the model.
        """
        stored = on_rank_0(self.stored_config)
        if self.ignore_mismatched_head and "num_classes" in self.libai_cfg:
            stored.pop("num_classes", None)
        self.libai_cfg = {**self.libai_cfg, **stored, **self.settings}
        try:
            on_rank_0(lambda: check_size(self.libai_cfg, self.opened[0]))
            model = self.model(**model_arguments(self.model, self.libai_cfg))
        except InputError as error:
            raise InputError(f"the config of {self.path}: {error}") from error
        load_state(
            model,
            lambda: self.opened[0],
            self.path,
            strict=self.strict,
            ignore_mismatched_head=self.ignore_mismatched_head,
        )
        self.__dict__.pop("opened", None)
        return model.eval()


def check_size(settings, state: LazyState) -> None:
    """Raises InputError for settings of a far larger model than the weights in `state` are of.

    To build it only to find that they do not fit would take its memory, and minutes.
    """
    check_settings(settings)
    here = count_parameters(settings) if settings.keys() >= {*STAGE_SETTINGS} else 0
    stored = sum(map(prod, state.shapes.values()))
    if here > max(2 * stored, PARAMETERS_BEYOND_WEIGHTS):
        raise InputError(
            f"it is of a model with {here:,} parameters, the weights are {stored:,} numbers: they "
            "do not belong together"
        )


def open_in_any_format(path: str) -> tuple[LazyState, KeyFormat]:
    """The weights at `path`, named and laid out as in this project, and the format they are in.

    What contains them and what stands before their names goes; adapters are merged. Where the file
    has other weights too, the log says which are taken (see `unwrapping.find_fit`).
    Raises InputError when they cannot be read or are in no known format.
    """
    stored = stored_tensors(path)
    with told_by_file(path):
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        stored = merge_adapters(stored, os.path.join(snapshot(folder), "adapter_config.json"))
        fit = find_fit({key: tuple(tensor.shape) for key, tensor in stored.items()}, path)
        state = as_state({key: stored[key] for key in fit.keys}, path)
        here = lazily_here(state, fit.key_format, fit.prefix)
    taken, *others = ((prefix or "no prefix").rstrip(".") for prefix in (fit.prefix, *fit.others))
    if others:
        logger.warning(
            f"{path} holds several sets of weights: under {taken}, which is taken, and under "
            f"{', '.join(others)}. To have another, save it alone"
        )
    elif left_out := sorted(stored.keys() - set(fit.keys)):
        logger.info(
            f"{path}: {len(left_out)} tensors beside the weights are left out, as {left_out[0]}"
        )

    def read():
        with told_by_file(path):
            yield from here.read()

    return LazyState(here.shapes, read), fit.key_format


def eps_of(path: str, key_format: KeyFormat) -> tuple[float, float] | None:
    """EPS_NAMES of the code or the training that the weights at `path` come from, if it is known.

    Raises InputError when what is written down with them is damaged.
    """
    if key_format.eps:
        return key_format.eps
    for folder in (path, os.path.dirname(os.path.abspath(path))) if os.path.isdir(path) else ():
        for name in (SETTINGS_FILE, RECORD_FILE):
            file = os.path.join(folder, name)
            if os.path.isfile(file):
                settings = read_json(file).get("settings")
                if isinstance(settings, dict) and settings.keys() >= set(EPS_NAMES):
                    with told_by_file(file):
                        check_settings({name: settings[name] for name in EPS_NAMES})
                    return tuple(settings[name] for name in EPS_NAMES)
    return None


def eps_in(model) -> tuple[float, float] | None:
    """EPS_NAMES of a model that is there; None for one without an encoder of this project."""
    encoder = _encoder(model)
    return encoder and (encoder.layer_norms[0].eps, encoder.patch_embeds[0].norm.eps)


def take_eps(model, eps: tuple[float, float] | None, source: str) -> None:
    """Give a model the eps that its weights were made with.

    A value of the config that is not the default was set on purpose and stays, with a warning.
    Args:
        eps: as `eps_of` has it; with None the config's is given back.
        source: what messages call the weights.
    """
    encoder = _encoder(model)
    if encoder is None:
        return
    # The first change remembers the config's, by which a second one goes.
    config = encoder.__dict__.setdefault("eps_of_config", eps_in(model))
    parameters = inspect.signature(SegformerPreTrainModel.__init__).parameters
    defaults = tuple(parameters[name].default for name in EPS_NAMES)
    taken = tuple(
        theirs if own == default else own
        for theirs, own, default in zip(eps or config, config, defaults)
    )
    for name, module in encoder.named_modules():
        if isinstance(module, LayerNorm):
            is_embed_norm = name.startswith("patch_embeds.") or name.endswith(".attn.norm")
            module.eps = taken[is_embed_norm]
    names = " and ".join(EPS_NAMES)
    if eps and taken != eps:
        logger.warning(
            f"{source} was made with {names} of {eps}; the config was set to {config}, and the "
            f"model has {taken}"
        )
    elif eps and taken != config:
        logger.info(
            f"{source} was made with {names} of {eps}, which are taken; the config has {config}"
        )


def _encoder(model):
    return model if isinstance(model, SegformerPreTrainModel) else getattr(model, "segformer", None)


def fill_model(model, path: str, *, only: str = "", strict: bool = True) -> None:
    """Copy the weights at `path`, in whichever format they are, into a model that is there.

    Called on all ranks; rank 0 reads. `only`, `strict` and errors as in `model_weights.load_state`.
    The model takes the eps of the weights as `take_eps` has it.
    """
    state = None

    def open_them():
        nonlocal state
        state, key_format = open_in_any_format(path)
        return eps_of(path, key_format)

    eps = on_rank_0(open_them)
    load_state(model, lambda: state, path, only=only, strict=strict)
    take_eps(model, eps, path)


class SegFLoaderHuggerFace(SegFLoader):
    """Loads a folder written by transformers' `save_pretrained`, with the config in config.json."""

    def stored_config(self) -> dict:
        return to_settings(read_config(self.path), self.path) | super().stored_config()


class SegFLoaderOfficial(SegFLoader):
    """Loads a segmentation checkpoint of the paper's authors: a .pth file, or a folder with it.

    Sizes and number of classes come from `libai_cfg`, eps is that of the paper's code.
    """


class SegFLoaderLiBai(SegFLoader):
    """Loads a checkpoint that LiBai's trainer wrote, under whichever split of the ranks.

    One that tools/convert_weights.py wrote has its settings with it.
    """

    def stored_config(self) -> dict:
        file = os.path.join(self.path, SETTINGS_FILE)
        settings = read_description(file)["settings"] if os.path.isfile(file) else {}
        return super().stored_config() | settings


def read_description(file: str) -> dict:
    """What tools/convert_weights.py wrote beside a checkpoint: `settings` of the model, names of
    its `classes`, its `image_processor`.

    Raises InputError when it is damaged, or has settings of something else.
    """
    description = read_json(file, "settings", "classes", "image_processor")
    kinds = dict(settings=dict, classes=list, image_processor=dict)
    wrong = [name for name, kind in kinds.items() if not isinstance(description[name], kind)]
    if wrong:
        raise InputError(f"{file} has no {wrong[0]}: convert the weights again")
    settings = description["settings"]
    if settings.keys() - MODEL_SETTINGS.keys():
        raise InputError(
            f"{file} has settings that are not a SegFormer's: convert the weights again"
        )
    description["classes"] = [str(name) for name in description["classes"]]
    return description


def model_arguments(model, settings) -> dict:
    """Those of `settings` that the model class takes: one config serves encoder and both models.

    Raises InputError for a name that none of them has.
    """
    known = set(inspect.signature(SegformerPreTrainModel.__init__).parameters) - {"self"}
    others = SegformerForSemanticSegmentation.argument_names() | {
        *("pretrained_model_path", "label_smoothing")
    }
    if not issubclass(model, SegformerPreTrainModel):
        known |= model.argument_names()
    for name in settings:
        if name not in known | others:
            near = difflib.get_close_matches(name, known, n=3) or sorted(known)
            raise InputError(f"{model.__name__} has no setting {name!r}: is it {', '.join(near)}?")
    own = known - {"pretrained_model_path"}  # these weights go over others
    return {name: value for name, value in settings.items() if name in own}


def load_weights(libai_cfg, path: str, model=SegformerForSemanticSegmentation):
    """A model with the weights at `path`, in whichever format they are.

    A folder with config.json is transformers', one with `model` in it LiBai's; anything else is
    taken for the paper's.
    Raises InputError when the weights are missing, broken or do not fit.
    """
    path = snapshot(path)
    if os.path.isfile(os.path.join(path, "config.json")):
        loader = SegFLoaderHuggerFace
    elif os.path.isdir(os.path.join(path, LIBAI_FOLDER)):
        loader = SegFLoaderLiBai
    else:
        loader = SegFLoaderOfficial
    return loader(model, libai_cfg, path).load()
