"""From what a person names to weight files, and what other files are by their names and content."""

import os
import re
from pathlib import Path

from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_bytes, read_json, reason

# A folder is looked through in this order; then for a single file with one of the suffixes.
FILE_NAMES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".bin")
BESIDE = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")  # of a Trainer
LIBAI_FOLDER = "model"  # in a checkpoint of LiBai's trainer, beside optimizer and lr_scheduler
FIRST_BYTES = 64  # what a kind of file is told by

_SAVE_AGAIN = (
    "load it with transformers, SegformerForSemanticSegmentation.from_pretrained(FOLDER, {}=True), "
    "and save_pretrained() that"
)
# Suffixes, first bytes, what it is, what to do.
_OTHER_KINDS = (
    ((), (b"version https://git-lfs",), "a Git LFS pointer", "run git lfs pull in its folder"),
    ((), (b"<",), "no weights but a web page", "download it again"),
    (
        (".pdparams", ".pdopt", ".pdiparams", ".pdmodel"),
        (),
        "PaddlePaddle's",
        "take the PyTorch weights that it was made of, as mit_b0.pth of the paper's authors",
    ),
    (
        (".h5", ".hdf5", ".keras"),
        (b"\x89HDF\r\n\x1a\n",),
        "TensorFlow's",
        _SAVE_AGAIN.format("from_tf"),
    ),
    (
        (".pb", ".ckpt.index", ".ckpt.meta", ".data-00000-of-00001", ".tflite"),
        (),
        "TensorFlow's",
        "take the PyTorch weights that it was made of",
    ),
    ((".msgpack",), (), "Flax's", _SAVE_AGAIN.format("from_flax")),
    (
        (".onnx",),
        (),
        "an ONNX graph",
        "tools/predict.py takes it with --engine onnx; elsewhere take the weights it was made of",
    ),
    (
        (".engine", ".plan", ".trt", ".mlmodel", ".gguf"),
        (b"GGUF",),
        "a network made ready for other software",
        "take the weights it was made of",
    ),
    (
        (".npz", ".npy"),
        (b"\x93NUMPY",),
        "arrays of NumPy",
        "write them with safetensors.numpy.save_file",
    ),
    (
        (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst"),
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd"),
        "an archive",
        "unpack it, and give what was in it",
    ),
)


def other_kind(name: str, start: bytes = b"") -> str | None:
    """What a file is that holds no weights for this project, and what to do; or None.

    Args:
        name: of the file.
        start: its first bytes.
    """
    for suffixes, magic, kind, advice in _OTHER_KINDS:
        if (start and start.startswith(magic)) or name.lower().endswith(suffixes):
            return f"{kind}: {advice}"
    return None


def find_weight_files(path: str) -> list[str]:
    """The weight files at `path`: itself, or what a folder holds, all its shards if sharded.

    A folder of LiBai's trainer counts as one file; of a cache of the Hugging Face Hub the snapshot
    is looked through.
    Raises InputError when there is none, when there are several to choose from, or when an index
    names a shard that is missing.
    """
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise InputError(f"no weights at {path}: neither a file nor a folder{how_to_get(path)}")
    path = snapshot(path)
    for folder in (path, os.path.join(path, LIBAI_FOLDER)):
        if os.path.isfile(os.path.join(folder, "pickled_data")):
            return [folder]
    for name in FILE_NAMES:
        file = os.path.join(path, name)
        if os.path.isfile(file):
            return [file]
        if os.path.isfile(file + ".index.json"):
            return _shards(file + ".index.json")
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise InputError(f"cannot read the folder {path}: {error.strerror}") from error
    for suffix in SUFFIXES:
        files = [
            name
            for name in names
            if name.endswith(suffix) and not name.startswith(BESIDE)
            if not os.path.isdir(os.path.join(path, name))
        ]
        if len(files) > 1:
            raise InputError(f"{path} holds {', '.join(files)}: say which, by the path of the file")
        if files:
            return [os.path.join(path, files[0])]
    raise InputError(
        f"no weights in {path}: expected {', '.join(FILE_NAMES)}, one file that ends on .pth, "
        f"or a checkpoint of LiBai's trainer with its folder `{LIBAI_FOLDER}`; {_content(names)}"
    )


def _content(names: list[str]) -> str:
    """What a folder holds instead of weights."""
    if not names:
        return "it is empty"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    kinds = [f". {name} is {kind}" for name in names if (kind := other_kind(name))]
    return f"it holds {', '.join(names[:5])}{more}{kinds[0] if kinds else ''}"


def _shards(index: str) -> list[str]:
    """The files that an index names: file names beside it, nothing elsewhere."""
    weight_map = read_json(index, "weight_map")["weight_map"]
    names = weight_map.values() if isinstance(weight_map, dict) else [None]
    if not all(isinstance(name, str) and name and "\0" not in name for name in names):
        raise InputError(f"{index} has a weight_map that names no files: download it again")
    files = []
    for name in sorted(set(names)):
        files.append(os.path.join(os.path.dirname(index), name))
        if os.path.basename(name) != name:
            raise InputError(f"{index} names {name}: expected the names of files beside it")
        if not os.path.isfile(files[-1]):
            raise InputError(f"{index} names {name}, which is not there: download it as well")
    return files


def snapshot(path: str) -> str:
    """The folder that is meant by one of a cache of the Hugging Face Hub; else `path` itself.

    Of a model's folder it is the snapshot that is called `main`, else the newest. A folder above it
    may hold one model.
    Raises InputError when there are several models, or no snapshot.
    """
    folder = Path(path)
    if folder.name == "snapshots" and folder.parent.name.startswith("models--"):
        folder = folder.parent
    if not folder.name.startswith("models--"):
        try:
            models = sorted(folder.glob("models--*"))
        except OSError as error:
            raise InputError(f"cannot read the folder {path}: {reason(error)}") from error
        if len(models) > 1:
            names = ", ".join(model.name for model in models[:5])
            raise InputError(f"{path} holds {len(models)} models, {names}: say which")
        if not models:
            return path
        folder = models[0]
    snapshots = [place for place in folder.glob("snapshots/*") if place.is_dir()]
    if not snapshots:
        raise InputError(f"{folder} has no snapshot: the download did not end, start it again")
    main = folder / "refs" / "main"
    name = read_bytes(main, 1_000).decode(errors="replace").strip() if main.is_file() else None
    called = [place for place in snapshots if place.name == name]
    return str(called[0] if called else max(snapshots, key=lambda place: place.stat().st_mtime))


def how_to_get(path: str) -> str:
    """What to do about a path that is not there, where it looks like a name on the Hub."""
    if "://" in path:
        return ". Download it, and give the path here"
    folder, _, name = path.partition("/")
    is_name = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path) and not path.endswith(SUFFIXES)
    if not is_name or os.path.isdir(folder):
        return ""
    return (
        f". If it is a model of the Hugging Face Hub, bring it here and give that folder: "
        f"huggingface-cli download {path} --local-dir pretrained/{name}"
    )
