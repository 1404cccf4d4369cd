#!/usr/bin/env bash
# Install and run the tests. Usage: bash launch/test.sh [--torch] [PYTEST ARGUMENTS]
# --torch installs PyTorch and transformers too and runs the tests against them, which are skipped otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=(test)
if [ "${1:-}" = --torch ]; then
  shift
  extras+=(peers)
  # With this set, a test that finds no PyTorch or transformers fails where it would be skipped.
  export JEPA_JAX_TEST_PEERS=1
fi
bash launch/setup.sh "${extras[@]}"
exec .venv/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations 10 -rs tests "$@"
