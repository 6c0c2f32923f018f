"""Files that are damaged at random, read one after the other in a process of its own.

    python tests/security/fuzzing.py KIND SEED

reads the one file that a seed makes, with the stack trace of what goes wrong.
"""

import projects.SegFormer.engine.process  # noqa: F401

import json
import logging
import logging.handlers
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from contained import MEMORY, attempt, limit, peak_memory
from projects.SegFormer.dataset.classification import ImageNet
from projects.SegFormer.dataset.coco_stuff import _read_mat
from projects.SegFormer.dataset.image_files import image_size, read_image, read_label
from projects.SegFormer.dataset.list_files import read_names, read_rows
from projects.SegFormer.dataset.video_files import VideoFile
from projects.SegFormer.engine.checkpoint import last_checkpoint
from projects.SegFormer.engine.config import load_config, model_settings
from projects.SegFormer.engine.writers import _drop_later_lines
from projects.SegFormer.evaluation.onnx_model import OnnxModel
from projects.SegFormer.evaluation.prediction import classes_and_palette
from projects.SegFormer.model_utils.segf_loader import load_weights, open_in_any_format
from projects.SegFormer.model_utils.weight_files import read_meta
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import SegformerForSemanticSegmentation
from projects.SegFormer.tools.analyze import draw, read_metrics, summary
from projects.SegFormer.tools.convert_weights import main as convert

SECONDS = 10  # of the processor's time, for one file
TINY = dict(
    depths=[1, 1, 1, 1],
    hidden_sizes=[8, 16, 24, 32],
    num_attention_heads=[1, 2, 4, 8],
    sr_ratios=[2, 2, 2, 1],
    mlp_ratios=[1, 1, 1, 1],
    patch_sizes=[3, 3, 3, 3],
    strides=[4, 2, 2, 2],
    decoder_hidden_size=8,
    num_classes=3,
)

VIDEOS = {"mp4": "mp4v", "avi": "MJPG", "mkv": "mp4v", "ts": "MPG2", "wmv": "WMV2", "flv": "FLV1"}


@dataclass
class Kind:
    """A kind of file.

    Attributes:
        files: patterns under the folder of the originals, of one of which a file is damaged.
        read: from the path of the damaged file.
        whole: the folder, under that of the originals, that is copied to damage a file in it.
        is_text: also words are damaged.
        computes: it builds models, for which OneFlow must not have been forked.
    """

    files: list[str]
    read: Callable[[Path], object]
    whole: str = ""
    is_text: bool = False
    computes: bool = False


def read_weights(path: Path) -> None:
    for _ in open_in_any_format(str(path))[0].read():
        pass


def read_torch(path: Path) -> None:
    read_meta(str(path))
    read_weights(path)


def load_and_convert(path: Path) -> None:
    folder = path.parent
    output = folder.parent / "output"
    for target in ("huggingface", "libai"):
        shutil.rmtree(output, ignore_errors=True)
        convert(["--from", str(folder), "--to", target, "--output", str(output)])
    load_weights(TINY, str(folder))


def resume(path: Path) -> None:
    checkpoint = path.parent.parent
    training(checkpoint.parent).load_training_state(str(checkpoint))


def find_checkpoint(path: Path) -> None:
    """Raises the line of the log with which a checkpoint is passed over."""
    handler = logging.handlers.BufferingHandler(1000)
    logger = logging.getLogger("libai.projects.SegFormer.engine.checkpoint")
    logger.addHandler(handler)
    try:
        found = last_checkpoint(str(path.parent.parent))
    finally:
        logger.removeHandler(handler)
    if found is None:
        raise InputError("; ".join(record.getMessage() for record in handler.buffer))


def read_yaml(path: Path) -> None:
    model_settings(str(path), [])
    classes_and_palette(load_config(str(path)).dataloader.test[0].dataset)


def read_metrics_file(path: Path) -> None:
    _drop_later_lines(Path(shutil.copy(path, str(path) + ".copy")), 10)
    metrics = read_metrics(path)
    summary(metrics)
    draw({"run": metrics})


def read_picture(path: Path) -> None:
    image_size(path)
    read_image(path)


def read_video(path: Path) -> None:
    video = VideoFile(path)
    for _ in video:
        pass
    video.check_whole()


def images(suffix: str) -> dict[str, Kind]:
    names = [f"images/{name}{suffix}" for name in ("colour", "grey")]
    return {
        f"{suffix[1:]} as image": Kind(names, read_picture),
        f"{suffix[1:]} as label": Kind(names, read_label),
    }


