"""report.html and the comparison of trainings: what they say, against files written by hand."""

import base64
import json
import logging
import platform
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import oneflow as flow
import pytest

from conftest import CONFIG
from projects.SegFormer.dataset.ade20k import CLASSES as ADE20K
from projects.SegFormer.dataset.folder import distinct_palette
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.report import Report, changed
from projects.SegFormer.evaluation.mean_iou import MeanIoUEvaluator, write_json
from projects.SegFormer.evaluation.report.charts import Line, line_chart, matrix
from projects.SegFormer.evaluation.report.comparison import comparison_page
from projects.SegFormer.evaluation.report.page import write_report
from projects.SegFormer.evaluation.report.pictures import (
    draw_picture,
    matrix_picture,
    sample_pictures,
)
from projects.SegFormer.evaluation.report.record import Evaluated, read_record, write_record
from projects.SegFormer.evaluation.report.run import read_run
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.tools.analyze import main

HOSTILE = ["<script>alert(1)</script>", '"><img src=http://x/y>', "道路" * 20, "a&b" * 60]
SIZE = 40, 60
VOID = {"meta", "img"}


class Page(HTMLParser):
    """A page's tags with their attributes, its text, and the cells of its tables by row.

    Fails where an end tag does not close the last element that is open.
    """

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.rows, self.text, self._open = [], [], "", []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def row(self, name: str, cells: int) -> list[str]:
        (row,) = (row for row in self.rows if row[0] == name and len(row) == cells)
        return row[1:]


