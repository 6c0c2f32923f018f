#!/usr/bin/env bash
# Makes .venv from the versions that pyproject.toml and constraints.txt pin, or repairs it:
#   bash tools/setup.sh [--test]
# --test adds what the tests need; once there, it stays. PYTHON names the CPython 3.10 to build on.
# In a checkout of LiBai, as projects/SegFormer, .venv uses that LiBai and not the package index's.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

venv=$root/.venv
site=$venv/lib/python3.10/site-packages
checkout=${root%/projects/SegFormer}
[[ $checkout != "$root" && -f $checkout/libai/engine/default.py ]] || checkout=
stamp=$venv/complete # written last: what .venv was made from, then the packages in it
log=$root/setup.log

# Runs a command, shows the stages of its work, keeps the rest in the log; when it fails, says $1 and
# the last that the command said.
run() {
    local failure=$1
    shift
    "$@" 2>&1 | tee -a "$log" | sed -un '/^\(Collecting\|Building wheel for\|Installing\) /p' || {
        tail -n 5 "$log" >&2
        die "$failure; all of it is in $log"
    }
}

pythons() {
    if [[ ${PYTHON:-} ]]; then
        echo "$PYTHON"
    else
        command -v python3.10 || true
        compgen -G "$(pyenv root 2>/dev/null)/versions/3.10.*/bin/python3.10" | sort -rV
    fi
}

# Says why a Python cannot be used, or nothing.
objection() {
    "$1" - 2>/dev/null <<'PY' || echo "does not run"
import importlib.util, os, platform, sys, sysconfig

name, version = platform.python_implementation(), platform.python_version()
if name != "CPython" or sys.version_info[:2] != (3, 10):
    print("is", name, version)
elif not importlib.util.find_spec("ensurepip"):
    print("lacks ensurepip (apt-get install python3.10-venv)")
elif not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print("lacks Python.h (apt-get install python3.10-dev)")
PY
}

make_venv() {
    local python why found=
    while read -r python; do
        why=$(objection "$python")
        if [[ -z $why ]]; then
            echo "setup: making .venv with $python"
            run "cannot make .venv" "$python" -m venv --clear "$venv"
            return
        fi
        found+="$python $why; "
    done < <(pythons)
    if [[ -z ${PYTHON:-} ]] && command -v uv >/dev/null; then
        echo "setup: making .venv with uv's CPython 3.10"
        rm -rf "$venv"
        run "uv has no CPython 3.10 and cannot fetch it, install one" \
            uv venv --seed --python cpython-3.10 "$venv"
    else
        die "no usable CPython 3.10${found:+ (${found%; })}: install one with its venv and dev" \
            "packages, or with pyenv, or install uv, which fetches one; PYTHON=... names one"
    fi
}

pip_install() {
    run "pip cannot install $*" "$venv/bin/python" -I -m pip --disable-pip-version-check install \
        --no-input --no-build-isolation --constraint "$root/constraints.txt" "$@"
}

installed() { (cd "$site" && printf '%s\n' *.dist-info); }

# Prints the installed packages that have lost files.
damaged() {
    "$venv/bin/python" -I - "$site" <<'PY'
import csv, os, sys
from pathlib import Path


def intact(info):
    try:
        with open(info / "RECORD", newline="") as record:
            files = [(path, int(size)) for path, _, size in csv.reader(record) if size]
        return all(os.stat(info.parent / path).st_size == size for path, size in files)
    except (OSError, ValueError):
        return False


for info in Path(sys.argv[1]).glob("*.dist-info"):
    if not intact(info):
        print(info.name)
PY
}

is_complete() {
    local lost
    [[ -f $stamp && $(head -n1 "$stamp") == "$recipe" ]] &&
        ! grep -qFxvf <(installed) <(tail -n+2 "$stamp") &&
        lost=$(damaged) && [[ -z $lost ]]
}

case "$*" in
    "") extras= ;;
    --test) extras="[test]" ;;
    *) die "usage: bash tools/setup.sh [--test]" ;;
esac
exec 9<"$root/constraints.txt"
if ! flock --nonblock 9; then
    echo "setup: waiting for another setup of this repository"
    flock 9
fi
if [[ -f $stamp && $(head -n1 "$stamp") == *"[test]" ]]; then extras="[test]"; fi
recipe="$(cat "$root"/{pyproject.toml,constraints.txt} | sha256sum | cut -c1-16) $root$extras"
recipe=${checkout:+$checkout }$recipe
if is_complete; then
    echo "setup: .venv is complete"
    exit
fi

: >"$log"
[[ $(uname -sm) == "Linux x86_64" ]] ||
    die "OneFlow 0.9.0 is built for Linux x86_64 only; this is $(uname -sm)"
command -v "${CXX:-c++}" >/dev/null ||
    die "no C++ compiler (${CXX:-c++}), which LiBai's setup needs: apt-get install g++"
if ! "$venv/bin/python3.10" -c "" 2>/dev/null; then make_venv; fi
rm -f "$stamp"
rm -rf "$site"/~* # what an interrupted pip had moved aside
for package in $(damaged); do
    echo "setup: repairing ${package%.dist-info}"
    rm -r "${site:?}/$package"
done
echo "setup: installing what is missing (everything: 3 GB of download, 10 GB of disk); details in setup.log"
if ! "$venv/bin/python" -c "import pip" 2>/dev/null; then
    run "cannot repair pip" "$venv/bin/python" -m ensurepip
fi
pip_install pip setuptools wheel pybind11
pip_install --editable "$root$extras"
if [[ $checkout ]]; then
    # What it needs is what the package index's needs, which brought it, and would hide it.
    run "cannot remove the package index's LiBai" "$venv/bin/python" -I -m pip uninstall --yes libai
    echo "$checkout" >"$site/libai_checkout.pth"
fi
cd /
"$venv/bin/python" - "$(git -C "$checkout" describe --tags --always 2>/dev/null || true)" \
    2>>"$log" <<'PY' || die "the installed packages do not import; see $log"
import os, sys
import libai, oneflow, projects.SegFormer

if hasattr(libai, "__version__"):
    which = f"libai {libai.__version__}"
else:  # a checkout
    which = f"LiBai of {os.path.dirname(libai.__path__[0])} ({sys.argv[1] or 'without git'})"
print(f"setup: oneflow {oneflow.__version__} and {which} are in .venv")
PY
{ echo "$recipe"; installed; } >"$stamp.new"
mv "$stamp.new" "$stamp"
