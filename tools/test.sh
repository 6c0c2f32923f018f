#!/usr/bin/env bash
# Checks the code with ruff and runs the tests, setting up first what they need:
#   bash tools/test.sh [--fast] [arguments of pytest]
# --fast leaves out the tests marked slow. Two processes share the tests; -n 0 runs them in one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

arguments=(-n 2 --dist worksteal)
for argument; do
    if [[ $argument == --fast ]]; then
        arguments+=(-m "not slow")
    else
        arguments+=("$argument")
    fi
done

cd "$root"
bash tools/setup.sh --test
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # a core for each of the two
# Trainings wait for the disk, above all where checkpoints are removed; memory has no such waits.
room=$(df --output=avail /dev/shm 2>/dev/null | tail -n 1 || true) # KiB
if [[ -z ${TMPDIR:-} && ${room:-0} -gt 8000000 && ! $(findmnt -no OPTIONS /dev/shm) =~ noexec ]]; then
    export TMPDIR=/dev/shm
fi
.venv/bin/python -m ruff check --quiet --output-format concise
.venv/bin/python -m ruff format --check --quiet
exec .venv/bin/python -m pytest "${arguments[@]}"