KINDS: dict[str, Kind] = {
    "safetensors": Kind(["huggingface/model.safetensors"], read_weights),
    "zip pth": Kind(["official.pth", "training.pth"], read_torch),
    "legacy pth": Kind(["legacy.pth"], read_torch),
    "LiBai": Kind(
        ["libai/model/pickled_data", "libai/model/*/meta", "libai/model/*/out"],
        lambda path: read_weights(
            next(parent for parent in path.parents if parent.name == "model")
        ),
        "libai",
    ),
    "index.json": Kind(
        ["sharded/model.safetensors.index.json"],
        lambda path: read_weights(path.parent),
        "sharded",
        is_text=True,
    ),
    "config.json": Kind(
        ["huggingface/config.json", "huggingface/preprocessor_config.json"],
        load_and_convert,
        "huggingface",
        is_text=True,
        computes=True,
    ),
    "segformer.json": Kind(
        ["libai/segformer.json"], load_and_convert, "libai", is_text=True, computes=True
    ),
    "optimizer": Kind(
        [f"run/model_0000001/{part}/pickled_data" for part in ("optimizer", "lr_scheduler")],
        resume,
        "run",
        computes=True,
    ),
    "config.yaml": Kind(["config.yaml"], read_yaml, is_text=True),
    "checkpoint.json": Kind(
        ["run/model_0000001/checkpoint.json"],
        find_checkpoint,
        "run",
        is_text=True,
    ),
    "metrics.json": Kind(["metrics.json"], read_metrics_file, is_text=True),
    "list": Kind(["list.txt"], read_names, is_text=True),
    "CSV": Kind(["imagenet/LOC_val_solution.csv"], lambda path: read_rows(path, "a table"),
                is_text=True),
    "class list": Kind(
        ["imagenet/LOC_synset_mapping.txt", "imagenet/LOC_val_solution.csv"],
        lambda path: ImageNet(path.parent, "val", []),
        "imagenet",
        is_text=True,
    ),
    **images(".png"),
    **images(".jpg"),
    **images(".tif"),
    **images(".bmp"),
    **images(".webp"),
    "video": Kind([f"images/film.{suffix}" for suffix in VIDEOS], read_video),
    "mat": Kind(["label.mat", "packed.mat"], _read_mat),
    "ONNX": Kind(["model.onnx"], lambda path: OnnxModel(str(path))),
}  # fmt: skip


# ---- The originals ------------------------------------------------------------------------------


def make_originals(folder: Path) -> None:
    """One small file of each kind."""
    import torch
    from safetensors.numpy import load_file, save_file

    from projects.SegFormer.model_utils.model_weights import state_of
    from projects.SegFormer.model_utils.onnx_graph import to_onnx
    from projects.SegFormer.model_utils.weight_writers import (
        write_huggingface,
        write_libai,
        write_official,
    )

    model, classes = SegformerForSemanticSegmentation(**TINY).eval(), list("abc")
    state, settings = state_of(model), TINY | dict(layer_norm_eps=1e-5, embed_norm_eps=1e-5)
    write_huggingface(str(folder / "huggingface"), state, TINY, classes, {"do_resize": False})
    write_libai(str(folder / "libai"), state, settings, classes, {})
    write_official(str(folder / "official.pth"), state, classes)
    weights = load_file(folder / "huggingface" / "model.safetensors")
    (folder / "sharded").mkdir()
    save_file(weights, folder / "sharded" / "part.safetensors")
    index = {
        "metadata": {"total_size": 1},
        "weight_map": dict.fromkeys(weights, "part.safetensors"),
    }
    (folder / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))

    tensors = {key: torch.tensor(value) for key, value in list(weights.items())[:4]}
    content = {
        "state_dict": tensors,
        "meta": {"CLASSES": ("a", "b"), "time": np.float64(1.5), "rng": np.arange(4)},
        "args": Namespace(lr=1e-3, path=Path("x")),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(3)}}, "param_groups": [{}]},
    }
    torch.save(content, folder / "training.pth")
    torch.save(content, folder / "legacy.pth", _use_new_zipfile_serialization=False)

    (folder / "model.onnx").write_bytes(to_onnx(model).SerializeToString())
    checkpointer = training(folder / "run")
    for _ in range(2):
        step(checkpointer)
    checkpointer.save("model_0000001", 1)
    _make_texts(folder)
    _make_pictures(folder)


def training(folder: Path):
    """The Checkpointer of a training of a tiny model."""
    import oneflow as flow
    from oneflow import nn

    from projects.SegFormer.engine.checkpoint import Checkpointer
    from projects.SegFormer.engine.optim import warmup_poly

    folder.mkdir(exist_ok=True)
    model = nn.Linear(3, 2)
    here = dict(placement=flow.placement("cpu", ranks=[0]), sbp=flow.sbp.broadcast)
    model.to_global(**here)
    optimizer = flow.optim.AdamW([dict(params=list(model.parameters()), lr=1e-2)])
    schedule = warmup_poly(optimizer, max_iter=10, warmup_iter=2)
    checkpointer = Checkpointer(model, str(folder), optimizer=optimizer, lr_scheduler=schedule)
    checkpointer.inputs = flow.ones(2, 3, **here)
    return checkpointer


