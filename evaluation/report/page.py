"""A training as one HTML file that needs nothing beside it, and several trainings in one."""

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from projects.SegFormer.engine.json_lines import is_number
from projects.SegFormer.engine.metrics import (
    SCORES,
    SMOOTHED_OVER,
    Series,
    best,
    last_iteration,
    read_metrics,
    smooth,
)
from projects.SegFormer.evaluation.report.charts import (
    COLOURS,
    Line,
    key_of,
    line_chart,
    matrix,
    number,
    small_chart,
    text,
)
from projects.SegFormer.evaluation.report.record import (
    VIEWS,
    Evaluated,
    Picture,
    read_record,
)
from projects.SegFormer.evaluation.report.style import STYLE
from projects.SegFormer.modeling.files import read_json, write_whole

REPORT = "report.html"
TRAINING = "report/training.json"  # see engine.report
CONFUSED = 12  # pairs of classes that are listed
OPEN_CLASSES = 40  # up to which long lists of classes are unfolded

Row = Sequence[str]  # cells of HTML


@dataclass
class Run:
    """What there is of a training; what is not known is empty or None.

    Attributes:
        metrics: series by name.
        scores: evaluation.json.
        evaluated: the record of the last evaluation.
        training: settings, versions and machine, as engine.report writes them.
    """

    name: str
    metrics: dict[str, Series]
    scores: dict
    evaluated: Evaluated | None
    training: dict

    def score(self) -> str | None:
        """The name of what it is judged by."""
        return next((name for name in SCORES if name in self.metrics or name in self.scores), None)

    def of_classes(self, figure: str) -> dict[str, float]:
        """A figure of evaluation.json by class, without classes that have none."""
        found = self.scores.get(figure)
        found = found if isinstance(found, dict) else {}
        return {name: float(value) for name, value in found.items() if is_number(value)}

    def colour(self, name: str) -> str:
        """A box in the colour of a class, of HTML."""
        if not self.evaluated or name not in self.evaluated.classes:
            return ""
        return swatch(self.evaluated.palette[self.evaluated.classes.index(name)])


def read_run(name: str, file: Path, metrics: dict[str, Series] | None = None) -> Run:
    """The training of a metrics.json, which need not be there.

    Raises InputError for a file beside it that is damaged.
    """
    folder = file.parent
    if metrics is None:
        metrics = read_metrics(file) if file.is_file() and file.stat().st_size else {}
    evaluation, training = (
        read_json(path) if path.is_file() else {}
        for path in (folder / "evaluation.json", folder / TRAINING)
    )
    return Run(name, metrics, evaluation, read_record(folder), training)


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
        "Curves": _curves([run]),
        "IoU of each class": _small_charts([run]),
        "Classes": _classes(run),
        "Confusion matrix": _confusion(run),
        "Sample images": _pictures(run, "samples"),
        "Images of lowest mIoU": _pictures(run, "worst"),
        "Settings": _settings(run),
        "Versions and machine": _machine(run),
    }
    return _document(title, parts, sections)


def comparison_page(runs: Sequence[Run]) -> str:
    """One page of several trainings."""
    lines = [Line(run.name, None, colour) for run, colour in zip(runs, _colours())]
    parts = [f"<h1>{len(runs)} trainings</h1>", key_of(lines)]
    sections = {
        "Results": _results(runs),
        "Curves": _curves(runs),
        "IoU of each class": _small_charts(runs),
        "Classes": _classes_of_all(runs),
        "The same images": _same_pictures(runs),
        "Settings": _settings_of_all(runs),
    }
    return _document("Comparison", parts, sections)


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
        loss = smooth(run.metrics["total_loss"], SMOOTHED_OVER * last_iteration(run.metrics))[-1]
        facts.append(("last loss", number(loss), "mean of the last"))
    if run.metrics:
        total = run.training.get("iterations")
        of_all = f"of {total:,}" if is_number(total) else ""
        facts.append(("iterations", f"{last_iteration(run.metrics):,}", of_all))
    if is_number(run.training.get("seconds")):
        facts.append(("time", duration(run.training["seconds"]), "evaluations included"))
    cells = [
        f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>"
        for name, value, note in facts
    ]
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _curves(runs: Sequence[Run]) -> str:
    panels = {"total_loss": "loss", "lr": "learning rate"}
    panels |= {score: f"{score} in percent" for score in (*SCORES, "top5")}
    span = SMOOTHED_OVER * _length(runs)
    charts = []
    for key, title in panels.items():
        lines = []
        for run, colour in zip(runs, _colours()):
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


