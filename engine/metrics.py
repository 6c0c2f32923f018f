"""metrics.json as series: read, told in a line, smoothed."""

import sys
from pathlib import Path

import numpy as np

from projects.SegFormer.engine.json_lines import LINE_BYTES, is_number, parse_line
from projects.SegFormer.modeling.errors import InputError

SCORES = ("mIoU", "top1")  # in percent, what an evaluation is judged by
SMOOTHED_OVER = 0.06  # of the iterations of the longest training

Series = tuple[np.ndarray, np.ndarray]  # iterations and values


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


def last_iteration(metrics: dict[str, Series]) -> int:
    return max(int(iterations.max()) for iterations, _ in metrics.values())


def best(series: Series) -> tuple[float, int]:
    """The highest value and the iteration of it, the first of equals."""
    iterations, values = series
    place = int(values.argmax())
    return float(values[place]), int(iterations[place])


def summary(metrics: dict[str, Series]) -> str:
    """As "1500 iterations, last loss 0.4431, best mIoU 34.10 at iteration 1500"."""
    parts = [f"{last_iteration(metrics)} iterations"]
    if "total_loss" in metrics:
        parts.append(f"last loss {metrics['total_loss'][1][-1]:.4f}")
    for score in SCORES:
        if score in metrics:
            value, iteration = best(metrics[score])
            parts.append(f"best {score} {value:.2f} at iteration {iteration}")
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
