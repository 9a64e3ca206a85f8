#!/usr/bin/env bash
# Serves a folder of scans, or a DICOMweb archive, with MONAI Label: label one scan, and every other scan segments itself.
# usage: scripts/monailabel.sh STUDIES [--labels liver,spleen] [--weights FILE] [--host 127.0.0.1] [--port 8000] [more for MONAI Label]
# STUDIES: a folder, or an address such as http://127.0.0.1:8042/dicom-web
# MONAILABEL_APP: folder of the app with the copy of this bundle that gets trained (app inside the environment)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ $# -lt 1 ] || [ "$1" = "--help" ] || [ "$1" = "-h" ]; then
    sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"
    exit $([ $# -lt 1 ] && echo 2 || echo 0)
fi
case "$1" in
    http://* | https://*) studies="$1" ;;
    *)
        [ -d "$1" ] || { echo "error: $1: no such folder of scans; see scripts/monailabel.sh --help" >&2; exit 2; }
        studies="$(cd "$1" && pwd)" ;;
esac
shift
host=127.0.0.1; port=8000; export_args=(); more=()
need() { [ $# -ge 2 ] || { echo "error: $1: no value; see scripts/monailabel.sh --help" >&2; exit 2; }; }
while [ $# -gt 0 ]; do
    case "$1" in
        --host) need "$@"; host="$2"; shift 2 ;;
        --port) need "$@"; port="$2"; shift 2 ;;
        --labels) need "$@"; export_args+=(--labels "$2"); shift 2 ;;
        --weights)
            need "$@"
            [ -f "$2" ] || { echo "error: $2: no such weights" >&2; exit 2; }
            export_args+=(--weights "$(cd "$(dirname "$2")" && pwd)/$(basename "$2")"); shift 2 ;;
        *) more+=("$1"); shift ;;
    esac
done
python="$("$root/scripts/monailabel_env.sh")"
env="$(dirname "$(dirname "$python")")"
app="${MONAILABEL_APP:-$env/app}"
mkdir -p "$app"
cp -R "$env/apps/monaibundle/." "$app/"
(cd "$root" && "$python" -m scripts.export monailabel "$app" --studies "$studies" ${export_args[@]+"${export_args[@]}"})
export PATH="$env/bin:$PATH"  # where MONAI Label looks for the tool that writes DICOM segmentations
exec "$python" -m monailabel.main start_server --app "$app" --studies "$studies" \
    --conf models fewshot_alpnet_segmentation --conf zoo_source local --conf sam2 false \
    --host "$host" --port "$port" ${more[@]+"${more[@]}"}
