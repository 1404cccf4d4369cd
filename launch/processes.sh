#!/usr/bin/env bash
# Train the same small model on 1, 2 and 4 processes, four devices in all, and compare the losses, step by step.
# Usage: bash launch/processes.sh [WORKDIR] [STEPS]
# PYTHON chooses the interpreter; by default .venv is made and used.
set -euo pipefail
cd "$(dirname "$0")/.."
workdir=${1:-runs/processes} steps=${2:-50}
[ -n "${PYTHON:-}" ] || bash launch/setup.sh
export PYTHON=${PYTHON:-.venv/bin/python}

# Data are made here: a few episodes of the simulated table-top.
[ -e "$workdir/shards" ] || "$PYTHON" -m jepa_jax.sim.collect --output "$workdir/shards" --episodes 8
runs=()
for processes in 1 2 4; do
  bash launch/local.sh --devices $((4 / processes)) "$processes" --config=configs/pretrain.py:tabletop \
    --workdir="$workdir/$processes" --config.data.groups.video.paths="('$workdir/shards',)" \
    --config.data.groups.video.batch_size=8 --config.data.workers=0 --config.data.threads=0 --config.model.predictor.width=48 \
    --config.model.predictor.depth=1 --config.mesh.fsdp=2 --config.optim.total_steps="$steps" --config.optim.warmup_steps=5 \
    --config.log.every_steps=1 --config.checkpoint.every_steps=1000
  runs+=("$processes=$workdir/$processes")
done
"$PYTHON" -m jepa_jax.bench.curves "${runs[@]}"