def step(checkpointer) -> None:
    checkpointer.model(checkpointer.inputs).sum().backward()
    checkpointer.checkpointables["optimizer"].step()
    checkpointer.checkpointables["lr_scheduler"].step()


def _make_texts(folder: Path) -> None:
    from libai.config import LazyConfig

    root = Path(__file__).resolve().parent.parent.parent
    config = LazyConfig.load(str(root / "configs" / "segformer_camvid.py"))
    config.model.cfg = config.pop("cfg")
    LazyConfig.save(config, str(folder / "config.yaml"))
    lines = [
        {"iteration": i, "total_loss": 2 / (i + 1), "lr": 1e-4} | ({"mIoU": 3.5} if i % 4 else {})
        for i in range(12)
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "list.txt").write_text("2007_000032\n2007_000039.jpg\na b\n")
    imagenet = folder / "imagenet"
    for name in ("train/n01", "train/n02", "val"):
        (imagenet / name).mkdir(parents=True)
        (imagenet / name / "a.jpg").touch()
    (imagenet / "LOC_val_solution.csv").write_text(
        'ImageId,PredictionString\na,n01 1 2 3 4\n"b",n02\n'
    )
    (imagenet / "LOC_synset_mapping.txt").write_text("n01 tench, Tinca tinca\nn02 goldfish\n")


def _make_pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    (folder / "images").mkdir()
    for suffix in (".png", ".jpg", ".tif", ".bmp", ".webp"):
        Image.fromarray(colour).save(folder / "images" / f"colour{suffix}")
        Image.fromarray(colour[..., 0]).save(folder / "images" / f"grey{suffix}")
    for suffix, codec in VIDEOS.items():
        file = str(folder / "images" / f"film.{suffix}")
        codec = cv2.VideoWriter_fourcc(*codec)
        writer = cv2.VideoWriter(file, cv2.CAP_FFMPEG, codec, 25, colour.shape[1::-1])
        for _ in range(4):
            writer.write(rng.integers(0, 256, colour.shape, dtype=np.uint8))
        writer.release()
    label = cv2.GaussianBlur(colour[..., 0], (5, 5), 3)
    from scipy.io import savemat

    savemat(folder / "label.mat", {"S": label, "names": ["a"]})
    savemat(folder / "packed.mat", {"names": ["a"], "S": label}, do_compression=True)


# ---- Damage -------------------------------------------------------------------------------------

NUMBERS = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
]
WORDS = [
    *("Infinity", "-Infinity", "NaN", "1e999", "-1", "0", "1.5", "9" * 30, "9" * 5000, "null"),
    *("true", "[]", "{}", '""', '"\\u0000"', '"\\ud800"', "[" * 50, "{" * 50, '"../x"', "~"),
    *("&a ", "*a", "<<", "!!set", "!!omap", "!!python/name:os.system", "${oc.env:HOME}"),
    *("_target_", "${x}", "os.system"),
    *("2001-01-01", "0x10", "1:2:3", ",", ":", "\n", "\t", '"', "'", "\u2028", "\0"),
]  # fmt: skip
TOKEN = re.compile(rb'"[^"\n]*"|[\w.+-]+|\s+|.', re.DOTALL)


def damaged(data: bytes, others: list[bytes], is_text: bool, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 4))):
        kinds = (_flip, _cut, _insert, _delete, _repeat, _splice, _number, *(_word,) * 4 * is_text)
        data = rng.choice(kinds)(data, others, rng)
    return data


def _place(data: bytes, rng: random.Random) -> int:
    """Somewhere, and mostly where headers and directories are."""
    near = min(len(data), rng.choice((64, 1024, 8192)))
    start = rng.choice((0, 0, len(data) - near, rng.randint(0, len(data) - near)))
    return start + rng.randint(0, max(0, near - 1))


def _flip(data, _, rng):
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 3, 20))):
        changed[_place(changed, rng) % len(changed)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data, _, rng):
    return data[: _place(data, rng)]


def _insert(data, _, rng):
    at = _place(data, rng)
    return data[:at] + rng.randbytes(rng.choice((1, 4, 100))) + data[at:]


def _delete(data, _, rng):
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice((1, 4, 100, 5000)) :]


def _repeat(data, _, rng):
    at = _place(data, rng)
    return (
        data[:at] + data[at : at + rng.choice((1, 4, 100))] * rng.choice((2, 10, 300)) + data[at:]
    )