def training(folder: Path, classes, seed: int = 0, **known) -> Evaluated:
    """An output folder of 400 iterations and 4 evaluations of images that are drawn by lot."""
    rng, size = np.random.default_rng(seed), len(classes)
    palette, evaluator = distinct_palette(size), MeanIoUEvaluator(classes)
    data = []
    for _ in range(6):
        label = rng.integers(0, size, (4, 6)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
        other = rng.integers(0, size, (4, 6)).repeat(10, 0).repeat(10, 1)
        right = (rng.random((4, 6)) < 0.7).repeat(10, 0).repeat(10, 1)
        prediction = np.where(right, label, other)
        label[:, :2] = 255
        evaluator.update(prediction, label)
        data.append((np.full((*SIZE, 3), 90, np.uint8), label, prediction))
    dataset = SimpleNamespace(
        classes=classes,
        palette=palette,
        ignore_index=255,
        images=[f"images/val/{index} & <{seed % 2}>.png" for index in range(6)],
        load=lambda index: data[index][:2],
    )
    pictures = {
        kind: [draw_picture(dataset, index, data[index][2]) for index in places]
        for kind, places in (("samples", (1, 4)), ("worst", (0,)))
    }
    evaluated = Evaluated(classes, palette, evaluator.counts, pictures)
    folder.mkdir(parents=True)
    write_record(folder, evaluated)
    result = evaluator.evaluate()
    write_json(result, folder / "evaluation.json")
    (folder / "report" / "training.json").write_text(json.dumps(known))
    with open(folder / "metrics.json", "w") as file:
        for n in range(4, 401, 4):
            record = {"iteration": n, "total_loss": 2 - n / 400, "lr": 1e-3 * (1 - n / 400)}
            if n % 100 == 0:
                record["mIoU"] = result["mIoU"] * n / 400
                ious = {name: iou for name, iou in result["IoU"].items() if iou is not None}
                record |= {f"IoU/{name}": iou * n / 400 for name, iou in ious.items()}
            file.write(json.dumps(record) + "\n")
    return evaluated


KNOWN = dict(
    config="configs/<b>.py",
    iterations=400,
    seconds=3725.2,
    changed=[["train.seed", "0", "7"], ["data.root", "data/x", "</td><script>"]],
    chosen=["optim.params.lr=0.0006: no weights to start from"],
    versions={"oneflow": "0.9.0, /a/b"},
    machine={"CPU": "2 x <CPU>"},
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "<i>run"
    training(folder, HOSTILE, **KNOWN)
    write_report(folder)
    return folder


def test_page_is_whole_and_needs_nothing_else(hostile):
    html = (hostile / "report.html").read_text()
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "i-run"}
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            value = attributes.get(name, "#")
            assert value.startswith("#") or re.match(r"data:image/(png|jpeg);base64,", value), tag
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in html and "@import" not in html
    marks = {attributes.get("id") for _, attributes in page.tags}
    links = [attributes["href"][1:] for tag, attributes in page.tags if tag == "a"]
    assert len(links) == 8 and set(links) <= marks


def test_page_has_the_values_of_the_files(hostile):
    page = Page((hostile / "report.html").read_text())
    result = json.loads((hostile / "evaluation.json").read_text())
    counts = np.array(json.loads((hostile / "report/evaluated.json").read_text())["counts"])
    total = counts.sum()
    for index, name in enumerate(HOSTILE):
        expected = [f"{result[figure][name]:.2f}" for figure in ("IoU", "Acc", "Dice")]
        labelled, predicted = counts[index].sum(), counts[:, index].sum()
        expected += [f"{labelled:,}", f"{100 * labelled / total:.2f}"]
        assert page.row(name, 7) == [*expected, f"{100 * predicted / total:.2f}"]
    means = [f"{result[name]:.2f}" for name in ("mIoU", "mAcc", "mDice")]
    assert page.row("mean", 7)[:3] == means
    assert page.row("train.seed", 3) == ["0", "7"]
    assert page.row("data.root", 3) == ["data/x", "</td><script>"]
    assert page.row("CPU", 2) == ["2 x <CPU>"] and page.row("oneflow", 2) == ["0.9.0, /a/b"]
    for text in ("<i>run", "configs/<b>.py", "1:02:05", f"{result['mIoU']:.2f}%", *KNOWN["chosen"]):
        assert text in page.text
    assert "at iteration 400" in page.text and "of 400" in page.text


def test_most_confused_classes(hostile):
    rows = Page((hostile / "report.html").read_text()).rows
    counts = read_record(hostile).counts
    pairs = {
        (HOSTILE[i], HOSTILE[j]): 100 * counts[i, j] / counts[i].sum()
        for i in range(4)
        for j in range(4)
        if i != j
    }
    found = [row for row in rows if len(row) == 4 and row[:2] != ["label", "taken for"]]
    assert [tuple(row[:2]) for row in found] == sorted(pairs, key=pairs.get, reverse=True)
    assert [row[2] for row in found] == [f"{pairs[tuple(row[:2])]:.2f}" for row in found]


def test_pictures_and_their_legend(hostile):
    page = Page((hostile / "report.html").read_text())
    views = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(views) == 3 * 4
    assert views[1]["alt"] == "label of 1 & <0>.png"
    image, label, prediction, wrong = (
        cv2.imdecode(np.frombuffer(base64.b64decode(it["src"].partition(",")[2]), np.uint8), 1)
        for it in views[:4]
    )
    assert image.shape == label.shape == wrong.shape == (*SIZE, 3)
    colours = np.array(distinct_palette(4), np.uint8)[:, ::-1]
    shown = [(view[:, :, None] == colours).all(-1) for view in (label, prediction)]
    assert not shown[0][:, :2].any()  # ignored
    clear = shown[0].any(-1) & shown[1].any(-1)  # of a class, and no line between two
    assert clear.mean() > 0.6 and all(it.any((0, 1)).all() for it in shown)
    differs = (label != prediction).any(-1)
    red = wrong.max(-1).astype(int) - wrong.min(-1) > 100
    assert differs[clear].any() and (differs == red)[clear].mean() > 0.97
    assert page.text.count("ignored") == 3


def test_matrix_is_normalised_by_label():
    counts = np.array([[6, 2, 0], [0, 0, 5], [0, 0, 0]])
    counts = np.pad(counts, ((0, 0), (0, 1)))
    page = Page(matrix(["a", "b", "c"], counts))
    opacity = {attributes.get("fill-opacity") for _, attributes in page.tags} - {None}
    assert opacity == {f"{share**0.7:.2f}" for share in (0.75, 0.25, 1)}
    for text in ("a: 75.00% of its pixels, 6", "a taken for b: 25.00%", "b taken for c: 100.00%"):
        assert text in page.text
    assert "no class" not in page.text
    counts[2, 3] = 9
    assert "c taken for no class: 100.00% of its pixels, 9" in Page(matrix("abc", counts)).text


def test_long_series_stay_small():
    iterations = np.arange(1, 160_001)
    values = np.sin(iterations / 7) + 2
    values[77_777] = 9.0  # a single one among 160,000
    svg = line_chart("loss", [Line("loss", (iterations, values))])
    Page(svg)
    assert len(svg) < 40_000
    points = re.search(r'points="([^"]*)"', svg).group(1).split()
    heights = [float(point.split(",")[1]) for point in points]
    assert len(points) < 700 and sum(height < 30 for height in heights) == 1


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-1.0, -1.0], [1e-9, 1e9]])
def test_chart_of_any_values(values):
    svg = line_chart("x", [Line("x", (np.arange(1, 1 + len(values)), np.array(values)))])
    Page(svg)
    assert "nan" not in svg and "inf" not in svg


