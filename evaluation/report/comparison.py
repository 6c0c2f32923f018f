"""Several trainings in one HTML file."""

from collections.abc import Sequence

from projects.SegFormer.engine.json_lines import is_number
from projects.SegFormer.engine.metrics import best
from projects.SegFormer.evaluation.report.charts import Line, key_of, number, text
from projects.SegFormer.evaluation.report.page import curves, small_charts
from projects.SegFormer.evaluation.report.parts import (
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
from projects.SegFormer.evaluation.report.record import Picture
from projects.SegFormer.evaluation.report.run import Run


def comparison_page(runs: Sequence[Run]) -> str:
    """One page of several trainings."""
    lines = [Line(run.name, None, colour) for run, colour in numbered(runs)]
    parts = [f"<h1>{len(runs)} trainings</h1>", key_of(lines)]
    sections = {
        "Results": _results(runs),
        "Curves": curves(runs),
        "IoU of each class": small_charts(runs),
        "Classes": _classes_of_all(runs),
        "The same images": _same_pictures(runs),
        "Settings": _settings_of_all(runs),
    }
    return document("Comparison", parts, sections)


def _results(runs: Sequence[Run]) -> str:
    rows = []
    for run, colour in numbered(runs):
        score = run.score()
        top, where = best(run.metrics[score]) if score in run.metrics else (None, None)
        loss = run.metrics["total_loss"][1][-1] if "total_loss" in run.metrics else None
        seconds = run.training.get("seconds")
        rows.append(
            [
                f'<ul class="key"><li class="s{colour}">{text(run.name)}</li></ul>',
                score or "",
                percent(top),
                f"{where:,}" if where is not None else "",
                percent(run.metrics[score][1][-1] if score in run.metrics else None),
                number(loss) if loss is not None else "",
                f"{run.length():,}",
                duration(seconds) if is_number(seconds) else "",
            ]
        )
    head = ["training", "score", "best", "at", "last", "last loss", "iterations", "time"]
    return table(head, rows, "classes")


def _classes_of_all(runs: Sequence[Run]) -> str:
    figure = next((it for it in ("IoU", "Acc") if any(run.of_classes(it) for run in runs)), None)
    if figure is None:
        return ""
    values = [run.of_classes(figure) for run in runs]
    rows = []
    for name in unique(name for found in values for name in found):
        row = [found.get(name) for found in values]
        highest = max(value for value in row if value is not None)
        cells = [percent(value) for value in row]
        cells = [f"<b>{c}</b>" if v == highest and len(runs) > 1 else c for c, v in zip(cells, row)]
        rows.append([class_name(name, runs[0].colours()), *cells])
    note = f'<p class="note">{figure} of the last evaluation in percent, the highest in bold.</p>'
    body = table(["class", *(text(run.name) for run in runs)], rows, "classes")
    return note + folded(body, len(rows))


def _same_pictures(runs: Sequence[Run]) -> str:
    """Of images that several trainings have drawn, the prediction of each."""
    drawn = {
        run.name: {_content(picture): picture for picture in run.evaluated.pictures["samples"]}
        for run in runs
        if run.evaluated
    }
    found = []
    for content in unique(content for pictures in drawn.values() for content in pictures):
        having = {run: those[content] for run, those in drawn.items() if content in those}
        if len(having) < 2:
            continue
        first = next(iter(having.values()))
        views = [figure(view, first) for view in ("image", "label")]
        views += [
            figure("prediction", it, run + (f": {it.score:.1f}%" if it.score is not None else ""))
            for run, it in having.items()
        ]
        owner = next(run.evaluated for run in runs if run.name in having)
        found.append(
            f'<div class="picture"><p>{text(first.name)}</p>'
            f'<div class="views">{"".join(views)}</div>{legend(owner, first)}</div>'
        )
    return "".join(found)


def _content(picture: Picture) -> tuple:
    """Its name, image and label: other data may have files of the same names."""
    return picture.name, picture.views.get("image"), picture.views.get("label")


def _settings_of_all(runs: Sequence[Run]) -> str:
    changed = [{key: here for key, _, here in run.changed()} for run in runs]
    configs = [str(run.training.get("config", "")) for run in runs]
    recipes = {  # what a run has that did not set it, if another of the same config tells it
        (config, key): recipe
        for config, run in zip(configs, runs)
        for key, recipe, _ in run.changed()
        if config
    }
    rows = [["config", *map(text, configs)]]
    for key in unique(key for found in changed for key in found):
        values = [
            found[key] if key in found else recipes.get((config, key), "–")
            for config, found in zip(configs, changed)
        ]
        if len(set(values)) > 1:
            rows.append([f"<code>{text(part)}</code>" for part in (key, *values)])
    if not any(run.training for run in runs):
        return ""
    return table(["setting", *(text(run.name) for run in runs)], rows, "words")
