"""Curves of one training or several: loss, learning rate and the score of the evaluations.

    python tools/analyze.py output/segformer_city output/reference/metrics.json --output curves.png

Each training is named by its folder, or by its metrics.json, which this project's trainer and
tools/train_transformers.py write. One that still runs can be looked at.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from projects.SegFormer.engine import command_line
from projects.SegFormer.engine.json_lines import LINE_BYTES, is_number, parse_line
from projects.SegFormer.modeling.errors import InputError

SCORES = ("mIoU", "top1")  # in percent, what an evaluation is judged by
SMOOTHED_OVER = 0.06  # of the iterations of the longest run
# Okabe and Ito's colours, which colour-blind people can tell apart too, darkest first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

Series = tuple[np.ndarray, np.ndarray]  # iterations and values


def main(arguments: list[str]) -> None:
    args = _parser().parse_args(arguments)
    files = [metrics_file(Path(run)) for run in args.runs]
    runs = dict(zip(run_names(files), map(read_metrics, files)))
    for name, metrics in runs.items():
        print(f"{name}: {summary(metrics)}")
    try:
        draw(runs).savefig(args.output, dpi=150)
    except (OSError, ValueError) as error:  # ValueError: a suffix that is no format
        raise InputError(f"cannot write {args.output}: {error}") from error
    print(f"Curves written to {args.output}")


def metrics_file(path: Path) -> Path:
    """The metrics.json that is meant by a run's folder or by the file itself."""
    file = path / "metrics.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"no {file}: give the output folder of a training, or its metrics.json")
    return file


def run_names(files: list[Path]) -> list[str]:
    """A name for each file: its folder's, with as many of those above as tell them apart."""
    folders = [file.resolve().parent for file in files]
    if len(set(folders)) < len(folders):  # several files in one folder, or one given twice
        folders = [file.resolve() for file in files]
    if len(set(folders)) < len(folders):
        raise InputError("a training is given twice: give each once")
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def read_metrics(file: Path) -> dict[str, Series]:
    """Each scalar by name: (iterations, values), without those that are not finite.

    Damaged lines are passed over with a word to standard error; without one where it is the last,
    which a kill may cut off. Raises InputError for a file that holds no metrics.
    """
    expected = 'expected lines as {"iteration": 20, "total_loss": 2.1}'
    points, damaged, number = {}, [], 0
    try:
        if not file.is_file():  # a pipe would block
            raise InputError(f"cannot read {file}: it is no regular file")
        with open(file, "rb") as lines:
            while line := lines.readline(LINE_BYTES):
                number += 1
                record = parse_line(line)
                if record is None and number == 1:
                    raise InputError(f"cannot read {file} as metrics: line 1, {expected}")
                if record is None:
                    damaged.append(number)
                    continue
                for name, value in record.items():
                    if name != "iteration" and is_number(value):
                        points.setdefault(name, {})[record["iteration"]] = value
    except OSError as error:
        raise InputError(f"cannot read {file}: {error}; {expected}") from error
    if not number:
        raise InputError(f"{file} has no lines: has the training not got far enough?")
    if damaged and damaged != [number]:
        print(
            f"{file}: {len(damaged)} damaged lines are passed over, the first is line {damaged[0]}",
            file=sys.stderr,
        )
    if "total_loss" not in points and not any(name in points for name in SCORES):
        raise InputError(f"{file} has neither total_loss nor {' nor '.join(SCORES)}; {expected}")
    return {
        name: (np.array(sorted(series)), np.array([series[n] for n in sorted(series)], float))
        for name, series in points.items()
    }


def summary(metrics: dict[str, Series]) -> str:
    """As "1500 iterations, last loss 0.4431, best mIoU 34.10 at iteration 1500"."""
    last = max(iterations.max() for iterations, _ in metrics.values())
    parts = [f"{last} iterations"]
    if "total_loss" in metrics:
        parts.append(f"last loss {metrics['total_loss'][1][-1]:.4f}")
    for score in SCORES:
        if score in metrics:
            iterations, values = metrics[score]
            best = values.argmax()
            parts.append(f"best {score} {values[best]:.2f} at iteration {iterations[best]}")
    return ", ".join(parts)


def smooth(series: Series, span: float) -> np.ndarray:
    """The mean of the values within `span` / 2 iterations on either side of each.

    It reaches no further forward than back to the first: there the loss falls fast.
    """
    iterations, values = series
    reach = np.minimum(span / 2, iterations - iterations[0])
    starts = np.searchsorted(iterations, iterations - reach)
    ends = np.searchsorted(iterations, iterations + reach, side="right")
    sums = np.concatenate([[0.0], values.cumsum()])
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw(runs: dict[str, dict[str, Series]]) -> Figure:
    """Panels one above the other over the same iterations, a colour a run."""
    panels = {"total_loss": ("loss", 3.0), "lr": ("learning rate", 1.2)}
    panels |= {score: (f"{score} in %", 2.0) for score in SCORES}
    panels = {
        name: panel
        for name, panel in panels.items()
        if any(name in metrics for metrics in runs.values())
    }
    last = max(series[0].max() for metrics in runs.values() for series in metrics.values())
    heights = [height for _, height in panels.values()]
    figure = Figure(figsize=(9, 1.1 + 1.05 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)
    axes = dict(zip(panels, axes[:, 0]))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(runs)}
    for name, metrics in runs.items():
        for key in metrics.keys() & axes.keys():
            iterations, values = metrics[key]
            if key == "total_loss":
                axes[key].plot(
                    *(iterations, values), color=colours[name], alpha=0.3, linewidth=0.8, zorder=1
                )
                values = smooth(metrics[key], SMOOTHED_OVER * last)
            marker = "o" if key in SCORES else None
            axes[key].plot(iterations, values, color=colours[name], linewidth=1.8, marker=marker)
    for axis, (label, _) in zip(axes.values(), panels.values()):
        axis.set_ylabel(label)
        axis.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
        axis.grid(color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.01)
    axis.set_xlabel("iteration")
    figure.align_ylabels()
    figure.legend(
        [Line2D([], [], color=colour, linewidth=3) for colour in colours.values()],
        list(colours),
        loc="outside upper left",
        ncols=3,
        frameon=False,
    )
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser(__doc__)
    parser.add_argument("runs", nargs="+", help="folders of trainings, or metrics.json files")
    parser.add_argument("--output", required=True, help="image to write: .png, .svg or .pdf")
    return parser


if __name__ == "__main__":
    command_line.run(main)
