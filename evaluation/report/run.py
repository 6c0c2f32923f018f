"""What an output folder says of a training."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from projects.SegFormer.engine.json_lines import is_number
from projects.SegFormer.engine.metrics import SCORES, Series, last_iteration, read_metrics
from projects.SegFormer.evaluation.report.record import REMEDY, Evaluated, read_record
from projects.SegFormer.modeling.files import read_json

Kind = TypeVar("Kind", list, dict)

TRAINING = "report/training.json"  # see engine.report


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

    def colours(self) -> dict[str, tuple[int, int, int]]:
        """RGB of each class."""
        return dict(zip(self.evaluated.classes, self.evaluated.palette)) if self.evaluated else {}

    def changed(self) -> list[list[str]]:
        """Setting, value in the config and value here, of what was set otherwise."""
        rows = self.known("changed", list)
        return [list(map(str, row)) for row in rows if isinstance(row, list) and len(row) == 3]

    def known(self, name: str, kind: type[Kind]) -> Kind:
        """A value of `training`, empty where it is of another kind."""
        value = self.training.get(name)
        return value if isinstance(value, kind) else kind()

    def length(self) -> int:
        """The last iteration."""
        return last_iteration(self.metrics) if self.metrics else 0


def read_run(name: str, file: Path, metrics: dict[str, Series] | None = None) -> Run:
    """The training of a metrics.json, which need not be there.

    Raises InputError for a file beside it that is damaged.
    """
    folder = file.parent
    if metrics is None:
        metrics = read_metrics(file) if file.is_file() and file.stat().st_size else {}
    evaluation, training = (
        read_json(path, remedy=REMEDY) if path.is_file() else {}
        for path in (folder / "evaluation.json", folder / TRAINING)
    )
    return Run(name, metrics, evaluation, read_record(folder), training)
