# shellcheck shell=bash
# Compiler flags that let communication run beside computation, per accelerator. Sourced by the other scripts:
#   set_flags ACCELERATOR NUM_SLICES     sets LIBTPU_INIT_ARGS or XLA_FLAGS; what is already in them comes last and so wins
#   list_flags ACCELERATOR NUM_SLICES    prints one flag a line
# Accelerators: v4, v5e, v5p, v6e, gpu, cpu.
#
# What each flag does is the compiler's own list: https://docs.jax.dev/en/latest/xla_flags.html (TPU flags are not part of
# OpenXLA and are documented nowhere else). libtpu refuses a flag that it does not know, with "Unknown command line flag".
# Cores per chip: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm (v4 and v5p have two TensorCores, v5e and v6e one).

# Collectives within a slice (ICI), any TPU. Parameters split over chips (mesh.fsdp) are gathered in every layer of the scan.
ICI_FLAGS=(
  # All-gathers start early and end late, so that a layer's parameters arrive while the one before computes.
  --xla_enable_async_all_gather=true
  # The same for the permutes that the compiler makes of gathers inside matrix products.
  --xla_enable_async_collective_permute=true
  # Joins a collective in flight with the computation that stands between its start and its end ...
  --xla_tpu_enable_async_collective_fusion=true
  # ... all-gathers too, which are what splitting parameters costs ...
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  # ... over several such computations, where one is too short to hide it.
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true
)
# Chips with one TensorCore: that core computes while it serves a collective.
ONE_CORE_FLAGS=(--xla_tpu_overlap_compute_collective_tc=true)
# Chips with two TensorCores, which work as one (megacore): gathers are joined with what both compute.
TWO_CORE_FLAGS=(--xla_tpu_megacore_fusion_allow_ags=true)
# Between slices the data-centre network (DCN) carries the sum of the gradients, far slower than ICI.
DCN_FLAGS=(
  # Finds more computation to run beside that sum ...
  --xla_tpu_enable_data_parallel_all_reduce_opt=true
  # ... across iterations of the scan too, where tensors differ in size, as those of an attention block do; takes some memory.
  --xla_tpu_data_parallel_opt_different_sized_ops=true
)
# GPUs. Sources: the list above, and https://docs.jax.dev/en/latest/gpu_performance_tips.html
GPU_FLAGS=(
  # Off by default; without it no collective overlaps anything.
  --xla_gpu_enable_latency_hiding_scheduler=true
  # Start the gather of the next layer, and end the scatter of the last, in another round of the scan.
  --xla_gpu_enable_pipelined_all_gather=true
  --xla_gpu_enable_pipelined_reduce_scatter=true
  --xla_gpu_enable_pipelined_all_reduce=true
  # Two rounds of the scan share no buffer, without which a gather for the next one has nowhere to go.
  --xla_gpu_enable_while_loop_double_buffering=true
)

list_flags() {
  local flags=()
  case $1 in
    v5e | v6e) flags=("${ICI_FLAGS[@]}" "${ONE_CORE_FLAGS[@]}") ;;
    v4 | v5p) flags=("${ICI_FLAGS[@]}" "${TWO_CORE_FLAGS[@]}") ;;
    gpu) flags=("${GPU_FLAGS[@]}") ;;
    cpu) return 0 ;;
    *)
      echo "no flags are known for accelerator '$1'; choose v4, v5e, v5p, v6e, gpu or cpu" >&2
      return 2
      ;;
  esac
  case $1 in v*) [ "${2:-1}" -le 1 ] || flags+=("${DCN_FLAGS[@]}") ;; esac
  printf '%s\n' "${flags[@]}"
}

set_flags() {
  local flags
  flags=$(list_flags "$1" "${2:-1}") || return
  flags=${flags//$'\n'/ }
  case $1 in
    v*) export LIBTPU_INIT_ARGS="$flags${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}" ;;
    gpu) export XLA_FLAGS="$flags${XLA_FLAGS:+ $XLA_FLAGS}" ;;
  esac
}
