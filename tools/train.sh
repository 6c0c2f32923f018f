#!/usr/bin/env bash
# Trains or evaluates on GPUS processes, one a GPU (or a share of the CPU cores):
#   bash tools/train.sh CONFIG GPUS [--eval-only --resume --fast-dev-run ... key=value ...]
#   bash tools/train.sh tools/train_net.py CONFIG GPUS ...      (the form of LiBai's own script)
# Several machines: the same command on each with NODE (how many), NODE_RANK, ADDR and PORT set, and
# a secret of their own in SEGFORMER_TOKEN. NODE_WAIT is how many seconds they wait for each other.
# What may follow GPUS: python tools/train_net.py --help.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

script=$root/tools/train_net.py
if [[ ${1:-} == *.py && ${2:-} =~ \.(py|yaml|yml)$ ]]; then
    script=$1
    shift
fi
if [[ $# -lt 2 || ! $2 =~ ^[1-9][0-9]*$ ]]; then
    die "usage: bash tools/train.sh [TRAIN_SCRIPT] CONFIG GPUS [arguments of train_net.py];" \
        "CONFIG is a .py file, or the config.yaml of a training, GPUS the number of processes on this machine"
fi
config=$1 gpus=$2
shift 2
for file in "$script" "$config"; do
    [[ -f $file ]] || die "no such file: $file (seen from $PWD)"
done

for name in NODE NODE_RANK PORT NODE_WAIT; do
    [[ ${!name:-0} =~ ^(0|[1-9][0-9]{0,5})$ ]] || die "$name=${!name} is no number"
done
nodes=${NODE:-1}
((nodes >= 1)) || die "NODE=0: it is the number of machines"
[[ $nodes == 1 || ${ADDR:-} ]] ||
    die "NODE=$nodes needs ADDR, the address of the machine whose NODE_RANK is 0"
((${NODE_RANK:-0} < nodes)) ||
    die "NODE_RANK=$NODE_RANK of NODE=$nodes machines: expected 0 to $((nodes - 1))"
find_python
if [[ -z ${OMP_NUM_THREADS:-} ]]; then
    cores=$(nproc)
    export OMP_NUM_THREADS=$((cores > gpus ? cores / gpus : 1))
fi
train=("$python" -u "$script" --config-file "$config" "$@")

# One process needs no launcher: its exit code and its error are then the training's own.
if ((nodes * gpus == 1)); then
    unset MASTER_ADDR MASTER_PORT WORLD_SIZE RANK LOCAL_RANK
    exec "${train[@]}"
fi

# Several machines need a port that all know: LiBai's, unless PORT names one. One machine takes any.
port=${PORT:-}
if ((nodes > 1)); then port=${PORT:-12345}; fi

# What all ranks would fail on is said once, before any starts.
if [[ $script -ef "$root/tools/train_net.py" ]]; then
    "$python" "$root/tools/check_ranks.py" $((nodes * gpus)) --config-file "$config" "$@"
fi
exec "$python" "$root/tools/launch.py" --ranks "$gpus" --nodes "$nodes" \
    --node-rank "${NODE_RANK:-0}" --addr "${ADDR:-127.0.0.1}" ${port:+--port "$port"} \
    ${NODE_WAIT:+--wait "$NODE_WAIT"} "${train[@]}"
