#!/usr/bin/env bash
# Measure whether the world model of the table-top learns, beside its controls: an encoder that was pretrained, the same
# one newly initialised, and raw patches; a predictor on each; errors on held-out episodes under full nuisance. One seed
# per call, about two hours on one CPU core. Run it again after an interruption: it continues.
# With "gpu": frames of 128 pixels, 10,000 episodes, larger networks that learn longer; made for one GPU and 16 cores.
# Usage: bash launch/robot_evidence.sh [WORKDIR] [SEED] [gpu]
set -euo pipefail
cd "$(dirname "$0")/.."
workdir=${1:-runs/evidence} seed=${2:-0}
case ${3:-cpu} in
  cpu) size=64 episodes=3000 encoder=tabletop world_model=demo ;;
  gpu) size=128 episodes=10000 encoder=tabletop_gpu world_model=demo_gpu ;;
  *) echo "the third argument is gpu or nothing, not $3" >&2; exit 2 ;;
esac
bash launch/setup.sh

run() { .venv/bin/python -m "jepa_jax.$1" "${@:2}"; }
run sim.collect --output "$workdir/shards/tabletop" --episodes "$episodes" --size "$size"
run sim.collect --output "$workdir/shards/heldout" --episodes 200 --split test --size "$size"
here=$workdir/seed$seed
run train --config="configs/pretrain.py:$encoder" --workdir="$here/encoder" --config.seed="$seed" \
  --config.data.root="$workdir/shards" --config.data.groups.video.paths="('tabletop',)"
[[ -e $here/patches ]] || run evaluate controls --model "$here/encoder" --output "$here" --seed "$seed"
for latents in encoder random patches; do
  run prepare features "$workdir/shards/tabletop" --model "$here/$latents" --size "$size" --output "$here/features-$latents"
  run train --config="configs/world_model.py:$world_model" --workdir="$here/world_model-$latents" --config.seed="$seed" \
    --config.encoder="$here/$latents" --config.data.paths="('$here/features-$latents',)"
  run evaluate rollout "$workdir/shards/heldout" --model "$here/world_model-$latents" --output "$here/report-$latents" --seed "$seed" \
    --decode --extra box_position --extra cup_position --fit "$here/features-$latents" --fit-samples 24000
done
