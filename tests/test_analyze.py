"""tools/analyze.py: what it reads, says and draws, of files written by hand and by a training."""

import json
import math

import cv2
import numpy as np
import pytest
from test_writers import write_all

from conftest import error_line, run_tool
from projects.SegFormer.engine.metrics import read_metrics, smooth
from projects.SegFormer.engine.writers import JsonWriter
from projects.SegFormer.evaluation.report.curves import draw
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.tools.analyze import main


def write(path, records, end: str = ""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + end)
    return path


def trained(path, scores: dict[int, float], score: str = "mIoU"):
    """40 iterations, the loss from 2 down to 1, and the scores of evaluations."""
    records = [
        {"iteration": n, "total_loss": 2 - n / 40, "lr": 1e-3 * (1 - n / 40)} for n in range(1, 41)
    ]
    for iteration, value in scores.items():
        records[iteration - 1][score] = value
    return write(path, records)


def test_reads_what_the_trainer_writes(tmp_path):
    """The lines of the writers' own test, with the evaluation after the last on a line alone."""
    path = tmp_path / "metrics.json"
    write_all([JsonWriter(str(path), 0)], 3)
    metrics = read_metrics(path)
    for name, expected in {
        "total_loss": {3: 8.0, 6: 5.0, 9: 2.0},
        "lr": {n: 0.1 / n for n in (3, 6, 9)},
        "mIoU": {6: 40.0, 9: 90.0},
    }.items():
        assert dict(zip(*map(list, metrics[name]))) == pytest.approx(expected), name


def test_what_is_said_of_runs(tmp_path, capsys):
    ours = trained(tmp_path / "ours" / "metrics.json", {20: 30.0, 30: 35.25, 40: 34.0}).parent
    theirs = trained(tmp_path / "theirs" / "metrics.json", {40: 71.0}, "top1")
    plain = write(tmp_path / "plain" / "metrics.json", [{"iteration": 7, "total_loss": 0.5}])
    main([*map(str, (ours, theirs, plain)), "--output", str(tmp_path / "curves.png")])
    assert capsys.readouterr().out.splitlines() == [
        "ours: 40 iterations, last loss 1.0000, best mIoU 35.25 at iteration 30",
        "theirs: 40 iterations, last loss 1.0000, best top1 71.00 at iteration 40",
        "plain: 7 iterations, last loss 0.5000",
        f"Curves written to {tmp_path / 'curves.png'}",
    ]
    image = cv2.imread(str(tmp_path / "curves.png"))
    for colour in ((0xB2, 0x72, 0), (0, 0x5E, 0xD5)):  # BGR: of the first run and of the second
        assert (image == colour).all(-1).sum() > 1000


def test_what_is_drawn(tmp_path):
    runs = {
        "a": read_metrics(trained(tmp_path / "a.json", {20: 30.0, 40: 35.0})),
        "b": read_metrics(write(tmp_path / "b.json", [{"iteration": 9, "total_loss": 3.0}])),
    }
    figure = draw(runs)
    axes = {axis.get_ylabel(): axis for axis in figure.axes}
    assert list(axes) == ["loss", "learning rate", "mIoU in %"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    raw, smoothed, raw_b, smoothed_b = axes["loss"].lines
    np.testing.assert_allclose(raw.get_ydata(), [2 - n / 40 for n in range(1, 41)])
    assert raw.get_alpha() < 1 and raw.get_linewidth() < smoothed.get_linewidth()
    assert raw.get_color() == smoothed.get_color() != raw_b.get_color() == smoothed_b.get_color()
    assert list(smoothed_b.get_ydata()) == [3.0]
    (score,) = axes["mIoU in %"].lines
    assert list(score.get_xdata()) == [20, 40] and list(score.get_ydata()) == [30, 35]
    assert score.get_color() == raw.get_color()


def test_smooth():
    rng = np.random.default_rng(0)
    iterations = np.sort(rng.choice(200, 60, replace=False))
    values = rng.normal(size=60)
    for iteration, found in zip(iterations, smooth((iterations, values), 30)):
        reach = min(15, iteration - iterations[0])
        near = [v for i, v in zip(iterations, values) if abs(i - iteration) <= reach]
        assert found == pytest.approx(np.mean(near))


def test_run_that_still_writes_and_losses_that_are_not_finite(tmp_path):
    records = [{"iteration": n, "total_loss": value} for n, value in ((1, 2.0), (2, math.nan))]
    path = write(tmp_path / "metrics.json", records, end='{"iteration": 3, "total_')
    assert [list(series) for series in read_metrics(path)["total_loss"]] == [[1], [2.0]]


def test_names_tell_runs_apart(tmp_path, capsys):
    folders = [trained(tmp_path / f"{x}/same/metrics.json", {}).parent for x in ("one", "two")]
    main([*map(str, folders), "--output", str(tmp_path / "curves.png")])
    names = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names[:2] == ["one/same", "two/same"]
    with pytest.raises(InputError, match="given twice"):
        main([str(folders[0])] * 2 + ["--output", str(tmp_path / "curves.png")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no lines"),
        ("{\n  'mIoU': 3\n}\n", "line 1.*expected lines as"),
        ('{"mIoU": 3.0}\n{"mIoU": 3.0}\n', "line 1"),
        ("[1, 2]\n", "line 1"),
        ('{"iteration": 1, "lr": 2.0}\n', "neither total_loss nor mIoU nor top1"),
        (b"\x89PNG\xff\n", "cannot read"),
    ],
)
def test_file_that_is_no_metrics_file(tmp_path, text, message):
    path = tmp_path / "metrics.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"{path}.*{message}|{message}.*{path}"):
        main([str(tmp_path), "--output", str(tmp_path / "curves.png")])


@pytest.mark.parametrize("output", ["nowhere/curves.png", "curves.doc", "curves", ""])
def test_image_that_cannot_be_written(tmp_path, output):
    run = trained(tmp_path / "metrics.json", {})
    with pytest.raises(InputError, match=f"cannot write .*{output}"):
        main([str(run), "--output", str(tmp_path / output)])


def test_error_is_one_line(tmp_path):
    process = run_tool("tools/analyze.py", str(tmp_path), "--output", "curves.png")
    assert f"no {tmp_path}/metrics.json" in error_line(process)
