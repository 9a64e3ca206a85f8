#!/usr/bin/env bash
# Runs the tests; arguments go to pytest: ./scripts/test.sh tests/data -k protocol
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh test
exec "$PYTHON" -m pytest "$@"
