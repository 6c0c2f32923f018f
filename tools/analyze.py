"""Trainings as a page to read: curves, classes, confusion matrix, pictures, settings.

    python tools/analyze.py output/segformer_city
    python tools/analyze.py output/segformer_city output/other --output compare.html
    python tools/analyze.py output/segformer_city output/reference/metrics.json --output curves.png

Each training is named by its folder, or by its metrics.json, which this project's trainer and
tools/train_transformers.py write. One that still runs can be looked at. A training alone gets its
report.html anew, several are compared; as .png, .svg or .pdf only the curves are drawn.
"""

import argparse
from pathlib import Path

from projects.SegFormer.engine import command_line
from projects.SegFormer.engine.metrics import metrics_file, read_metrics, run_names, summary
from projects.SegFormer.evaluation.report.comparison import comparison_page
from projects.SegFormer.evaluation.report.curves import draw
from projects.SegFormer.evaluation.report.page import REPORT, page
from projects.SegFormer.evaluation.report.run import read_run
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import write_whole


def main(arguments: list[str]) -> None:
    args = _parser().parse_args(arguments)
    files = [metrics_file(Path(run)) for run in args.runs]
    if not args.output and len(files) > 1:
        raise InputError("several trainings are compared in a file of their own: give --output")
    output = Path(args.output or files[0].parent / REPORT)
    if output.is_dir() or not output.suffix:
        raise InputError(f"cannot write {output}: expected a file .html, .png, .svg or .pdf")
    runs = {name: read_metrics(file) for name, file in zip(run_names(files), files)}
    for name, metrics in runs.items():
        print(f"{name}: {summary(metrics)}")
    if output.suffix != ".html":
        try:
            draw(runs).savefig(output, dpi=150)
        except (OSError, ValueError) as error:  # ValueError: a suffix that is no format
            raise InputError(f"cannot write {output}: {error}; or name a .html file") from error
        print(f"Curves written to {output}")
        return
    read = [read_run(name, file, runs[name]) for name, file in zip(runs, files)]
    write_whole(output, (page(*read) if len(read) == 1 else comparison_page(read)).encode())
    print(f"Report written to {output}")


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser(__doc__)
    parser.add_argument("runs", nargs="+", help="folders of trainings, or metrics.json files")
    parser.add_argument("--output", help="file to write: .html, .png, .svg or .pdf")
    return parser


if __name__ == "__main__":
    command_line.run(main)
