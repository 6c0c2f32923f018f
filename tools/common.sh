# shellcheck shell=bash
# Shared by the scripts of this folder, which source it: where the repository is, --help, how to end
# with an error, and which Python runs the project.

root=$(realpath -s "$(dirname "${BASH_SOURCE[0]}")/..")

die() {
    echo "$(basename "$0" .sh): $*" >&2
    exit 2
}

# Prints the comment at the head of the script, where one of the arguments asks for help.
for argument in "$@"; do
    if [[ $argument == --help || $argument == -h ]]; then
        sed -n '2,${/^#/!q; s/^# \{0,1\}//p}' "$0"
        exit
    fi
done

# Sets `python` to the active Python when it can run the project, and runs the one in this folder,
# else to that of .venv.
find_python() {
    local finds='import os, sys
from importlib.util import find_spec as f
sys.exit(not (f("oneflow") and f("libai") and
    os.path.samefile(list(f("projects.SegFormer").submodule_search_locations)[0], sys.argv[1])))'
    for python in python python3 "$root/.venv/bin/python"; do
        if "$python" -c "$finds" "$root" >/dev/null 2>&1; then return; fi
    done
    die "neither the active Python nor .venv has OneFlow, LiBai and the project in $root:" \
        "run bash $root/tools/setup.sh"
}

# In a LiBai checkout this folder is importable from the checkout's root, installed or not.
if [[ $root == */projects/SegFormer ]]; then
    export PYTHONPATH=${root%/projects/SegFormer}${PYTHONPATH:+:$PYTHONPATH}
fi
