"""tools/train_net.py as a person runs it: what it learns and reports, and how it ends."""

import fcntl
import json
import os
import re
import shutil
import signal
import struct
import sys
import termios
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import (
    CLASSES,
    CONFIG,
    error_line,
    losses,
    metrics,
    run_here,
    run_tool,
    tensorboard_scalars,
    training,
    wait_until,
)
from projects.SegFormer.engine.checkpoint import last_checkpoint
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.parallel import plan_ranks
from projects.SegFormer.model_utils.weight_files import read_weights

TOOL = "tools/train_net.py"
MODES = ("eager", "graph")


def mode_override(mode: str) -> str:
    return f"graph.enabled={mode == 'graph'}"


@pytest.fixture(scope="module")
def runs(folder_data, trained, tmp_path_factory) -> dict[str, Path]:
    """The output folder of the same training in either mode."""
    graph = tmp_path_factory.mktemp("graph")
    process = run_tool(TOOL, *training(folder_data, graph, mode_override("graph")))
    assert process.returncode == 0, process.stderr
    return {"eager": trained, "graph": graph}


def evaluation(output: Path) -> dict:
    return json.loads((output / "evaluation.json").read_text())


def checkpoint_record(path: Path) -> dict:
    return json.loads((path / "checkpoint.json").read_text())


# --- what it learns and reports -----------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_training_learns(runs, mode):
    values = list(losses(runs[mode]).values())
    assert len(values) == 24
    assert abs(values[0] - np.log(3)) < 0.2  # three classes, nothing learnt
    assert np.mean(values[-4:]) < 0.75 * values[0]
    # One class everywhere would give at most a third of the largest share of the pixels.
    assert evaluation(runs[mode])["mIoU"] > 60


def test_modes_agree(runs):
    eager, graph = (losses(runs[mode]) for mode in MODES)
    assert eager.keys() == graph.keys()
    np.testing.assert_allclose(list(graph.values()), list(eager.values()), rtol=0, atol=1e-4)
    assert evaluation(runs["graph"])["mIoU"] == pytest.approx(
        evaluation(runs["eager"])["mIoU"], abs=0.1
    )


@pytest.mark.parametrize("mode", MODES)
def test_metrics_hold_every_iteration(runs, mode):
    lines = [line for line in metrics(runs[mode]) if "total_loss" in line]
    assert [line["iteration"] for line in lines] == list(range(1, 25))
    assert all({"total_loss", "lr", "data_time"} <= line.keys() for line in lines)
    assert all(line["time"] > 0 for line in lines[3:])  # LiBai leaves out the first, which warm up
    # Warm-up over 2 of the 24 iterations, then a line to 0.
    rates = [line["lr"] for line in lines]
    expected = [5e-3 * (1 - t / 24) for t in range(24)]
    expected[:2] = 5e-9, (5e-9 + expected[2]) / 2
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_metrics_hold_both_evaluations(runs, mode):
    found = {line["iteration"]: line["mIoU"] for line in metrics(runs[mode]) if "mIoU" in line}
    assert found.keys() == {12, 24}
    assert found[24] == evaluation(runs[mode])["mIoU"]


@pytest.mark.parametrize("mode", MODES)
def test_tensorboard_holds_what_metrics_hold(runs, mode):
    read = tensorboard_scalars(runs[mode] / "tensorboard")
    expected = {
        (name, line["iteration"]): value
        for line in metrics(runs[mode])
        for name, value in line.items()
        if name != "iteration"
    }
    assert read.keys() == expected.keys()
    for key, value in expected.items():
        assert read[key] == pytest.approx(value, rel=1e-6), key


def test_evaluation_holds_the_table(trained):
    result = evaluation(trained)
    assert tuple(result["IoU"]) == CLASSES and tuple(result["Acc"]) == CLASSES
    assert result["mIoU"] == pytest.approx(np.mean(list(result["IoU"].values())))
    log = (trained / "log.txt").read_text()
    for name, value in result["IoU"].items():
        row = (name, value, result["Acc"][name], result["Dice"][name])
        assert re.search("^{} +{:.2f} +{:.2f} +{:.2f}$".format(*row), log, re.MULTILINE)


