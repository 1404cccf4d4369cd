#!/usr/bin/env bash
# Train on a Cloud TPU slice, or several, through queued resources: ask for it, install, run on all hosts, start again.
usage() {
  cat <<'TEXT'
Usage: bash launch/tpu_pod.sh [--dry-run] COMMAND NAME --zone ZONE --type TYPE [OPTIONS] [-- FLAGS-OF-TRAIN ...]

Commands
  create   ask for the TPU NAME and wait until it is there
  setup    copy this folder to all its hosts and install it there
  train    run `python -m jepa_jax.train FLAGS ...` on all hosts, and wait for its end
  keep     all of the above, again and again until training ends well: after a preemption the TPU is asked for anew,
           after a failure training is started again; every start goes on from the last checkpoint
  state    print the state of the TPU
  delete   give it back

Options
  --zone ZONE          such as us-east5-a
  --type TYPE          such as v5p-128 (v4 and v5p count cores, two per chip), v5litepod-256, v6e-256
  --project PROJECT    default: the one of `gcloud config`
  --slices N           slices of that type, connected by the data-centre network (default 1)
  --spot | --reserved  preemptible and cheaper, or from a reservation
  --version VERSION    TPU software; by default the one for the type
  --restarts N         of keep: failures in a row before it gives up (default 10); preemptions do not count
  --dry-run            print what would be run, and run nothing

  bash launch/tpu_pod.sh keep vitg --zone us-east5-a --type v5p-128 --spot -- \
    --config=configs/pretrain.py:vitg16,mix=released --workdir=gs://BUCKET/runs/vitg --config.data.root=gs://BUCKET/shards
TEXT
}
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/flags.sh
source launch/flags.sh

fail() { echo "error: $1" >&2; exit 2; }
dry_run='' command='' name='' zone='' type='' project='' slices=1 kind='' version='' restarts=10 flags=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=yes; shift ;;
    --spot | --reserved) kind=$1; shift ;;
    --zone | --type | --project | --slices | --version | --restarts)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${1#--}" %s "$2"; shift 2 ;;
    --) shift; flags=("$@"); break ;;
    -*) fail "unknown option $1; flags of train stand after --" ;;
    *)
      if [ -z "$command" ]; then command=$1; elif [ -z "$name" ]; then name=$1; else fail "unexpected '$1'"; fi
      shift ;;
  esac
done
case $command in create | setup | train | keep | state | delete) ;; *) usage >&2; fail "the command is '$command'" ;; esac
[ -n "$name" ] || fail "give the TPU a name"
[ -n "$zone" ] || fail "--zone is missing"
case $command in state | delete) ;; *) [ -n "$type" ] || fail "--type is missing" ;; esac
case $command in train | keep) [ "${#flags[@]}" -gt 0 ] || fail "give the flags of train after --" ;; esac
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices is '$slices'; it must be at least 1"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts is '$restarts'; it must be a number"

# Source of the versions: https://cloud.google.com/tpu/docs/runtimes
case $type in
  v6e-*) generation=v6e default=v2-alpha-tpuv6e ;;
  v5p-*) generation=v5p default=v2-alpha-tpuv5 ;;
  v5litepod-*) generation=v5e default=v2-alpha-tpuv5-lite ;;
  v4-*) generation=v4 default=tpu-ubuntu2204-base ;;
  '') generation='' default='' ;;
  *) fail "--type is '$type'; it must begin with v4-, v5p-, v5litepod- or v6e- (later generations: launch/gke.sh)" ;;
esac
version=${version:-$default}
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")

all=(--node=all --worker=all --batch-size=all)

# Print a command as it would have to be typed, or run it.
run() {
  if [ -n "$dry_run" ]; then printf '%q ' "$@" | sed 's/ $/\n/'; else "$@"; fi
}
# Several slices are one queued resource with several nodes; this form of ssh reaches all hosts of all of them.
everywhere() {
  run gcloud alpha compute tpus queued-resources ssh "$name" "${where[@]}" "${all[@]}" --command="$1"
}
state() { run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)'; }

create() {
  local nodes=(--node-id="$name")
  [ "$slices" -eq 1 ] || nodes=(--node-count="$slices" --node-prefix="$name")
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" --accelerator-type="$type" \
    --runtime-version="$version" "${nodes[@]}" ${kind:+"$kind"} || return
  await
}
await() {
  if [ -n "$dry_run" ]; then
    echo "# until it says ACTIVE:"
    state
    return
  fi
  local now last=''
  while true; do
    now=$(state) || return
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPEND* | DELETING) echo "error: the TPU $name is $now" >&2; return 1 ;;
    esac
    [ "$now" = "$last" ] || echo "the TPU $name is $now"
    last=$now
    sleep 30
  done
}
setup() {
  local archive=${TMPDIR:-/tmp}/jepa_jax.tar.gz
  run tar --create --gzip --file="$archive" --exclude=./.venv --exclude=./.git --exclude=./runs --exclude='*.pyc' . || return
  run gcloud alpha compute tpus queued-resources scp "$archive" "$name:jepa_jax.tar.gz" "${where[@]}" "${all[@]}" || return
  # The images carry Ubuntu 22.04, whose own Python is 3.10.
  everywhere "set -e; mkdir -p jepa_jax; tar --extract --gzip --file=jepa_jax.tar.gz --directory=jepa_jax;\
 command -v python3.11 >/dev/null || { sudo apt-get update -qq; sudo apt-get install -qq -y python3.11 python3.11-venv; };\
 cd jepa_jax; PYTHON=python3.11 bash launch/setup.sh tpu gcs"
}
train() {
  # JAX recognises the slice, or slices, by itself: who coordinates and which host this is. A run that was told to
  # stop has not ended well, for `keep`.
  local words
  words=$(printf ' %q' "${flags[@]}" --config.mesh.distributed=True --preempted_status=75)
  everywhere "cd jepa_jax; source launch/flags.sh; set_flags $generation $slices; set -o pipefail;\
 .venv/bin/python -u -m jepa_jax.train$words 2>&1 | tee -a train.log"
}
delete() { run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }

state_or_absent() { state 2>/dev/null || echo ABSENT; }

keep() {
  if [ -n "$dry_run" ]; then
    create; setup; train
    echo "# Done if it ends with status 0. If training failed: train again, at most $restarts times in a row. If the TPU was"
    echo "# preempted, which these two show and clear away: from the top."
    state; delete
    return
  fi
  local failures=0 now ready='' code
  while true; do
    now=$(state_or_absent)
    code=0
    case $now in
      ABSENT) ready=''; create || code=$? ;;
      FAILED | SUSPEND*) ready=''; echo "the TPU $name is $now; asking for it anew"; delete || code=$? ;;
      ACTIVE)
        if [ -z "$ready" ]; then if setup; then ready=yes; else code=$?; fi; fi
        [ -z "$ready" ] || train || code=$?
        if [ -n "$ready" ] && [ "$code" -eq 0 ]; then
          echo "training has ended; give the TPU back with: bash launch/tpu_pod.sh delete $name --zone $zone"
          return
        fi
        ;;
      *) await || code=$? ;;
    esac
    if [ "$code" -eq 0 ] || [ "$(state_or_absent)" != "$now" ]; then
      failures=0
      continue
    fi
    # Nothing happened to the TPU, so it is not the reason.
    failures=$((failures + 1))
    [ "$failures" -le "$restarts" ] || fail "failed $failures times in a row; see above, and train.log on each host"
    echo "failed with status $code; again, $failures of $restarts" >&2
    sleep 10
  done
}
"$command"
