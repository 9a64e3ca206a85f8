#!/usr/bin/env bash
# Runs the tests; arguments go to pytest: ./scripts/test.sh tests/data -k protocol
# Slow ones (servers, environments of their own) are left out: ./scripts/test.sh -m slow runs them.
set -euo pipefail
if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh test
exec "$PYTHON" -m pytest -m "not slow" "$@"
