#!/usr/bin/env bash
# From nothing to a trained SegFormer-B0 and pictures of what it sees, on a CPU, in minutes:
#   bash tools/quickstart.sh [FOLDER [key=value ...]]
# FOLDER (output/quickstart) gets the data, the training and the pictures; the rest are overrides of
# the training's config.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ ${1:-} != -* && ${1:-} != *=* ]] || die "usage: bash tools/quickstart.sh [FOLDER [key=value ...]]"
folder=$(realpath -m "${1:-output/quickstart}")
overrides=("${@:2}")
cd "$root"
bash tools/setup.sh
find_python
config=configs/segformer_quickstart.py

echo "== 1/4 drawing street scenes"
"$python" tools/draw_street_scenes.py "$folder/data" --height 128 --width 256 --train 200

echo "== 2/4 training SegFormer-B0"
bash tools/train.sh "$config" 1 data.root="$folder/data" train.output_dir="$folder/training" \
    "${overrides[@]}"

echo "== 3/4 drawing what it sees"
"$python" tools/predict.py --config "$config" --weights "$folder/training/model_final" \
    --output "$folder/predictions" "$folder/data/leftImg8bit/val"

echo "== 4/4 done"
"$python" - "$folder" <<'PY'
import json
import sys

folder = sys.argv[1]
with open(f"{folder}/training/evaluation.json") as file:
    print(f"mIoU on scenes it has not seen: {json.load(file)['mIoU']:.1f}%")
print(f"pictures:   {folder}/predictions/*/*_overlay.png")
print(f"checkpoint: {folder}/training/model_final")
print(f"report:     {folder}/training/report.html")
PY
