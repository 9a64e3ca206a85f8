#!/usr/bin/env bash
# Checks style and types: ruff, black, isort and flake8 as the model zoo runs them, and mypy. Changes no file.
#
# LINT_DIR: the environment of these tools (.lint), made on the first call; it needs neither PyTorch nor MONAI.
set -euo pipefail
case "${1:-}" in
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    ?*) echo "error: $1: there are no options; see scripts/lint.sh --help" >&2; exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin="${LINT_DIR:-.lint}/bin"
if [ ! -x "$bin/mypy" ]; then
    "${PYTHON:-python3}" -m venv "${LINT_DIR:-.lint}"
    "$bin/python" -m pip install --quiet "ruff>=0.6" "black>=24" "isort>=5.13" "flake8>=7" flake8-bugbear \
        flake8-comprehensions pep8-naming "mypy>=1.11" "numpy>=1.26"
fi
code=(bundle scripts tests)
"$bin/ruff" check "${code[@]}"
"$bin/ruff" format --check "${code[@]}"
"$bin/isort" --check "${code[@]}"
"$bin/black" --check --quiet "${code[@]}"
"$bin/flake8" "${code[@]}"
"$bin/mypy"