# --- one training, several, and folders that lack something --------------------------------------


def test_folder_with_metrics_alone(hostile, tmp_path, capsys):
    shutil.copy(hostile / "metrics.json", tmp_path)
    main([str(tmp_path)])
    assert f"Report written to {tmp_path}/report.html" in capsys.readouterr().out
    page = Page((tmp_path / "report.html").read_text())
    titles = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert titles == ["curves", "iou-of-each-class"]


def test_classifier(tmp_path):
    result = {"top1": 50.0, "top5": 75.0, "Acc": {"tench": 25.0, "crane <bird>": None}}
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    records = [{"iteration": n, "total_loss": 1.0, "top1": 25.0 * n} for n in (1, 2)]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(it) + "\n" for it in records))
    page = Page(write_report(tmp_path).read_text())
    assert page.row("tench", 2) == ["25.00"] and page.row("crane <bird>", 2) == ["–"]
    assert "best top1" in page.text and "50.00%" in page.text and "top5" in page.text


def test_comparison(hostile, tmp_path):
    other = tmp_path / "other"
    training(other, HOSTILE, config=KNOWN["config"], changed=[["train.seed", "0", "8"]])
    output = tmp_path / "compare.html"
    main([str(hostile), str(other), "--output", str(output)])
    page = Page(output.read_text())
    ours, theirs = (
        json.loads((folder / "evaluation.json").read_text())["IoU"] for folder in (hostile, other)
    )
    for name in HOSTILE:
        assert page.row(name, 3) == [f"{ours[name]:.2f}", f"{theirs[name]:.2f}"]
        assert f"<b>{max(ours[name], theirs[name]):.2f}</b>" in output.read_text()
    assert page.row("setting", 3) == ["<i>run", "other"]
    assert page.row("train.seed", 3) == ["7", "8"]
    assert page.row("data.root", 3) == ["</td><script>", "data/x"]
    # image, label and two predictions of each of the two images that both have drawn
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert len(alts) == 8 and re.fullmatch(r"other: \d+\.\d% of 1 & <0>\.png", alts[3])


def test_comparison_of_other_data_and_configs(hostile, tmp_path):
    """Of a config that no run tells a value of there is none; names alone make no same image."""
    changed = [["train.seed", "1", "8"]]
    training(tmp_path / "other", HOSTILE, seed=2, config="configs/c.py", changed=changed)
    runs = [read_run(it.name, it / "metrics.json") for it in (hostile, tmp_path / "other")]
    page = Page(comparison_page(runs))
    assert page.row("data.root", 3) == ["</td><script>", "–"]
    assert "img" not in {tag for tag, _ in page.tags}


