#!/usr/bin/env bash
# Install and run the tests. Usage: bash launch/test.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh test
exec .venv/bin/python -m pytest -n 2 --dist loadscope --durations 10 tests "$@"
