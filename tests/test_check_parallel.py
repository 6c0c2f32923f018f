"""tools/check_parallel.py, and by it: two processes learn what one does, however they split it."""

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import run_tool
from projects.SegFormer.tools import check_parallel

SPLITS = [[1, 1, 1], [2, 1, 1], [1, 2, 1], [1, 1, 2]]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    table = tmp_path / "table.json"
    process = run_tool("tools/check_parallel.py", "--short", "--json", str(table), timeout=1500)
    assert process.returncode == 0, process.stdout + process.stderr
    rows = json.loads(table.read_text())
    runs = [
        (task, mode) for task in ("segmentation", "classification") for mode in ("eager", "graph")
    ]
    expected = [(task, mode, split) for split in SPLITS for task, mode in runs]
    assert [(row["task"], row["mode"], row["split"]) for row in rows] == expected
    for row in rows:
        assert len(set(row["losses"])) == 5 and all(1 < loss < 9 for loss in row["losses"])
        assert max(row["losses_off"], row["weights_off"]) <= 1e-4
    # A split over ranks gives each less to hold.
    whole = {row["task"]: row["bytes"] for row in rows if row["split"] == [1, 1, 1]}
    for row in rows:
        share = row["bytes"] / whole[row["task"]]
        assert share == 1 if row["split"][1:] == [1, 1] else 0.5 < share < 0.95


def test_weights_that_are_not_a_number_are_off(tmp_path):
    run = ("segmentation", "eager")
    for split, last in (((1, 1, 1), 1.0), ((2, 1, 1), np.nan)):
        np.savez(
            check_parallel._path(tmp_path, run, split, "npz"), a=np.ones(2), b=np.array([last])
        )
        Path(check_parallel._path(tmp_path, run, split, "json")).write_text(
            json.dumps(dict(losses=[1.0], bytes=1, seconds=1.0))
        )
    assert np.isnan(check_parallel.row(str(tmp_path), run, (2, 1, 1))["weights_off"])
