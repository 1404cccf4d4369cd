# shellcheck shell=bash
# Use all cores of a CPU; sourced by the demos, and by you before a command. What is set already wins.
# XLA spreads only some operations of a device over cores. With a device for each core (a power of two, eight at most),
# batches are split, and so is everything. Large pages for what JAX allocates: glibc 2.35 or newer; others ignore the word.
# On two cores both together make the encoder of robot_demo.sh 30 % faster and its world model 25 %.
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
devices=1
while ((devices * 2 <= cores && devices < 8)); do devices=$((devices * 2)); done
export XLA_FLAGS="--xla_force_host_platform_device_count=$devices${XLA_FLAGS:+ $XLA_FLAGS}"
export GLIBC_TUNABLES="glibc.malloc.hugetlb=1${GLIBC_TUNABLES:+:$GLIBC_TUNABLES}"