def test_several_trainings_need_an_output(hostile, tmp_path):
    training(tmp_path / "other", ["a", "b"])
    with pytest.raises(InputError, match="give --output"):
        main([str(hostile), str(tmp_path / "other")])


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": [[1, 2], [3, 4]]},
        {"counts": [["x"] * 5] * 4},
        {"counts": 10**30},
        {"palette": [[0, 0]] * 4},
        {"classes": None},
        {"pictures": {"samples": [{"name": "a"}]}},
        {"pictures": {"samples": [{"name": "a", "score": 1, "shares": [[9, 1]], "views": {}}]}},
        {"pictures": []},
    ],
    ids=range(8),
)
def test_damaged_record(hostile, tmp_path, changes):
    shutil.copytree(hostile, tmp_path / "run")
    file = tmp_path / "run/report/evaluated.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError, match=f"{file} is no record of an evaluation"):
        main([str(tmp_path / "run")])


def test_cut_off_record(hostile, tmp_path):
    shutil.copytree(hostile, tmp_path / "run")
    file = tmp_path / "run/report/evaluated.json"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{file} is not JSON .*: remove it"):
        main([str(tmp_path / "run"), str(hostile), "--output", str(tmp_path / "all.html")])


def test_views_of_a_record_stay_in_their_attribute(hostile, tmp_path):
    shutil.copytree(hostile, tmp_path / "run")
    file = tmp_path / "run/report/evaluated.json"
    record = json.loads(file.read_text())
    record["pictures"]["worst"][0]["views"]["label"] = '"><script>alert(1)</script>'
    file.write_text(json.dumps(record))
    page = Page(write_report(tmp_path / "run").read_text())
    assert "script" not in {tag for tag, _ in page.tags}


# --- a training's own ----------------------------------------------------------------------------


def test_settings_that_differ_from_the_recipe(tmp_path):
    overrides = ["train.seed=3", "cfg.drop_path_rate=0.1", "optim.params.lr=1e-3", "data.root=a b"]
    cfg = load_config(CONFIG, overrides)
    assert changed(cfg, CONFIG, overrides) == [  # drop_path_rate is what the config has
        ["train.seed", "0", "3"],
        ["optim.params.lr", "0.0006", "0.001"],
        ["data.root", "data/camvid", "a b"],
    ]


def test_report_that_cannot_be_written_ends_nothing(tmp_path, caplog, monkeypatch):
    logger = logging.getLogger("libai.projects.SegFormer.engine.report")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    (tmp_path / "file").write_text("no folder")
    cfg = load_config(CONFIG, [f"train.output_dir={tmp_path / 'file'}"])
    report = Report(cfg, None, None)
    report.trainer = SimpleNamespace(start_iter=0, max_iter=4)
    report.before_train()
    report.update(2)
    report.after_train()
    logger.removeHandler(caplog.handler)
    lines = [it.getMessage() for it in caplog.records if it.name == logger.name]
    assert len(lines) == 3 and all("could not write" in line for line in lines), lines


def test_report_of_a_resumed_training(hostile, tmp_path):
    """Its time is that of all its parts; what it runs on is told anew."""
    shutil.copytree(hostile, tmp_path / "run")
    cfg = load_config(CONFIG, [f"train.output_dir={tmp_path / 'run'}"])
    report = Report(cfg, (CONFIG, ["train.train_iter=400"]), None)
    report.trainer = SimpleNamespace(start_iter=200, max_iter=400)
    report.before_train()
    report.after_train()
    known = json.loads((tmp_path / "run/report/training.json").read_text())
    assert 3725.2 < known["seconds"] < 3785 and known["config"] == CONFIG
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert page.row("oneflow", 2)[0].startswith(f"{flow.__version__}, ")
    assert page.row("Python", 2) == [platform.python_version()]
    assert page.row("ranks", 2) == ["1 (data 1 x tensor 1 x pipeline 1)"]


