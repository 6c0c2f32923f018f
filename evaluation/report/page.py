"""A training as one HTML file that needs nothing beside it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from projects.SegFormer.engine.json_lines import is_number
from projects.SegFormer.engine.metrics import SCORES, SMOOTHED_OVER, best, smooth
from projects.SegFormer.evaluation.report.charts import (
    Line,
    line_chart,
    matrix,
    number,
    small_chart,
    text,
)
from projects.SegFormer.evaluation.report.parts import (
    Row,
    class_name,
    document,
    duration,
    figure,
    folded,
    legend,
    numbered,
    percent,
    table,
    unique,
)
from projects.SegFormer.evaluation.report.record import VIEWS
from projects.SegFormer.evaluation.report.run import Run, read_run
from projects.SegFormer.modeling.files import write_whole

REPORT = "report.html"
CONFUSED = 12  # pairs of classes that are listed


def write_report(folder: str | Path) -> Path:
    """Write REPORT in an output folder, whole or not at all; its path. Raises InputError."""
    folder = Path(folder)
    run = read_run(folder.resolve().name, folder / "metrics.json")
    write_whole(folder / REPORT, page(run).encode())
    return folder / REPORT


def page(run: Run) -> str:
    """The page of one training."""
    title = text(run.name)
    config = run.training.get("config")
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="note">{text(config)}</p>' if config else "",
        _facts(run),
    ]
    sections = {
        "Curves": curves([run]),
        "IoU of each class": small_charts([run]),
        "Classes": _classes(run),
        "Confusion matrix": _confusion(run),
        "Sample images": _pictures(run, "samples"),
        "Images of lowest mIoU": _pictures(run, "worst"),
        "Settings": _settings(run),
        "Versions and machine": _machine(run),
    }
    return document(title, parts, sections)


# --- sections, "" for what is not known ----------------------------------------------------------


def _facts(run: Run) -> str:
    facts = []
    score = run.score()
    if score in run.metrics:
        value, iteration = best(run.metrics[score])
        facts.append((f"best {score}", f"{value:.2f}%", f"at iteration {iteration:,}"))
    if is_number(run.scores.get(score)):
        last = run.metrics[score][0][-1] if score in run.metrics else None
        is_last = last and run.metrics[score][1][-1] == run.scores[score]
        where = f"at iteration {last:,}" if is_last else "of evaluation.json"
        facts.append((f"last {score}", f"{run.scores[score]:.2f}%", where))
    for name, note in (("aAcc", "pixels that are right"), ("top5", "right in five")):
        if is_number(run.scores.get(name)):
            facts.append((name, f"{run.scores[name]:.2f}%", note))
    if "total_loss" in run.metrics:
        loss = smooth(run.metrics["total_loss"], SMOOTHED_OVER * run.length())[-1]
        facts.append(("last loss", number(loss), "mean of the last"))
    if run.metrics:
        total = run.training.get("iterations")
        of_all = f"of {total:,}" if is_number(total) else ""
        facts.append(("iterations", f"{run.length():,}", of_all))
    if is_number(run.training.get("seconds")):
        facts.append(("time", duration(run.training["seconds"]), "evaluations included"))
    cells = [
        f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>"
        for name, value, note in facts
    ]
    return f'<dl class="facts">{"".join(cells)}</dl>'


def curves(runs: Sequence[Run]) -> str:
    panels = {"total_loss": "loss", "lr": "learning rate"}
    panels |= {score: f"{score} in percent" for score in (*SCORES, "top5")}
    span = SMOOTHED_OVER * max(run.length() for run in runs)
    charts = []
    for key, title in panels.items():
        lines = []
        for run, colour in numbered(runs):
            if key not in run.metrics:
                continue
            series = run.metrics[key]
            alone = len(runs) == 1
            if key == "total_loss":
                name = "single steps" if alone else run.name
                lines.append(Line(name, series, colour, faint=True))
                series = series[0], smooth(series, span)
            lines.append(Line("mean" if alone else run.name, series, colour))
        if lines:
            charts.append(line_chart(title, lines, keyed=len(runs) == 1))
    note = '<p class="note">By iteration; the mouse shows the values.</p>'
    return f'{note}<div class="charts">{"".join(charts)}</div>' if charts else ""


def small_charts(runs: Sequence[Run]) -> str:
    right = max(run.length() for run in runs)
    charts = []
    in_order = [name for run in runs for name in run.of_classes("IoU")]
    of_metrics = [key[4:] for run in runs for key in run.metrics if key.startswith("IoU/")]
    for name in unique(it for it in (*in_order, *of_metrics) if it in of_metrics):
        lines = [
            Line(run.name if len(runs) > 1 else "iteration", run.metrics[f"IoU/{name}"], colour)
            for run, colour in numbered(runs)
            if f"IoU/{name}" in run.metrics
        ]
        last = f"{lines[0].series[1][-1]:.1f}" if len(runs) == 1 else ""
        title = f"<span>{class_name(name, runs[0].colours())}</span>"
        charts.append(small_chart(title, last, lines, right))
    if not charts:
        return ""
    note = '<p class="note">From 0 to 100%, over all iterations.</p>'
    return note + folded(f'<div class="smalls">{"".join(charts)}</div>', len(charts))


def _classes(run: Run) -> str:
    values = {name: run.of_classes(name) for name in ("IoU", "Acc", "Dice", "boundary_IoU")}
    figures = [name for name, of_classes in values.items() if of_classes]
    classes = unique(name for figure in figures for name in run.scores[figure])
    if not classes:
        return ""
    counts = {}
    if run.evaluated:
        counts = dict(zip(run.evaluated.classes, _counts_of(run.evaluated.counts)))
    rows = []
    for name in classes:
        row = [class_name(name, run.colours())]
        row += [percent(values[figure].get(name)) for figure in figures]
        rows.append([*row, *counts.get(name, [""] * 3 if counts else [])])
    head = ["class", *(figure.replace("_", " ") for figure in figures)]
    head += ["labelled pixels", "share", "share predicted"] if counts else []
    means = {"IoU": "mIoU", "Acc": "mAcc", "Dice": "mDice", "boundary_IoU": "boundary_mIoU"}
    foot = ["mean", *(percent(run.scores.get(means[figure])) for figure in figures)]
    foot += [""] * (len(head) - len(foot))
    note = "In percent"
    note += "; pixels are those of the validation labels that count." if counts else "."
    body = table(head, rows, "classes", [foot] if "IoU" in figures else [], bars=figures[:1])
    return f'<p class="note">{note}</p>' + folded(body, len(classes))


def _confusion(run: Run) -> str:
    if not run.evaluated or not run.evaluated.counts.any():
        return ""
    classes, counts = run.evaluated.classes, run.evaluated.counts
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares[np.diag_indices(len(classes))] = 0
    order = np.argsort(-shares, axis=None, kind="stable")[:CONFUSED]
    predicted = [*classes, "no class"]
    rows = []
    for row, column in zip(*np.unravel_index(order, shares.shape)):
        if shares[row, column]:
            pair = [class_name(n, run.colours()) for n in (classes[row], predicted[column])]
            rows.append([*pair, percent(100 * shares[row, column]), f"{counts[row, column]:,}"])
    head = ["label", "taken for", "of its pixels, %", "pixels"]
    confused = f"<h3>What is taken for what</h3>{table(head, rows, 'classes pairs')}"
    return (
        '<p class="note">A row is a label, of 100%; a column is what was predicted. Blue is right, '
        "orange is wrong; the mouse shows names and numbers.</p>"
        f'<div class="box">{matrix(classes, counts)}</div>{confused if rows else ""}'
    )


def _pictures(run: Run, kind: str) -> str:
    pictures = run.evaluated.pictures[kind] if run.evaluated else []
    found = []
    for picture in pictures:
        views = [figure(name, picture) for name in VIEWS]
        score = "" if picture.score is None else f": mIoU {picture.score:.1f}%"
        found.append(
            f'<div class="picture"><p>{text(picture.name)}{score}</p>'
            f'<div class="views">{"".join(views)}</div>{legend(run.evaluated, picture)}</div>'
        )
    return "".join(found)


def _settings(run: Run) -> str:
    rows = [[f"<code>{text(part)}</code>" for part in row] for row in run.changed()]
    chosen = run.known("chosen", list)
    if not rows and not chosen:
        return '<p class="note">As in the config.</p>' if run.training.get("config") else ""
    parts = []
    if rows:
        parts.append(table(["setting", "in the config", "here"], rows, "words"))
    if chosen:
        items = "".join(f"<li><code>{text(line)}</code></li>" for line in chosen)
        parts.append(f"<h3>Chosen from the data</h3><ul>{items}</ul>")
    return "".join(parts)


def _machine(run: Run) -> str:
    rows = [
        [text(name), text(value)]
        for part in ("versions", "machine")
        for name, value in run.known(part, dict).items()
    ]
    return table(["", ""], rows, "words") if rows else ""


def _counts_of(counts: np.ndarray) -> list[Row]:
    """Of each class: labelled pixels, their share of all, and the share predicted."""
    labelled, predicted, total = counts.sum(1), counts.sum(0)[:-1], max(1, int(counts.sum()))
    return [
        [f"{n:,}", f"{100 * n / total:.2f}", f"{100 * p / total:.2f}"]
        for n, p in zip(labelled.tolist(), predicted.tolist())
    ]
