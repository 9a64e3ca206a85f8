#!/usr/bin/env bash
# Runs the tests at one end of the dependency ranges of pyproject.toml, in an environment of its own.
#
#   ./scripts/test_versions.sh lower       oldest versions that the ranges allow, on Python 3.10
#   ./scripts/test_versions.sh upper       newest ones that can be had, on Python 3.12
#   ./scripts/test_versions.sh both        one after the other; further arguments go to pytest
#
# VERSIONS_DIR: where the environments lie (.versions). PYTHON: runs uv, which solves for the oldest versions, finds
# the Python of each end or downloads it. The first run of each end downloads PyTorch, up to some GB.
set -euo pipefail
if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ends="${1:-both}"
[ $# -eq 0 ] || shift
case "$ends" in
    lower | upper) ;;
    both) ends="lower upper" ;;
    *) echo "error: give lower, upper or both, got $ends; see scripts/test_versions.sh --help" >&2; exit 2 ;;
esac
root="${VERSIONS_DIR:-.versions}"
uv="$root/uv/bin/uv"
if [ ! -x "$uv" ]; then
    "${PYTHON:-python3}" -m venv "$root/uv"
    "$root/uv/bin/python" -m pip install --quiet "uv>=0.5"
fi
for end in $ends; do
    if [ "$end" = lower ]; then version=3.10 resolution=lowest-direct; else version=3.12 resolution=highest; fi
    python="$root/$end/bin/python"
    [ -x "$python" ] || "$uv" venv --quiet --python "$version" "$root/$end"
    "$uv" pip install --quiet --python "$python" --resolution "$resolution" --upgrade --editable ".[test]"
    echo "== $end end: $("$uv" pip list --quiet --python "$python" --format freeze |
        grep -iE '^(torch|monai|numpy|nibabel|scikit-image|scipy|pytorch-ignite|fire|tensorboard|tqdm|matplotlib|hypothesis|pytest)==' |
        tr '\n' ' ') on $("$python" --version)"
    CUDA_VISIBLE_DEVICES='' "$python" -m pytest -q -m "not slow" "$@"
done
