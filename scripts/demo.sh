#!/usr/bin/env bash
# The whole method on generated scans, without a download, in about two minutes on two cores: segments two new scans by
# one labelled scan with the shipped weights; then trains from ImageNet weights for a moment, without any label, and
# shows what that brings. Prints the Dice and where the pictures lie.
#
# usage: scripts/demo.sh [FOLDER]      FOLDER: where everything goes (demo); FOLDER/log.txt has all that the runs say
set -euo pipefail
case "${1:-}" in
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    -*) echo "error: $1: no such option; see scripts/demo.sh --help" >&2; exit 2 ;;
esac
[ $# -le 1 ] || { echo "error: one folder is enough, got $*; see scripts/demo.sh --help" >&2; exit 2; }
mkdir -p "${1:-$(dirname "${BASH_SOURCE[0]}")/../demo}"
out="$(cd "${1:-$(dirname "${BASH_SOURCE[0]}")/../demo}" && pwd)"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh ""
: > "$out/log.txt"
run() { "$PYTHON" -W ignore -m "$@" >>"$out/log.txt" 2>&1 || { tail -n 1 "$out/log.txt" >&2; exit 1; }; }

echo "1/5  making 6 abdominal MR scans of generated patients, 2 of them new ones to segment"
run scripts.phantom --dst "$out/data" --num_subjects 4 --num_test 2 --modality mr

scan() { echo "{'image': '$out/data/images$1.nii.gz', 'label': '$out/data/labels$1.nii.gz'}"; }
segment() {  # weights, folder
    run scripts.alpnet evaluate "$out/data" -o "$out/$2" --weights "$1" --protocol volume \
        --support "[$(scan Tr/phantom_01)]" --datalist "[$(scan Ts/phantom_05), $(scan Ts/phantom_06)]"
    "$PYTHON" -c "import json, sys; s = json.load(open(sys.argv[1])); print('     Dice', s['mean'], s['per_label'])" "$out/$2/summary.json"
}
echo "2/5  segmenting them by one labelled scan with models/model.pt, whole volumes, all organs at once"
segment models/model.pt segmented

echo "3/5  the same with weights from photographs (ImageNet), before any training on scans"
segment models/pretrained/efficientnet_lite0_imagenet.pt before_training

echo "4/5  training these for a moment on the 4 other scans, without their labels"
run scripts.alpnet train "$out/data" -o "$out/training" --epochs 1 --epoch_length 240 --val_length 8 --learning_rate 0.0003

echo "5/5  segmenting with what came out"
segment "$out/training/models/model_final.pt" after_training

echo "pictures:"
find "$out" -name "*_overlay.png" | sort | sed 's/^/     /'