def _small_charts(runs: Sequence[Run]) -> str:
    right = _length(runs)
    charts = []
    in_order = [name for run in runs for name in run.of_classes("IoU")]
    of_metrics = [key[4:] for run in runs for key in run.metrics if key.startswith("IoU/")]
    for name in _names(it for it in (*in_order, *of_metrics) if it in of_metrics):
        lines = [
            Line(run.name if len(runs) > 1 else "iteration", run.metrics[f"IoU/{name}"], colour)
            for run, colour in zip(runs, _colours())
            if f"IoU/{name}" in run.metrics
        ]
        last = f"{lines[0].series[1][-1]:.1f}" if len(runs) == 1 else ""
        title = f"<span>{runs[0].colour(name)}{text(name)}</span>"
        charts.append(small_chart(title, last, lines, right))
    if not charts:
        return ""
    note = '<p class="note">From 0 to 100%, over all iterations.</p>'
    return note + _folded(f'<div class="smalls">{"".join(charts)}</div>', len(charts))


def _classes(run: Run) -> str:
    figures = [name for name in ("IoU", "Acc", "Dice", "boundary_IoU") if run.scores.get(name)]
    values = {figure: run.of_classes(figure) for figure in figures}
    names = _names(
        n for figure in figures if isinstance(run.scores[figure], dict) for n in run.scores[figure]
    )
    if not names:
        return ""
    counts = {}
    if run.evaluated:
        counts = dict(zip(run.evaluated.classes, _counts_of(run.evaluated.counts)))
    rows = []
    for name in names:
        row = [f"{run.colour(name)}{text(name)}"]
        row += [_percent(values[figure].get(name)) for figure in figures]
        rows.append([*row, *counts.get(name, [""] * 3 if counts else [])])
    head = ["class", *(figure.replace("_", " ") for figure in figures)]
    head += ["labelled pixels", "share", "share predicted"] if counts else []
    means = {"IoU": "mIoU", "Acc": "mAcc", "Dice": "mDice", "boundary_IoU": "boundary_mIoU"}
    foot = ["mean", *(_percent(run.scores.get(means[figure])) for figure in figures)]
    foot += [""] * (len(head) - len(foot))
    note = "IoU, Acc and Dice in percent. " + (
        "Pixels are those of the validation labels that count." if counts else ""
    )
    table = _table(head, rows, "classes", [foot] if "IoU" in figures else [], bars=figures[:1])
    return f'<p class="note">{note}</p>' + _folded(table, len(names))


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
            pair = [f"{run.colour(n)}{text(n)}" for n in (classes[row], predicted[column])]
            rows.append([*pair, _percent(100 * shares[row, column]), f"{counts[row, column]:,}"])
    head = ["label", "taken for", "of its pixels, %", "pixels"]
    confused = (
        "<h3>What is taken for what</h3>" + _table(head, rows, "classes pairs") if rows else ""
    )
    return (
        '<p class="note">A row is a label, of 100%; a column is what was predicted. Blue is right, '
        "orange is wrong; the mouse shows names and numbers.</p>"
        f'<div class="box">{matrix(classes, counts)}</div>{confused if rows else ""}'
    )


def _pictures(run: Run, kind: str) -> str:
    pictures = run.evaluated.pictures[kind] if run.evaluated else []
    found = []
    for picture in pictures:
        views = [_view(name, picture) for name in VIEWS]
        score = "" if picture.score is None else f": mIoU {picture.score:.1f}%"
        found.append(
            f'<div class="picture"><p>{text(picture.name)}{score}</p>'
            f'<div class="views">{"".join(views)}</div>{_legend(run.evaluated, picture)}</div>'
        )
    return "".join(found)


