#!/usr/bin/env bash
# Builds the environment of MONAI Label once and prints its Python.
# usage: scripts/monailabel_env.sh          MONAILABEL_ENV: where it lies (.monailabel); PYTHON: which Python builds it
set -euo pipefail
case "${1:-}" in
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    ?*) echo "error: $1: there are no options; see scripts/monailabel_env.sh --help" >&2; exit 2 ;;
esac
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
env="${MONAILABEL_ENV:-$root/.monailabel}"
ready="$env/.ready-0.8.5-2"

if [ ! -f "$ready" ]; then
    echo "building MONAI Label's environment in $env (some minutes, about 4 GB)" >&2
    rm -rf "$env"
    "${PYTHON:-python3}" -m venv "$env" >&2
    # dcmqi writes DICOM segmentations to a DICOMweb archive; elsewhere MONAI Label downloads it when it starts on one
    "$env/bin/python" -m pip install --quiet "torch==2.13.0" "torchvision==0.28.0" "monailabel==0.8.5" \
        "dcmqi==1.5.7; sys_platform == 'linux' and platform_machine == 'x86_64'" \
        "pydicom<3" "dicomweb-client<0.60" "pynetdicom<3" "fire>=0.6" "matplotlib>=3.8" >&2
    # a torchvision built for CUDA cannot load its operators beside a CPU build of torch, but asks for two of them
    cat > "$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sitecustomize.py" <<'PY'
import importlib.util
import pathlib

if importlib.util.find_spec("torch") and importlib.util.find_spec("torchvision"):
    import torch

    folder = pathlib.Path(importlib.util.find_spec("torchvision").submodule_search_locations[0])
    try:
        torch.ops.load_library(str(next(folder.glob("_C*.so"))))
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PY
    "$env/bin/python" -c "import torchvision, monailabel" >&2
    "$env/bin/python" -m monailabel.main apps --download --name monaibundle --output "$env/apps" >&2
    touch "$ready"
fi
echo "$env/bin/python"
