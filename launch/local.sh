#!/usr/bin/env bash
# Train with several processes on this machine, to try out what a pod does. Any flag of jepa_jax.train may follow.
usage() {
  cat <<'TEXT'
Usage: bash launch/local.sh [--dry-run] [--accelerator cpu|gpu] [--devices N] PROCESSES FLAGS-OF-TRAIN ...

Starts PROCESSES times `python -m jepa_jax.train FLAGS ... --config.mesh.distributed=True`, with a coordinator at a free
port. Every line is shown with the number of its process. When a process fails, the others are ended and the exit
status is its own. Ctrl-C and SIGTERM let all of them save and end; a second one kills them.

  --accelerator  cpu (default), or gpu: process i gets the i-th GPU
  --devices N    pretend that each process has N CPU devices (default 1)
  --dry-run      print what would be run, and run nothing

PYTHON chooses the interpreter, by default the one of .venv if there is one. JAX_PORT fixes the port.

  bash launch/local.sh 2 --config=configs/pretrain.py:demo --workdir=runs/two --config.data.groups.video.paths="('shards',)"
TEXT
}
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/flags.sh
source launch/flags.sh

fail() { echo "error: $1" >&2; exit 2; }
dry_run='' accelerator=cpu devices=1
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry_run=yes; shift ;;
    --accelerator) accelerator=${2:?--accelerator needs cpu or gpu}; shift 2 ;;
    --devices) devices=${2:?--devices needs a number}; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) break ;;
  esac
done
processes=${1:-}
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "the number of processes is '$processes'; it must be at least 1 (see --help)"
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices is '$devices'; it must be at least 1"
case $accelerator in
  cpu) XLA_FLAGS="--xla_force_host_platform_device_count=$devices${XLA_FLAGS:+ $XLA_FLAGS}" ;;
  gpu) ;;
  *) fail "--accelerator is '$accelerator'; it must be cpu or gpu" ;;
esac
shift
set_flags "$accelerator"
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

free_port() {
  "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
if [ -n "$dry_run" ]; then port=${JAX_PORT:-PORT}; else port=${JAX_PORT:-$(free_port)}; fi
command=("$python" -m jepa_jax.train "$@" --config.mesh.distributed=True)
settings() {
  echo "JAX_PLATFORMS=$([ "$accelerator" = gpu ] && echo cuda || echo cpu)"
  [ "$accelerator" = cpu ] || echo "CUDA_VISIBLE_DEVICES=$1"
  printf '%s\n' "XLA_FLAGS=${XLA_FLAGS:-}" "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$processes" \
    "JAX_PROCESS_ID=$1" PYTHONUNBUFFERED=1
}

if [ -n "$dry_run" ]; then
  for ((i = 0; i < processes; i++)); do
    mapfile -t env < <(settings "$i")
    printf '%q ' env "${env[@]}" "${command[@]}" | sed 's/ $//'
    echo
  done
  exit 0
fi

pids=()
for ((i = 0; i < processes; i++)); do
  mapfile -t env < <(settings "$i")
  # By process substitution, so that $! is the program and not what puts the number before its lines; that one stays
  # until the last line, through any Ctrl-C.
  env "${env[@]}" "${command[@]}" > >(trap '' INT TERM; exec sed -u "s/^/[$i] /") 2>&1 &
  pids+=($!)
done

# Background processes of a script are deaf to Ctrl-C, so it is passed on as SIGTERM; asked twice, they are killed.
asked=''
# shellcheck disable=SC2329  # invoked by the traps
stop() {
  if [ -n "$asked" ]; then kill -KILL "${pids[@]}"; else kill -TERM "${pids[@]}"; fi 2>/dev/null || true
  asked=${asked:-$1}
}
trap 'stop 130' INT
trap 'stop 0' TERM HUP

status=0 deadline=''
while [ "${#pids[@]}" -gt 0 ]; do
  sleep 0.2 || true
  alive=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      alive+=("$pid")
      continue
    fi
    code=0
    wait "$pid" || code=$?
    [ "$status" -ne 0 ] || status=$code
  done
  pids=("${alive[@]}")
  if [ "$status" -ne 0 ] && [ -z "$deadline" ] && [ "${#pids[@]}" -gt 0 ]; then
    # They notice by themselves and name the one that is gone; this is for those that cannot.
    deadline=$((SECONDS + ${GRACE_SECONDS:-60}))
    echo "a process ended with status $status; the other ${#pids[@]} end too, after ${GRACE_SECONDS:-60} s at the latest" >&2
  fi
  if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then
    kill -KILL "${pids[@]}" 2>/dev/null || true
  fi
done
[ "$status" -ne 0 ] || status=${asked:-0}
exit "$status"
