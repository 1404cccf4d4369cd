#!/usr/bin/env bash
# Install and run the tests. Usage: bash launch/test.sh [--torch] [--tpu] [PYTEST ARGUMENTS]
# --torch installs PyTorch and transformers too and runs the tests against them, which are skipped otherwise.
# --tpu installs the compiler for TPUs too, where there is one for this machine, and compiles for topologies of theirs.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=(test)
tpu=
while true; do
  case ${1:-} in
    --torch)
      extras+=(peers)
      # With this set, a test that finds no PyTorch or transformers fails where it would be skipped.
      export JEPA_JAX_TEST_PEERS=1 ;;
    --tpu) tpu=yes ;;
    *) break ;;
  esac
  shift
done
bash launch/setup.sh "${extras[@]}"
[ -z "$tpu" ] || bash launch/setup.sh tpu || echo "libtpu could not be installed: nothing is compiled for TPUs" >&2
exec .venv/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations 10 -rs tests "$@"
