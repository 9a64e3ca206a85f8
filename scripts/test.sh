#!/usr/bin/env bash
# Runs the tests; arguments go to pytest: ./scripts/test.sh tests/data -k protocol
# Slow ones (servers, environments of their own) are left out: ./scripts/test.sh -m slow runs them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh test
exec "$PYTHON" -m pytest -m "not slow" "$@"