def test_best_checkpoint_is_the_best(trained):
    record = checkpoint_record(trained / "model_best")
    scores = {line["iteration"]: line["mIoU"] for line in metrics(trained) if "mIoU" in line}
    assert record["mIoU"] == max(scores.values())
    assert scores[record["iteration"] + 1] == record["mIoU"]


def test_checkpoints_are_those_asked_for(trained):
    assert {path.name for path in trained.glob("*model*")} == {
        "model_0000007",
        "model_0000015",
        "model_final",
        "model_best",
    }


@pytest.mark.parametrize("processes", [1, 4])
def test_saved_config_is_for_any_number_of_processes(trained, processes):
    config = load_config(str(trained / "config.yaml"))
    plan_ranks(config, processes)
    assert config.train.dist.data_parallel_size == processes


def test_log_lines(trained):
    lines = re.findall(
        r"iter (\d+)/24  loss (\d\.\d{4}) \(mean of \d+: \d\.\d{4}\)  "
        r"lr (\d\.\d\de-\d\d)  (\d+\.\d) images/s  data \d+\.\d{3} s  ETA (\d:\d\d:\d\d)\n",
        (trained / "log.txt").read_text(),
    )
    assert [int(iteration) for iteration, *_ in lines] == list(range(3, 25))  # the first warm up
    assert lines[-1][-1] == "0:00:00"


def test_log_has_no_colours_and_no_copy_of_the_config(trained):
    log = (trained / "log.txt").read_text()
    assert "\x1b" not in log and "LazyCall" not in log and len(log.splitlines()) < 120
    assert f"Config: {CONFIG}" in log and "libibverbs" not in log and "Please set" not in log
    assert "train_iter: 24" in (trained / "config.yaml").read_text()


@pytest.mark.slow
def test_evaluation_alone_gives_the_same_result(folder_data, trained, tmp_path):
    command = training(folder_data, tmp_path, f"train.load_weight={trained}/model_final")
    process = run_here(TOOL, *command, "dataloader.test.0.num_workers=2", "--eval-only")
    assert process.returncode == 0, process.stderr
    assert evaluation(tmp_path) == evaluation(trained)
    assert not list(tmp_path.glob("model_*"))


@pytest.mark.slow
def test_fast_dev_run_with_options_in_any_order(folder_data, tmp_path):
    overrides = training(folder_data, tmp_path)[2:]
    process = run_here(
        TOOL, *overrides[:3], "--fast-dev-run", *overrides[3:], "--config-file", CONFIG
    )
    assert process.returncode == 0, process.stderr
    assert max(line["iteration"] for line in metrics(tmp_path)) == 20
    assert evaluation(tmp_path)["mIoU"] > 0
    assert (tmp_path / "model_final").is_dir()


