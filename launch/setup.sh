#!/usr/bin/env bash
# Make .venv and install the package into it; does nothing when that was done before.
# Usage: bash launch/setup.sh [EXTRA ...]     for example: bash launch/setup.sh test
# PYTHON chooses the interpreter (3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11" >&2
  exit 1
}
if [ ! -x .venv/bin/python ]; then
  # Some distributions ship Python without the venv module's pip.
  "$python" -m venv .venv || { rm -rf .venv; "$python" -m pip install --user virtualenv && "$python" -m virtualenv .venv; }
fi

extras=$(IFS=,; echo "$*")
wanted="$(cat requirements.txt setup.py) [$extras]"
stamp=".venv/installed-${extras//,/-}"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "installing into .venv ..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
  echo "$wanted" > "$stamp"
fi
