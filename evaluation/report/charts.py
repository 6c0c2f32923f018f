"""Charts as SVG that stands in a page, which gives the colours: `s1` to `s7` are those of lines."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple
from unicodedata import east_asian_width

import numpy as np

from projects.SegFormer.engine.metrics import Series
from projects.SegFormer.modeling.errors import printable

COLOURS = 7
WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 430, 8, 194  # of the field that lines are drawn in
BINS = 300  # a line has at most two points in each
TIPS = 60  # places that tell their values to a mouse
MARKED = 60  # points, up to which each is marked

NUMBERED = 20  # classes, up to which the cells of a matrix have numbers
LEAST_CELL = 0.005  # of a row, that a cell needs to be drawn in a larger one


class Line(NamedTuple):
    """A line of a chart; `colour` is a number from 1 to COLOURS, `faint` for single values."""

    name: str
    series: Series
    colour: int = 1
    faint: bool = False


def text(value: object) -> str:
    """Any text of a name or a file as it can stand in a page."""
    return escape(printable(value))


def number(value: float) -> str:
    """As 0.4431, 34.1, 1,500 or 6e-5."""
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line_chart(title: str, lines: Sequence[Line], keyed: bool = True) -> str:
    """A figure with axes, a key where there are several lines (`keyed`), values for the mouse."""
    left = min(int(line.series[0].min()) for line in lines)
    right = max(int(line.series[0].max()) for line in lines)
    low, high = _range(lines)

    def x(iterations):
        share = (iterations - min(left, 0)) / max(right - min(left, 0), 1)
        return LEFT + share * (RIGHT - LEFT)

    def y(values):
        return BOTTOM - (np.clip(values, low, high) - low) / (high - low) * (BOTTOM - TOP)

    parts = []
    for value in _ticks(low, high, 5):
        place = f"{y(value):.1f}"
        parts.append(f'<path class="grid" d="M{LEFT} {place}H{RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{place}" dy="4">{number(value)}</text>')
    for value in _ticks(0, right, 5):
        anchor = "end" if value > 0.95 * right else "middle"
        place = f'x="{x(value):.1f}" y="{BOTTOM + 18}"'
        parts.append(f'<text class="{anchor}" {place}>{number(value)}</text>')
    for line in lines:
        iterations, values = _thinned(line.series)
        kind = f"s{line.colour}" + (" faint" if line.faint else "")
        places = [f"{a:.1f},{b:.1f}" for a, b in zip(x(iterations), y(values))]
        parts.append(f'<polyline class="{kind}" points="{" ".join(places)}"/>')
        if len(values) <= MARKED and not line.faint:
            dots = "".join("M{} {}h0".format(*place.split(",")) for place in places)
            parts.append(f'<path class="dots {kind}" d="{dots}"/>')
    shown = np.unique(np.concatenate([line.series[0] for line in lines if not line.faint]))
    shown = shown[np.unique(np.linspace(0, len(shown) - 1, TIPS).round().astype(int))]
    edges = [LEFT, *((x(shown[1:]) + x(shown[:-1])) / 2), RIGHT]
    for iteration, start, end in zip(shown, edges, edges[1:]):
        tip = text(f"iteration {iteration:,}") + "".join(_value_at(iteration, it) for it in lines)
        place = f'x="{start:.1f}" y="{TOP}" width="{end - start:.1f}" height="{BOTTOM - TOP}"'
        parts.append(f'<rect class="tip" {place}><title>{tip}</title></rect>')
    key = key_of(lines) if keyed and len(lines) > 1 else ""
    return (
        f'<figure class="chart"><figcaption>{text(title)}{key}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def key_of(lines: Sequence[Line]) -> str:
    """The names of lines beside their colours."""
    names = "".join(
        f'<li class="s{line.colour}{" faint" * line.faint}">{text(line.name)}</li>'
        for line in lines
    )
    return f'<ul class="key">{names}</ul>'


def small_chart(title: str, value: str, lines: Sequence[Line], right: int) -> str:
    """One of many charts of percent, up to iteration `right`; `title` and `value` are HTML."""
    parts = ['<path class="grid" d="M0 2H160M0 30H160M0 58H160"/>']
    tips = []
    for line in lines:
        iterations, values = _thinned(line.series)
        xs, ys = 2 + 156 * iterations / max(right, 1), 58 - 0.56 * np.clip(values, 0, 100)
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys))
        parts.append(f'<polyline class="s{line.colour}" points="{places}"/>')
        parts.append(f'<path class="dots s{line.colour}" d="M{xs[-1]:.1f} {ys[-1]:.1f}h0"/>')
        last = [f"{n:,}: {v:.2f}" for n, v in list(zip(*line.series))[-10:]]
        tips.append("\n".join([line.name, *last]))
    tip = text("\n\n".join(tips)).replace("\\n", "\n")
    return (
        f'<figure class="small"><figcaption>{title}<b>{value}</b></figcaption>'
        f'<svg viewBox="0 0 160 60"><title>{tip}</title>{"".join(parts)}</svg></figure>'
    )


def matrix(classes: Sequence[str], counts: np.ndarray) -> str:
    """A confusion matrix, each row of 100%, as SVG of a fixed size.

    Args:
        counts: (classes, classes + 1) by label and prediction, of a MeanIoUEvaluator. Its last
            column is drawn where it has something.
    """
    columns = [*classes, *(["no class"] if counts[:, -1].any() else [])]
    counts = counts[:, : len(columns)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    numbered = len(classes) <= NUMBERED
    cell = 40 if numbered else 13
    left = 12 + max(map(_text_width, columns)) * (7 if numbered else 6)
    width, height = left + cell * len(columns) + 40, left + cell * len(classes) + 4
    parts = []
    for row, name in enumerate(classes):
        y = left + cell * (row + 0.5)
        parts.append(f'<text class="end" x="{left - 6}" y="{y:g}" dy="4">{_short(name)}</text>')
    for column, name in enumerate(columns):
        x = left + cell * (column + 0.5)
        place = f'transform="translate({x:g} {left - 6}) rotate(-60)" dy="4"'
        parts.append(f"<text {place}>{_short(name)}</text>")
    parts.append(
        f'<rect class="field" x="{left}" y="{left}" width="{cell * len(columns)}" '
        f'height="{cell * len(classes)}"/>'
    )
    for row, column in np.argwhere(shares > (0 if numbered else LEAST_CELL)):
        share = float(shares[row, column])
        x, y = left + cell * int(column), left + cell * int(row)
        kind = "right" if row == column else "wrong"
        tip = f"{classes[row]} taken for {columns[column]}" if kind == "wrong" else classes[row]
        tip += f": {100 * share:.2f}% of its pixels, {counts[row, column]:,}"
        parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
            f'fill-opacity="{max(share**0.7, 0.04):.2f}"><title>{text(tip)}</title></rect>'
        )
        if numbered and share >= LEAST_CELL:
            kind = "cell on" if share > 0.65 else "cell"
            place = f'x="{x + cell / 2:g}" y="{y + cell / 2:g}" dy="4"'
            parts.append(f'<text class="{kind}" {place}>{100 * share:.0f}</text>')
    return (
        f'<svg class="matrix" width="{width}" height="{height}" role="img" '
        f'aria-label="confusion matrix">{"".join(parts)}</svg>'
    )


def _range(lines: Sequence[Line]) -> tuple[float, float]:
    """Of the values; of single ones a few may lie outside."""
    values = [
        np.percentile(line.series[1], [1, 99]) if line.faint else line.series[1] for line in lines
    ]
    low, high = (float(f(np.concatenate(values))) for f in (np.min, np.max))
    margin = 0.05 * (high - low) or abs(low) / 2 or 1.0
    return (low - margin if low < 0 or low > margin else 0.0), high + margin


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [step * place for place in range(first, last + 1)]


def _thinned(series: Series) -> Series:
    """The lowest and the highest value of each bin of neighbours, where there are many."""
    iterations, values = series
    if len(values) <= 2 * BINS:
        return series
    kept = set()
    for part in np.array_split(np.arange(len(values)), BINS):
        kept |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    kept = sorted(kept | {0, len(values) - 1})
    return iterations[kept], values[kept]


def _value_at(iteration: int, line: Line) -> str:
    iterations, values = line.series
    place = min(int(np.searchsorted(iterations, iteration)), len(iterations) - 1)
    if iterations[place] != iteration:
        return ""
    return f"\n{text(line.name)}: {number(float(values[place]))}"


def _text_width(name: str) -> int:
    """In letters; those of Chinese are as wide as two."""
    return sum(1 + (east_asian_width(letter) in "WF") for letter in _cut(name))


def _cut(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def _short(name: str) -> str:
    return text(_cut(name))