@pytest.mark.slow
def test_accumulation_in_both_modes(folder_data, tmp_path):
    """Two micro-batches a step. Eager mode counts them as iterations, as LiBai does."""
    command = (
        "train.num_accumulation_steps=2",
        "train.train_iter=6",
        "train.evaluation.enabled=False",
    )
    # At one rate, for eager mode's schedule goes on by half steps.
    command += ("train.scheduler.power=0", "train.warmup_ratio=0")
    for mode in MODES:
        process = run_here(
            TOOL, *training(folder_data, tmp_path / mode, *command, mode_override(mode))
        )
        assert process.returncode == 0, process.stderr
    eager, graph = (np.array(list(losses(tmp_path / mode).values())) for mode in MODES)
    assert len(eager) == 12 and len(graph) == 6
    np.testing.assert_allclose(eager.reshape(6, 2).mean(1), graph, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_progress_bar_on_a_terminal(folder_data, tmp_path, start):
    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # rows, columns
    command = training(
        folder_data, tmp_path, "train.train_iter=6", "train.evaluation.enabled=False"
    )
    process = start(sys.executable, TOOL, *command, stderr=end)
    os.close(end)
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.search(rb"\d+%\|.*\| [1-6]/6 \[.*loss=\d\.\d{3}", shown), shown


# --- interruptions ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "number", "workers"),
    [
        ("eager", signal.SIGKILL, 2),
        pytest.param("graph", signal.SIGKILL, 0, marks=pytest.mark.slow),
        pytest.param("eager", signal.SIGINT, 0, marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_resumed(runs, folder_data, tmp_path, start, mode, number, workers):
    """What comes after an interruption is what comes without one, to the last bit."""
    command = training(
        folder_data, tmp_path, mode_override(mode), f"dataloader.train.num_workers={workers}"
    )
    process = start(sys.executable, TOOL, *command)
    wait_until(lambda: process.poll() is not None or len(losses(tmp_path)) > 10)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    done = max(losses(tmp_path))
    assert 10 < done < 24
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        last = 7 if done < 16 else 15
    else:
        assert process.returncode == 130
        path, last = last_checkpoint(str(tmp_path))
        assert stderr.rstrip().endswith(
            f"stopped by SIGINT after iteration {last}; --resume goes on from {path}"
        )
        assert last == done - 1, "the last step that was reported is the one that was saved"

    resume = run_tool if mode == "graph" else run_here
    process = resume(TOOL, *command, "--resume")
    assert process.returncode == 0, process.stderr
    assert f"Training from iteration {last + 1} to 24" in process.stdout
    assert losses(tmp_path) == losses(runs[mode])
    assert evaluation(tmp_path) == evaluation(runs[mode])


@pytest.mark.slow
def test_resume_in_the_middle_of_an_accumulation(folder_data, tmp_path):
    """A checkpoint that falls between two micro-batches loses the gradient of neither."""
    command = training(
        folder_data,
        tmp_path,
        "train.num_accumulation_steps=2",
        "train.train_iter=6",
        "train.checkpointer.period=5",
        "train.evaluation.enabled=False",
    )
    assert run_here(TOOL, *command).returncode == 0
    undisturbed = losses(tmp_path)
    shutil.rmtree(tmp_path / "model_final")
    assert run_here(TOOL, *command, "--resume").returncode == 0
    assert losses(tmp_path) == undisturbed


@pytest.mark.slow
def test_resume_of_a_finished_training_changes_nothing(folder_data, trained, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(trained, output)
    process = run_here(TOOL, *training(folder_data, output, "--resume"))
    assert process.returncode == 0, process.stderr
    assert losses(output) == losses(trained)
    assert evaluation(output) == evaluation(trained)
    assert checkpoint_record(output / "model_best") == checkpoint_record(trained / "model_best")


# --- errors -------------------------------------------------------------------------------------


def checkpoint_files(output: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(output)): file.read_bytes()
        for file in output.glob("model_*/**/*")
        if file.is_file()
    }


def error_of(folder_data: Path, trained: Path, tmp_path: Path, *more: str) -> str:
    """The error of a training in a folder with checkpoints, which it leaves as they are."""
    output = tmp_path / "output"
    shutil.copytree(trained, output)
    line = error_line(run_here(TOOL, *training(folder_data, output, *more)))
    assert checkpoint_files(output) == checkpoint_files(trained)
    return line


SLOW = pytest.mark.slow
SETTING_ERRORS = {
    "key": (["cfg.num_clases=3"], ["'num_clases'", "did you mean num_classes"]),
    "root": (["data.root=/not/there"], ["/not/there", "images/train", "annotations/train"]),
    "batch": (
        ["train.global_batch_size=4", "train.train_micro_batch_size=3"],
        ["global_batch_size=4", "train_micro_batch_size", "multiple of 3"],
    ),
    "classes": (["cfg.num_classes=4"], ["4 classes", "3", "cfg.num_classes=3"]),
    "amp in eager mode": (["train.amp.enabled=True"], ["train.amp.enabled", "graph.enabled=True"]),
    "amp on a CPU": (
        ["train.amp.enabled=True", "graph.enabled=True"],
        ["train.amp.enabled", "GPU"],
    ),
    "weights": (["train.load_weight=/not/there"], ["no weights at /not/there"]),
    "no value": (["train.log_period"], ["'train.log_period'", "key=value"]),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "key" else SLOW) for name in SETTING_ERRORS]
)
def test_wrong_setting(folder_data, trained, tmp_path, name):
    overrides, words = SETTING_ERRORS[name]
    line = error_of(folder_data, trained, tmp_path, *overrides)
    assert all(word in line for word in words), line


@pytest.mark.slow
def test_weights_of_another_model(folder_data, trained, tmp_path):
    more = (f"train.load_weight={trained}/model_final", "cfg.decoder_hidden_size=24")
    line = error_of(folder_data, trained, tmp_path, *more)
    assert "model_final" in line and "14 of another shape: head.batch_norm.bias (16,) for" in line


def value_of_no_class(images: Path, labels: Path) -> None:
    label = cv2.imread(str(labels / "05.png"), cv2.IMREAD_GRAYSCALE)
    label[40, 40] = 3
    cv2.imwrite(str(labels / "05.png"), label)


def cut_image(images: Path, labels: Path) -> None:
    (images / "05.png").write_bytes((images / "05.png").read_bytes()[:300])


def no_image(images: Path, labels: Path) -> None:
    (images / "05.png").write_text("not an image")


def no_label(images: Path, labels: Path) -> None:
    (labels / "05.png").unlink()


def label_of_another_size(images: Path, labels: Path) -> None:
    cv2.imwrite(str(labels / "05.png"), np.zeros((40, 48), np.uint8))


def empty(images: Path, labels: Path) -> None:
    for file in (*images.iterdir(), *labels.iterdir()):
        file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "words", "workers"),
    [
        (value_of_no_class, ["annotations/train/05.png", "label value 3", "3 classes"], 2),
        pytest.param(value_of_no_class, ["annotations/train/05.png"], 0, marks=SLOW),
        (cut_image, ["images/train/05.png", "cut short"], 0),
        pytest.param(cut_image, ["images/train/05.png", "cut short"], 2, marks=SLOW),
        pytest.param(no_image, ["images/train/05.png", "not an image"], 2, marks=SLOW),
        pytest.param(no_label, ["images/train/05.png", "no label"], 0, marks=SLOW),
        pytest.param(label_of_another_size, ["train/05.png", "40x48", "80x96"], 0, marks=SLOW),
        pytest.param(empty, ["0 images", "images/train", "annotations/train"], 0, marks=SLOW),
    ],
)
def test_wrong_data(folder_data, trained, tmp_path, damage, words, workers):
    data = tmp_path / "data"
    shutil.copytree(folder_data, data)
    damage(data / "images" / "train", data / "annotations" / "train")
    line = error_of(data, trained, tmp_path, f"dataloader.train.num_workers={workers}")
    assert all(word in line for word in (str(data), *words)), line


