#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster: fill in launch/gke.yaml and apply it.
usage() {
  cat <<'TEXT'
Usage: bash launch/gke.sh [--dry-run] NAME --image IMAGE --tpu GENERATION --topology TOPOLOGY [OPTIONS] -- FLAGS-OF-TRAIN ...

Prints launch/gke.yaml with all names filled in, and gives it to `kubectl apply`. The cluster needs the JobSet controller,
and a node pool per slice with that TPU and topology. The image needs this package with the extras `tpu` and `gcs`, and
its working folder has to be the one with configs/.

  --tpu GENERATION      v4, v5e, v5p or v6e
  --topology TOPOLOGY   of a slice, such as 4x4x4 (v4, v5p) or 16x16 (v5e, v6e)
  --slices N            slices, connected by the data-centre network (default 1)
  --service-account SA  Kubernetes service account that may write to the bucket (default: default)
  --restarts N          failures before the job is given up (default 10); preemptions do not count
  --dry-run             print what would be applied, and apply nothing

  bash launch/gke.sh vitg --image REGION-docker.pkg.dev/PROJECT/REPOSITORY/jepa_jax --tpu v5p --topology 4x4x4 -- \
    --config=configs/pretrain.py:vitg16,mix=released --workdir=gs://BUCKET/runs/vitg --config.data.root=gs://BUCKET/shards

Watch it with `kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME`, end it with `kubectl delete jobset NAME`.
TEXT
}
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/flags.sh
source launch/flags.sh

fail() { echo "error: $1" >&2; exit 2; }
dry_run='' name='' image='' tpu='' topology='' slices=1 restarts=10 service_account=default flags=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=yes; shift ;;
    --image | --tpu | --topology | --slices | --restarts | --service-account)
      [ $# -ge 2 ] || fail "$1 needs a value"
      option=${1#--}
      printf -v "${option//-/_}" %s "$2"; shift 2 ;;
    --) shift; flags=("$@"); break ;;
    -*) fail "unknown option $1; flags of train stand after --" ;;
    *) [ -z "$name" ] || fail "unexpected '$1'"; name=$1; shift ;;
  esac
done
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  fail "the name is '$name'; it must be small letters, digits and hyphens, at most 40"
[ -n "$image" ] || fail "--image is missing"
[ "${#flags[@]}" -gt 0 ] || fail "give the flags of train after --"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices is '$slices'; it must be at least 1"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts is '$restarts'; it must be a number"
[[ $topology =~ ^[0-9]+x[0-9]+(x[0-9]+)?$ ]] || fail "--topology is '$topology'; it must be like 4x4x4 or 16x16"
# Source of the names: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
case $tpu in
  v4) accelerator='tpu-v4-podslice' ;;
  v5e) accelerator='tpu-v5-lite-podslice' ;;
  v5p) accelerator='tpu-v5p-slice' ;;
  v6e) accelerator='tpu-v6e-slice' ;;
  *) fail "--tpu is '$tpu'; it must be v4, v5e, v5p or v6e" ;;
esac
# Slices of several hosts have four chips on each.
chips=$((${topology//x/*}))
hosts=$(((chips + 3) / 4))
unset LIBTPU_INIT_ARGS
set_flags "$tpu" "$slices"

# The flags stand in a folded block of YAML and are read by bash there; Kubernetes itself replaces $(NAME).
quoted=$(printf '%q ' "${flags[@]}")
quoted=${quoted% }
text=$(<launch/gke.yaml)
fill() { text=${text//"\${$1}"/"$2"}; }
fill NAME "$name"
fill RESTARTS "$restarts"
fill SLICES "$slices"
fill HOSTS "$hosts"
fill SERVICE_ACCOUNT "$service_account"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
fill IMAGE "$image"
fill LIBTPU_INIT_ARGS "$LIBTPU_INIT_ARGS"
fill CHIPS_PER_HOST "$((chips / hosts))"
fill FLAGS "${quoted//\$(/\$\$(}"

if [ -n "$dry_run" ]; then
  echo "# kubectl apply -f -"
  printf '%s\n' "$text"
else
  kubectl apply -f - <<<"$text"
fi
