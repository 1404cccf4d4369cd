#!/usr/bin/env bash
# Train on GPU nodes of a Slurm cluster: one process per GPU, started again after a preemption or a failure.
usage() {
  cat <<'TEXT'
Usage: bash launch/slurm.sh [--dry-run] [--nodes N] [--gpus N] [OPTIONS] -- FLAGS-OF-TRAIN ...

Submits a batch job that runs `python -m jepa_jax.train FLAGS ...` in one process per GPU. Every start goes on from the
last checkpoint in the workdir, which all nodes have to see.

  --nodes N         nodes (default 1)
  --gpus N          GPUs per node (default 8)
  --cpus N          CPU cores per GPU, for reading and decoding (default 8)
  --time TIME       limit of one start (default 24:00:00); two minutes before it the state is saved and the job queued again
  --name NAME       of the job (default jepa_jax); its log is slurm-NAME-JOBID.log
  --sbatch OPTION   one more option of sbatch, such as --sbatch=--partition=gpu; may be repeated
  --restarts N      failures before it gives up (default 10); preemptions and time limits do not count
  --dry-run         print the batch script and how it would be submitted, and submit nothing

PYTHON chooses the interpreter, by default .venv/bin/python of this folder (`bash launch/setup.sh cuda`).

  bash launch/slurm.sh --nodes 4 --sbatch=--partition=gpu -- --config=configs/pretrain.py:vitl16,mix=released \
    --workdir=/shared/runs/vitl16 --config.data.root=/shared/shards
TEXT
}
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/flags.sh
source launch/flags.sh

fail() { echo "error: $1" >&2; exit 2; }
dry_run='' nodes=1 gpus=8 cpus=8 time=24:00:00 name=jepa_jax restarts=10 more=() flags=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=yes; shift ;;
    --sbatch=*) more+=("${1#--sbatch=}"); shift ;;
    --nodes | --gpus | --cpus | --time | --name | --restarts | --sbatch)
      [ $# -ge 2 ] || fail "$1 needs a value"
      if [ "$1" = --sbatch ]; then more+=("$2"); else printf -v "${1#--}" %s "$2"; fi
      shift 2 ;;
    --) shift; flags=("$@"); break ;;
    *) fail "unknown option '$1'; flags of train stand after --" ;;
  esac
done
[ "${#flags[@]}" -gt 0 ] || fail "give the flags of train after --"
for option in nodes gpus cpus; do
  [[ ${!option} =~ ^[1-9][0-9]*$ ]] || fail "--$option is '${!option}'; it must be at least 1"
done
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts is '$restarts'; it must be a number"
[[ $name =~ ^[A-Za-z0-9_.-]+$ ]] || fail "--name is '$name'; it must be letters, digits, '_', '.' and '-'"
set_flags gpu
python=${PYTHON:-.venv/bin/python}
train=$(printf ' %q' "${flags[@]}" --config.mesh.distributed=True --preempted_status=75)

# SIGUSR1 comes to the batch shell only, in time to save; it asks all processes to stop. JAX takes number, count and
# coordinator from Slurm.
script="#!/usr/bin/env bash
#SBATCH --job-name=$name --output=slurm-$name-%j.log --open-mode=append
#SBATCH --nodes=$nodes --ntasks-per-node=$gpus --gpus-per-node=$gpus --cpus-per-task=$cpus
#SBATCH --time=$time --signal=B:USR1@120 --requeue
export XLA_FLAGS=$(printf %q "$XLA_FLAGS") PYTHONUNBUFFERED=1
srun --kill-on-bad-exit=0 --label bash -c 'exec $(printf %q "$python") -m jepa_jax.train \"\$@\"' train$train &
step=\$!
stop() { scancel --signal=TERM \"\$SLURM_JOB_ID.0\"; }
trap stop USR1 TERM
code=0
wait \$step || code=\$?
# A signal ends the wait, but not the step.
while kill -0 \$step 2>/dev/null; do code=0; wait \$step || code=\$?; done
failures=slurm-$name-\$SLURM_JOB_ID.failures
if [ \$code -eq 0 ]; then rm -f \"\$failures\"; exit 0; fi
# 75: stopped from outside, and saved. Anything else is a failure.
if [ \$code -ne 75 ]; then
  echo failed >> \"\$failures\"
  if [ \"\$(wc -l < \"\$failures\")\" -gt $restarts ]; then
    echo \"failed more than $restarts times; giving up\" >&2
    exit \$code
  fi
fi
echo \"ended with status \$code; queued again, to go on from the last checkpoint\"
scontrol requeue \"\$SLURM_JOB_ID\"
"
if [ -n "$dry_run" ]; then
  echo "sbatch$([ "${#more[@]}" -eq 0 ] || printf ' %q' "${more[@]}") <<'SCRIPT'"
  printf '%sSCRIPT\n' "$script"
else
  sbatch "${more[@]}" <<<"$script"
fi
