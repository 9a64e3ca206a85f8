#!/usr/bin/env bash
# The whole method on a generated phantom, without a download: segments new scans from one labelled scan with the
# shipped weights, then trains for a moment. Prints the Dice and where the pictures lie.
#
#   ./scripts/demo.sh [FOLDER]      FOLDER: where everything goes, demo/ by default
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh ""
out="${1:-demo}"
run() { "$PYTHON" -W ignore -m monai.bundle run "$@" 2>"$out/log.txt" >>"$out/log.txt" || { tail -n 1 "$out/log.txt" >&2; exit 1; }; }
mkdir -p "$out"

echo "1/4  making 8 abdominal MR phantoms, 3 of them new scans to segment"
"$PYTHON" -m scripts.phantom --dst "$out/data" --num_subjects 5 --num_test 3 --modality mr > /dev/null

support="[{'image': 'imagesTr/phantom_01.nii.gz', 'label': 'labelsTr/phantom_01.nii.gz'}]"
queries="[{'image': '$out/data/imagesTs/phantom_0' + str(n) + '.nii.gz', 'label': '$out/data/labelsTs/phantom_0' + str(n) + '.nii.gz'} for n in (6, 7, 8)]"
segment() {  # weights, folder
    run --config_file "['configs/inference.json','configs/evaluate.json']" --dataset_dir "$out/data" \
        --output_dir "$2" --ckpt_path "$1" --protocol volume --support "$support" --datalist "\$$queries"
    "$PYTHON" -c "import json; s = json.load(open('$2/summary.json')); print('     Dice', s['mean'], s['per_label'])"
}
echo "2/4  segmenting the new scans from one labelled scan with models/model.pt, whole volumes, all organs at once"
segment models/model.pt "$out/segmented"

echo "3/4  training for a moment on the phantoms, without their labels"
run --config_file configs/train.json --dataset_dir "$out/data" --output_dir "$out/training" --ckpt_dir "$out/training/models" \
    --cache_dir "$out/training/cache" --max_epochs 2 --epoch_length 80 --val_length 16 --learning_rate 0.0002

echo "4/4  segmenting again with the weights of that training"
segment "$out/training/models/model_final.pt" "$out/segmented_after_training"

echo "pictures:"
find "$out" -name "*_overlay.png" | sort | sed 's/^/     /'