def _settings(run: Run) -> str:
    rows = [[f"<code>{text(part)}</code>" for part in row] for row in _changed(run)]
    chosen = run.training.get("chosen")
    chosen = [text(line) for line in chosen] if isinstance(chosen, list) else []
    if not rows and not chosen:
        return '<p class="note">As in the config.</p>' if run.training.get("config") else ""
    parts = []
    if rows:
        parts.append(_table(["setting", "in the config", "here"], rows, "words"))
    if chosen:
        items = "".join(f"<li><code>{line}</code></li>" for line in chosen)
        parts.append(f"<h3>Chosen from the data</h3><ul>{items}</ul>")
    return "".join(parts)


def _machine(run: Run) -> str:
    rows = [
        [text(name), text(value)]
        for part in ("versions", "machine")
        for name, value in _mapping(run.training.get(part)).items()
    ]
    return _table(["", ""], rows, "words") if rows else ""


# --- sections of several trainings ---------------------------------------------------------------


def _results(runs: Sequence[Run]) -> str:
    rows = []
    for run, colour in zip(runs, _colours()):
        score = run.score()
        top, where = best(run.metrics[score]) if score in run.metrics else (None, None)
        loss = run.metrics["total_loss"][1][-1] if "total_loss" in run.metrics else None
        seconds = run.training.get("seconds")
        rows.append(
            [
                f'<ul class="key"><li class="s{colour}">{text(run.name)}</li></ul>',
                score or "",
                _percent(top),
                f"{where:,}" if where is not None else "",
                _percent(run.metrics[score][1][-1] if score in run.metrics else None),
                number(loss) if loss is not None else "",
                f"{last_iteration(run.metrics):,}" if run.metrics else "",
                duration(seconds) if is_number(seconds) else "",
            ]
        )
    head = ["training", "score", "best", "at", "last", "last loss", "iterations", "time"]
    return _table(head, rows, "classes")


def _classes_of_all(runs: Sequence[Run]) -> str:
    figure = next((it for it in ("IoU", "Acc") if any(run.of_classes(it) for run in runs)), None)
    if figure is None:
        return ""
    values = [run.of_classes(figure) for run in runs]
    rows = []
    for name in _names(name for found in values for name in found):
        row = [found.get(name) for found in values]
        highest = max(value for value in row if value is not None)
        cells = [_percent(value) for value in row]
        cells = [f"<b>{c}</b>" if v == highest and len(runs) > 1 else c for c, v in zip(cells, row)]
        rows.append([f"{runs[0].colour(name)}{text(name)}", *cells])
    note = f'<p class="note">{figure} of the last evaluation in percent, the highest in bold.</p>'
    table = _table(["class", *(text(run.name) for run in runs)], rows, "classes")
    return note + _folded(table, len(rows))


def _same_pictures(runs: Sequence[Run]) -> str:
    """Of images that several trainings have drawn, the prediction of each."""
    drawn = {
        run.name: {picture.name: picture for picture in run.evaluated.pictures["samples"]}
        for run in runs
        if run.evaluated
    }
    found = []
    for name in _names(name for pictures in drawn.values() for name in pictures):
        having = {run: pictures[name] for run, pictures in drawn.items() if name in pictures}
        if len(having) < 2:
            continue
        first = next(iter(having.values()))
        views = [_view(view, first) for view in ("image", "label")]
        views += [
            _view("prediction", it, run + (f": {it.score:.1f}%" if it.score is not None else ""))
            for run, it in having.items()
        ]
        owner = next(run.evaluated for run in runs if run.name in having)
        found.append(
            f'<div class="picture"><p>{text(name)}</p>'
            f'<div class="views">{"".join(views)}</div>{_legend(owner, first)}</div>'
        )
    return "".join(found)


def _settings_of_all(runs: Sequence[Run]) -> str:
    changed = [{key: (recipe, here) for key, recipe, here in _changed(run)} for run in runs]
    rows = [["config", *(text(run.training.get("config", "")) for run in runs)]]
    for key in _names(key for found in changed for key in found):
        recipe = next(found[key][0] for found in changed if key in found)
        values = [found[key][1] if key in found else recipe for found in changed]
        if len(set(values)) > 1:
            rows.append([f"<code>{text(part)}</code>" for part in (key, *values)])
    if not any(run.training for run in runs):
        return ""
    return _table(["setting", *(text(run.name) for run in runs)], rows, "words")


