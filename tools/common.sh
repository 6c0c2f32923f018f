# shellcheck shell=bash
# Shared by the scripts of this folder, which source it: where the repository is, how to end with an
# error, and which Python runs the project.

root=$(realpath -s "$(dirname "${BASH_SOURCE[0]}")/..")

die() {
    echo "$(basename "$0" .sh): $*" >&2
    exit 2
}

# Sets `python` to the active Python when it can run the project, else to that of .venv.
find_python() {
    local finds='import sys; from importlib.util import find_spec as f
sys.exit(not all(map(f, ["oneflow", "libai", "projects.SegFormer"])))'
    for python in python python3 "$root/.venv/bin/python"; do
        if "$python" -c "$finds" >/dev/null 2>&1; then return; fi
    done
    die "neither the active Python nor .venv has OneFlow, LiBai and this project:" \
        "run bash $root/tools/setup.sh"
}

# In a LiBai checkout this folder is importable from the checkout's root, installed or not.
if [[ $root == */projects/SegFormer ]]; then
    export PYTHONPATH=${root%/projects/SegFormer}${PYTHONPATH:+:$PYTHONPATH}
fi
