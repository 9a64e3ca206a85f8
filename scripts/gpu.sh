#!/usr/bin/env bash
# Checks and measures everything on a GPU, in at most eight minutes, without a network: see scripts/gpu.py. A call that
# was interrupted goes on where it stopped when it is made again with the same OUT.
#
# usage: ./scripts/gpu.sh OUT [options]
#
#   OUT                 folder that gets gpu.md, the table for docs/benchmark.md, results.json and log.txt
#   --parts LIST        such as "['tests','agreement']"; by default training, agreement, folds, tests, inference,
#                       processes, graphs and compiled
#   --limit_s 480       seconds of all parts together
#   --device cuda:0     where to measure
#   --weights FILE      of the inference (models/model.pt)
#   --batch_size 16     episodes a step
#   --steps 8           steps a round
#   --rounds 2          turns of the bundle and the literal loop
#   --slices 444        slices of the long scan
#   --labels 13         its labels
#   --num_folds 5       folds of the data set
#   --overrides DICT    further ids of the configs, such as "{'num_workers': 4}"
#
# DATA in the environment: folder of the data set, if not that of .gpu/. PYTHON: an interpreter that has PyTorch with CUDA.
# Beforehand, where there is a network, make .gpu/ with the data set and wheels, and send it along:
#   python -m scripts.gpu pack --dataset_dir DIR
set -euo pipefail
for word in "$@"; do
    case "$word" in -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
done
case "${1:-}" in
    "") echo "error: no folder for the results; type ./scripts/gpu.sh OUT, see ./scripts/gpu.sh --help" >&2; exit 2 ;;
    -*) echo "error: $1: the folder for the results comes first; see ./scripts/gpu.sh --help" >&2; exit 2 ;;
esac
out="$(realpath -m "$1")"
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work="${TMPDIR:-/tmp}/bundle_gpu"
mkdir -p "$work"
export PYTHON="${PYTHON:-python3}" PYTHONUNBUFFERED=1
if [ -d .gpu/wheels ]; then
    [ -d "$work/site" ] || "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" .gpu/wheels/*.whl
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
if [ -z "${DATA:-}" ]; then
    [ -f .gpu/data.tar.xz ] || { echo "error: no data set; run python -m scripts.gpu pack --dataset_dir DIR first, or set DATA" >&2; exit 1; }
    [ -d "$work/data" ] || tar -xJf .gpu/data.tar.xz -C "$work"
    DATA="$work/data"
fi
exec "$PYTHON" -W ignore -m scripts.gpu run --output_dir "$out" --dataset_dir "$DATA" --work_dir "$work" "$@"