def test_new_training_in_a_used_folder(hostile, tmp_path, caplog, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(hostile, folder)
    (folder / "model_best").mkdir()
    (folder / "metrics.json").unlink()
    monkeypatch.setattr(logging.getLogger("libai"), "propagate", True)
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("projects.SegFormer.engine.report.machine", lambda cfg: 1 / 0)
    report = Report(load_config(CONFIG, [f"train.output_dir={folder}"]), None, None)
    report.trainer = SimpleNamespace(start_iter=0, max_iter=4)
    report.before_train()
    assert "model_best is of an earlier training" in caplog.text
    assert not (folder / "evaluation.json").exists() and read_record(folder) is None
    assert report._known["iterations"] == 4 and "machine" not in report._known
    report.after_train()
    (last,) = (it.getMessage() for it in caplog.records if "Training done" in it.getMessage())
    assert "lowest" not in last and "model_best" not in last


def test_pictures_for_tensorboard(hostile):
    evaluated = read_record(hostile)
    pictures = sample_pictures(evaluated)
    assert list(pictures) == ["samples/1 & <0>.png", "samples/4 & <0>.png"]
    assert pictures["samples/1 & <0>.png"].shape == (SIZE[0] // 2, 3 * SIZE[1] // 2, 3)
    drawn = matrix_picture(evaluated)
    row = evaluated.counts[1, :4] / evaluated.counts[1].sum()
    for column, share in enumerate(row):  # the middle of each cell, from the lower right corner
        colour = np.array((0, 114, 178) if column == 1 else (213, 94, 0))
        expected = 255 + (colour - 255) * share
        found = drawn[-(2 * 32 + 16), -(32 * (3 - column) + 16)]
        np.testing.assert_allclose(found, expected, atol=1)


# --- in a browser --------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MEASURE = """
<script>onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument.documentElement;
    page.querySelectorAll("details").forEach(it => it.open = true);
    const requests = frame.contentWindow.performance.getEntriesByType("resource");
    const broken = [...page.querySelectorAll("img")].filter(image => !image.naturalWidth);
    const foreign = requests.filter(entry => !entry.name.startsWith("data:"));
    const colour = frame.contentWindow.getComputedStyle(page.querySelector("body")).color;
    return [page.scrollWidth, page.clientWidth, foreign.length, broken.length, colour];
  });
  document.body.textContent = JSON.stringify(found);
}</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no Chromium on this machine")
def test_in_a_browser(hostile, tmp_path):
    """No page is wider than the window, from 380 to 1600 pixels; all is in it; two schemes."""
    training(tmp_path / "ade20k", ADE20K)
    assert len(ADE20K) == 150
    folders = (hostile, tmp_path / "ade20k")
    pages = [write_report(folder).read_text() for folder in folders]
    runs = [read_run(folder.name, folder / "metrics.json") for folder in folders]
    pages.append(comparison_page(runs))
    widths = (380, 900, 1600)
    frames = [
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{escape(page)}"></iframe>'
        for page in pages
        for width in widths
    ]
    (tmp_path / "frames.html").write_text("<!doctype html>" + "".join(frames) + MEASURE)
    inks = set()
    for dark in (True, False):
        browser = next(filter(None, map(shutil.which, BROWSERS)))
        command = [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            *("--dump-dom", (tmp_path / "frames.html").as_uri()),
        ]
        process = subprocess.run(command, capture_output=True, text=True, timeout=120)
        found = json.loads(re.search(r"\[\[.*\]\]", process.stdout).group())
        assert len(found) == len(frames)
        for (content, window, foreign, broken, ink), width in zip(found, 3 * widths):
            assert content <= window == width and not foreign and not broken
            inks.add(ink)
    assert len(inks) == 2  # light and dark