@pytest.mark.slow
def test_wrong_data_in_the_last_evaluation_leaves_the_training(folder_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder_data, data)
    (data / "images" / "val" / "03.png").write_text("not an image")
    output = tmp_path / "output"
    process = run_here(TOOL, *training(data, output, "train.evaluation.eval_period=1000"))
    assert "images/val/03.png" in error_line(process)
    assert len(losses(output)) == 24
    assert checkpoint_record(output / "model_final")["iteration"] == 23


@pytest.mark.slow
def test_loss_that_is_not_finite(folder_data, tmp_path):
    """The first step is sane, the second has an absurd learning rate, the third sees its ruins."""
    diverging = (
        "optim.params.lr=1e30",
        "train.scheduler.warmup_factor=1e-33",
        "train.warmup_ratio=0.04",
        "train.checkpointer.period=1",
    )
    process = run_here(TOOL, *training(folder_data, tmp_path, *diverging))
    line = error_line(process)
    assert "loss is not finite at iteration 2" in line and str(tmp_path) in line
    assert list(losses(tmp_path)) == [1, 2]

    sane = read_weights(str(tmp_path / "model_0000000"))
    assert max(abs(values).max() for values in sane.values()) < 10


@pytest.mark.slow
def test_weights_that_are_not_finite_are_not_saved(folder_data, tmp_path):
    diverging = (
        "optim.params.lr=1e42",
        "train.scheduler.warmup_factor=1e-45",
        "train.warmup_ratio=0.04",
        "train.checkpointer.period=1",
    )
    line = error_line(run_here(TOOL, *training(folder_data, tmp_path, *diverging)))
    assert "not finite after iteration 1" in line and "model_0000001" in line
    assert [path.name for path in tmp_path.glob("*model*")] == ["model_0000000"]