def _splice(data, others, rng):
    other, at = rng.choice(others), _place(data, rng)
    start = _place(other, rng)
    return data[:at] + other[start : start + rng.choice((4, 100, 5000))] + data[at:]


def _number(data, _, rng):
    size, at = rng.choice((1, 2, 4, 8)), _place(data, rng)
    number = rng.choice(NUMBERS) % 256**size
    return data[:at] + number.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]


def _word(data, _, rng):
    tokens = TOKEN.findall(data) or [b""]
    at = rng.randrange(len(tokens))
    tokens[at] = rng.choice(
        (rng.choice(WORDS).encode("utf-8", "surrogatepass"), tokens[rng.randrange(len(tokens))])
    )
    return b"".join(tokens)


# ---- Running ------------------------------------------------------------------------------------


@dataclass
class Report:
    """How the files of a kind were read; `failures` by seed."""

    right: int = 0
    refused: int = 0
    peak: int = 0
    seconds: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)


def prepare(name: str, seed: int, originals: Path, folder: Path) -> Path:
    """The damaged file of a seed, at its place in `folder`."""
    kind = KINDS[name]
    rng = random.Random(f"{name}:{seed}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    found = sorted(originals.glob(rng.choice(kind.files)), key=lambda file: (len(str(file)), file))
    chosen = rng.choice(found).relative_to(originals)
    if kind.whole:
        shutil.copytree(originals / kind.whole, folder / kind.whole, copy_function=os.link)
    path = folder / chosen
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # or the original would be damaged
    others = [(originals / "config.yaml").read_bytes(), *(file.read_bytes() for file in found)]
    path.write_bytes(damaged((originals / chosen).read_bytes(), others, kind.is_text, rng))
    return path


def verdict(name: str, path: Path, folder: Path) -> tuple[str, str]:
    """ "right", "refused" or what else the reader did, with its text."""
    what, text = attempt(lambda: KINDS[name].read(path))
    if what == "value":
        return "right", ""
    if what == "refused" and (str(folder) not in text or len(text.splitlines()) != 1):
        return "no file named in one line", text
    return what, text


def work(name: str, first: int, count: int, originals: Path, folder: Path, stream) -> None:
    """Read the files of `count` seeds; a line of JSON to `stream` before each and after."""

    def say(*line) -> None:
        stream.write(json.dumps(line) + "\n")
        stream.flush()

    limit(2 * MEMORY)
    for seed in range(first, first + count):
        say("at", seed)
        path = prepare(name, seed, originals, folder)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # both end the process
        signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        what, text = verdict(name, path, folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        took = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
        say(what, text[-3000:], took, peak_memory())


def fuzz(name: str, count: int, originals: Path, folder: Path) -> Report:
    """Read the files of the first `count` seeds."""
    report, seed = Report(), 0
    while seed < count and len(report.failures) < 20:
        last = seed
        for line in _lines(name, seed, count - seed, originals, folder):
            match line:
                case "at", last:
                    continue
                case "right", *_:
                    report.right += 1
                case "refused", *_:
                    report.refused += 1
                case what, text, *_:
                    report.failures[last] = f"{what}: {text}"
            report.seconds = max(report.seconds, line[2])
            report.peak = max(report.peak, line[3])
        if (
            last not in report.failures
            and report.right + report.refused + len(report.failures) <= last
        ):
            report.failures[last] = "its process ended, or was ended for taking too long"
        seed = last + 1
    return report


def _lines(name, first, count, originals, folder) -> Iterator[list]:
    """What `work` says in a process of its own."""
    if KINDS[name].computes:
        command = [sys.executable, __file__, name, str(first), str(count), originals, folder]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        with process:
            yield from (json.loads(line) for line in process.stdout if line.startswith("["))
        return
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with os.fdopen(writing, "w") as stream:
                work(name, first, count, originals, folder, stream)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        yield from map(json.loads, stream)
    os.waitpid(child, 0)


def main(arguments: list[str]) -> None:
    if len(arguments) == 1:  # in a process of its own: OneFlow counts tensors, and names files so
        make_originals(Path(arguments[0]))
        return
    if len(arguments) == 5:
        name, first, count, originals, folder = arguments
        work(name, int(first), int(count), Path(originals), Path(folder), sys.stdout)
        return
    name, seed = arguments
    with tempfile.TemporaryDirectory() as temporary:
        originals, folder = Path(temporary, "originals"), Path(temporary, "damaged")
        originals.mkdir()
        make_originals(originals)
        path = prepare(name, int(seed), originals, folder)
        print(path.read_bytes()[:3000])
        KINDS[name].read(path)


if __name__ == "__main__":
    main(sys.argv[1:])
