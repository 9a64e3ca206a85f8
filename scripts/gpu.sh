#!/usr/bin/env bash
# Checks and measures everything on a GPU, in at most eight minutes, without a network: see scripts/gpu.py.
#
#   ./scripts/gpu.sh OUT [--parts "['tests','agreement']"] [--device cuda:0] [--batch_size 16] …
#
# OUT gets gpu.md, the table for docs/benchmark.md, results.json and log.txt. A call that was interrupted goes on where it
# stopped when it is made again with the same OUT. Beforehand, where there is a network:
#   python -m scripts.gpu pack --dataset_dir DIR      makes .gpu/ with the data set and wheels; send it along
# DATA: folder of the data set, if not that of .gpu/. PYTHON: an interpreter that has PyTorch with CUDA.
set -euo pipefail
out="$(realpath -m "${1:?usage: ./scripts/gpu.sh OUT [options]}")"
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
