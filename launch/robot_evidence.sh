#!/usr/bin/env bash
# Measure whether the world model of a simulated robot learns and plans, beside its controls: an encoder that was pretrained,
# the same one newly initialised, and raw patches; a predictor and an energy on each; errors on held-out episodes and
# success in closed loop under full nuisance. One seed per call. Run it again after an interruption: it continues.
# cpu: frames of 64 pixels; more than three hours on one CPU core. fine: the same with patches of 8 pixels, which show
# fingers, and on the table-top 12,000 episodes; not timed as a whole. gpu: frames of 128 pixels, 10,000 episodes, larger networks that learn
# longer; made for one GPU and 16 cores. panda: with physics, in MuJoCo, which is installed.
# Usage: bash launch/robot_evidence.sh [WORKDIR] [SEED] [cpu|fine|gpu] [tabletop|panda]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/cores.sh
source launch/cores.sh
workdir=${1:-runs/evidence} seed=${2:-0} world=${4:-tabletop}
case ${3:-cpu}-$world in
  cpu-tabletop) size=64 episodes=3000 heldout=200 encoder=tabletop world_model=demo ;;
  fine-tabletop) size=64 episodes=12000 heldout=200 encoder=tabletop_fine world_model=demo_fine ;;
  cpu-panda) size=64 episodes=1500 heldout=100 encoder=tabletop world_model=demo ;;
  fine-panda) size=64 episodes=1500 heldout=100 encoder=tabletop_fine world_model=demo_fine ;;
  gpu-tabletop | gpu-panda) size=128 episodes=10000 heldout=200 encoder=tabletop_gpu world_model=demo_gpu ;;
  *) echo "the third argument is cpu, fine or gpu, the fourth tabletop or panda, not ${3:-cpu} $world" >&2; exit 2 ;;
esac
if [[ $world == panda ]]; then
  bash launch/setup.sh sim
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps gym-hil==0.1.14
else
  bash launch/setup.sh
fi

run() { .venv/bin/python -m "jepa_jax.$1" "${@:2}"; }
run sim.collect --world "$world" --output "$workdir/shards/$world" --episodes "$episodes" --size "$size"
run sim.collect --world "$world" --output "$workdir/shards/heldout" --episodes "$heldout" --split test --size "$size"
here=$workdir/seed$seed
run train --config="configs/pretrain.py:$encoder" --workdir="$here/encoder" --config.seed="$seed" \
  --config.data.root="$workdir/shards" --config.data.groups.video.paths="('$world',)"
[[ -e $here/patches ]] || run evaluate controls --model "$here/encoder" --output "$here" --seed "$seed"
for latents in encoder random patches; do
  features=$here/features-$latents model=$here/world_model-$latents distance=$here/distance-$latents.safetensors
  run prepare features "$workdir/shards/$world" --model "$here/$latents" --size "$size" --output "$features"
  run train --config="configs/world_model.py:$world_model" --workdir="$model" --config.seed="$seed" \
    --config.encoder="$here/$latents" --config.data.paths="('$features',)"
  [[ -e $here/report-$latents/report.json ]] || run evaluate rollout "$workdir/shards/heldout" --model "$model" --output "$here/report-$latents" \
    --seed "$seed" --decode --extra box_position --extra cup_position --fit "$features" --fit-samples 24000
  [[ -e $distance ]] || run evaluate distance "$features" --model "$model" --output "$distance"
  # Episodes of another seed than those that settings were chosen on.
  act() {
    [[ -e $here/closed_loop-$1/robot.json ]] || run evaluate robot --world "$world" --model "$model" --distance learned --distance-head "$distance" \
      --seeds 20 --output "$here/closed_loop-$1" "${@:2}"
  }
  act "$latents" --task reach,grasp-box,place-box --policy model
  # Plans with the simulator itself: what eyes and energy are worth. MuJoCo cannot be put into a compiled plan.
  [[ $world == panda ]] || act "$latents-oracle" --task reach,grasp-box --policy oracle --set samples=48 --set iterations=2
  [[ $latents != encoder ]] || act others --task reach,grasp-box,place-box --policy cloning,random,zero,expert --cloning-data "$workdir/shards/$world"
done
run evaluate compare "pretrained=$workdir/seed*/closed_loop-encoder*/robot.json" "random=$workdir/seed*/closed_loop-random*/robot.json" \
  "patches=$workdir/seed*/closed_loop-patches*/robot.json" "others=$workdir/seed*/closed_loop-others/robot.json"
