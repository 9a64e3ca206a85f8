#!/usr/bin/env bash
# Creates or reuses .venv with the dependencies of pyproject.toml; sourced by demo.sh and test.sh.
#
#   . scripts/setup.sh [EXTRA]      EXTRA: an optional group of pyproject.toml, such as test
#
# Leaves the interpreter in $PYTHON. With PYTHON set beforehand, that environment is used as it is and nothing is
# installed: the way to use an environment of one's own, for example with CUDA. TORCH names another PyTorch to install.

if [ -n "${PYTHON:-}" ]; then
    "$PYTHON" -c 'import monai, torch' || { echo "error: $PYTHON lacks monai or torch; install pyproject.toml's dependencies" >&2; exit 1; }
else
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    extra="${1:-}"
    torch="${TORCH:-torch==2.13.0}"
    PYTHON="$root/.venv/bin/python"
    stamp="$root/.venv/installed${extra:+-$extra}"
    if [ ! -x "$PYTHON" ]; then
        base="$(command -v python3.11 || command -v python3.12 || command -v python3.10 || command -v python3 || true)"
        [ -n "$base" ] || { echo "error: no python3 found; install Python 3.10 or newer" >&2; exit 1; }
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $base is older than Python 3.10" >&2; exit 1; }
        "$base" -m venv "$root/.venv" || { rm -rf "$root/.venv"; echo "error: cannot make $root/.venv; install Python's venv module" >&2; exit 1; }
    fi
    state="$("$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest(), sys.argv[2])' "$root/pyproject.toml" "$torch")"
    if [ "$(cat "$stamp" 2>/dev/null || true)" != "$state" ]; then
        echo "installing the dependencies into $root/.venv" >&2
        "$PYTHON" -m pip install --quiet "$torch" || exit 1  # first, so that no other release is taken
        "$PYTHON" -m pip install --quiet --editable "$root${extra:+[$extra]}" || exit 1
        echo "$state" > "$stamp"
    fi
fi
export PYTHON
