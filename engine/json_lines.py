"""What may be taken from JSON that a kill cut off or somebody else wrote."""

import json
from numbers import Real

LINE_BYTES = 2**20  # of metrics.json; ADE20K's scores of all classes are 20 kB


def is_number(value, kind=Real) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, kind) and not isinstance(value, bool) and -1e300 < value < 1e300


def is_iteration(value) -> bool:
    return is_number(value, int) and 0 <= value < 10**12


def parse_line(line: bytes) -> dict | None:
    """A line of metrics.json, an object with an "iteration"; None for another."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    iteration = record.get("iteration") if isinstance(record, dict) else None
    return record if is_iteration(iteration) else None
