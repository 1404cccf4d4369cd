# shellcheck shell=bash
# Use all cores of a CPU well; sourced by the demos. What is already set wins.
# A device for each core, in a power of two up to eight: batches are split over devices, and of what XLA runs within one only
# part uses several cores. Large pages for what JAX allocates (glibc 2.35 or newer; others ignore it). On two cores, together: 30 %
# more clips/s for the encoder of robot_demo.sh, 25 % more for its world model.
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
devices=1
while ((devices * 2 <= cores && devices < 8)); do devices=$((devices * 2)); done
export XLA_FLAGS="--xla_force_host_platform_device_count=$devices${XLA_FLAGS:+ $XLA_FLAGS}"
export GLIBC_TUNABLES="glibc.malloc.hugetlb=1${GLIBC_TUNABLES:+:$GLIBC_TUNABLES}"
