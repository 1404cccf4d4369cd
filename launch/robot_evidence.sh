#!/usr/bin/env bash
# Measure whether the world model of the table-top learns, beside its controls: an encoder that was pretrained, the same
# one newly initialised, and raw patches; a predictor on each; errors on held-out episodes under full nuisance. One seed
# per call, about two hours on one CPU core. Run it again after an interruption: it continues.
# Usage: bash launch/robot_evidence.sh [WORKDIR] [SEED]
set -euo pipefail
cd "$(dirname "$0")/.."
workdir=${1:-runs/evidence} seed=${2:-0}
bash launch/setup.sh

run() { .venv/bin/python -m "jepa_jax.$1" "${@:2}"; }
run sim.collect --output "$workdir/shards/tabletop" --episodes 3000
run sim.collect --output "$workdir/shards/heldout" --episodes 200 --split test
here=$workdir/seed$seed
run train --config=configs/pretrain.py:tabletop --workdir="$here/encoder" --config.seed="$seed" \
  --config.data.root="$workdir/shards" --config.data.groups.video.paths="('tabletop',)"
[[ -e $here/patches ]] || run evaluate controls --model "$here/encoder" --output "$here" --seed "$seed"
for encoder in encoder random patches; do
  run prepare features "$workdir/shards/tabletop" --model "$here/$encoder" --size 64 --output "$here/features-$encoder"
  run train --config=configs/world_model.py:demo --workdir="$here/world_model-$encoder" --config.seed="$seed" \
    --config.encoder="$here/$encoder" --config.data.paths="('$here/features-$encoder',)"
  run evaluate rollout "$workdir/shards/heldout" --model "$here/world_model-$encoder" --output "$here/report-$encoder" --seed "$seed" \
    --decode --extra box_position --extra cup_position --fit "$here/features-$encoder" --fit-samples 24000
done
