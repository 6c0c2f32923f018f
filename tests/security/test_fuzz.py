"""Every kind of file that is read, damaged at random: it is right, or refused in one line.

python -m pytest tests/security/test_fuzz.py --count 1000
"""

import pytest
from fuzzing import KINDS, fuzz

from conftest import run_tool
from contained import MEMORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    made = run_tool("tests/security/fuzzing.py", str(folder))
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(originals, tmp_path, kind, request):
    count = request.config.getoption("--count")
    report = fuzz(kind, count, originals, tmp_path / "damaged")
    print(
        f"{kind}: {report.right} right, {report.refused} refused, {len(report.failures)} neither; "
        f"{report.seconds:.2f} s and {report.peak / 2**20:.0f} MiB at most"
    )
    told = "\n".join(f"seed {seed}: {text}" for seed, text in report.failures.items())
    assert not report.failures, f"python tests/security/fuzzing.py '{kind}' SEED shows one:\n{told}"
    assert report.right + report.refused == count
    assert report.refused  # or nothing was damaged
    assert report.peak < MEMORY