# --- parts ---------------------------------------------------------------------------------------


def swatch(colour: Sequence[int] | None) -> str:
    """A box in a colour, or hatched for what is of no class."""
    if colour is None:
        return '<i class="swatch none"></i>'
    return f'<i class="swatch" style="background:rgb({",".join(map(str, colour))})"></i>'


def duration(seconds: float) -> str:
    """As 0:25:32."""
    return str(datetime.timedelta(seconds=round(min(seconds, 1e9))))


def _document(title: str, header: Iterable[str], sections: dict[str, str]) -> str:
    sections = {name: body for name, body in sections.items() if body}
    marks = {name: re.sub(r"\W+", "-", name.lower()) for name in sections}
    links = "".join(f'<a href="#{mark}">{name}</a>' for name, mark in marks.items())
    bodies = "".join(
        f'<section id="{marks[name]}"><h2>{name}</h2>{body}</section>'
        for name, body in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body><header>{''.join(header)}<nav>{links}</nav></header>\n<main>{bodies}</main></body>"
        "</html>\n"
    )


def _table(head: Row, rows: Iterable[Row], kind: str, foot: Iterable[Row] = (), bars=()) -> str:
    """A table in a box that scrolls; a cell of a column of `bars` shows its percent as a bar."""

    def cells(row: Row, marked=()) -> str:
        found = [f'<th scope="row">{row[0]}</th>']
        for name, cell in zip(head[1:], row[1:]):
            is_bar = name in marked and cell[:1].isdigit()
            bar = f' class="bar" style="--w:{cell}%"' if is_bar else ""
            found.append(f"<td{bar}>{cell}</td>")
        return f"<tr>{''.join(found)}</tr>"

    top = "".join(f'<th scope="col">{name}</th>' for name in head)
    top = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    body = "".join(cells(row, bars) for row in rows)
    end = "".join(map(cells, foot))
    end = f"<tfoot>{end}</tfoot>" if end else ""
    return f'<div class="box"><table class="{kind}">{top}<tbody>{body}</tbody>{end}</table></div>'


def _view(view: str, picture: Picture, title: str = "") -> str:
    if view not in picture.views:
        return ""
    data = f"data:image/{VIEWS[view]};base64,{text(picture.views[view])}"
    title = text(title or view)
    alt = f"{title} of {text(picture.name)}"
    return f'<figure><img src="{data}" alt="{alt}"><figcaption>{title}</figcaption></figure>'


def _legend(evaluated: Evaluated, picture: Picture) -> str:
    names, colours = [*evaluated.classes, "ignored"], [*evaluated.palette, None]
    items = [
        f"<li>{swatch(colours[index])}{text(names[index])}</li>" for index, _ in picture.shares
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _folded(body: str, length: int) -> str:
    """A long list of classes behind its length."""
    if length <= OPEN_CLASSES:
        return body
    return f"<details><summary>{length} classes</summary>{body}</details>"


def _counts_of(counts: np.ndarray) -> list[Row]:
    """Of each class: labelled pixels, their share of all, and the share predicted."""
    labelled, predicted, total = counts.sum(1), counts.sum(0)[:-1], max(1, int(counts.sum()))
    return [
        [f"{n:,}", f"{100 * n / total:.2f}", f"{100 * p / total:.2f}"]
        for n, p in zip(labelled.tolist(), predicted.tolist())
    ]


def _changed(run: Run) -> list[list[str]]:
    """Setting, value in the config, value here."""
    rows = run.training.get("changed")
    rows = rows if isinstance(rows, list) else []
    return [list(map(str, row)) for row in rows if isinstance(row, list) and len(row) == 3]


def _length(runs: Sequence[Run]) -> int:
    """The last iteration of all trainings."""
    return max((last_iteration(run.metrics) for run in runs if run.metrics), default=0)


def _percent(value: object) -> str:
    return f"{value:.2f}" if is_number(value) else "–"


def _mapping(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _names(names: Iterable[str]) -> list[str]:
    """Each once, in their order."""
    return list(dict.fromkeys(names))


def _colours() -> Iterable[int]:
    return cycle(range(1, COLOURS + 1))
