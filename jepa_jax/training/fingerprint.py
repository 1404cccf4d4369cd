"""Sums over all bits of a state, which tell a checkpoint that changed on disk."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jepa_jax.training.state import tensor_names


def fingerprints(tree):
    """Compute a number per array that depends on every bit of it, but not on how it is divided.

    Integers are added, so the order of the sum does not matter: the same array has the same number
    on any mesh and any number of processes. All processes that hold a part must call it.

    Args:
      tree: arrays on devices, with elements of at most 4 bytes.

    Returns:
      dict from the name of every array to an int below 2**32.
    """
    # One small program per shape; one program for all arrays takes several times as long to compile.
    sums = [_sum_for(leaf.sharding)(leaf) for leaf in jax.tree.leaves(tree)]
    return {name: int(value) for name, value in zip(tensor_names(tree), jax.device_get(sums))}


def changed(tree, expected):
    """Name the arrays of a tree whose fingerprint is not the expected one; see `fingerprints`."""
    found = fingerprints(tree)
    return [name for name in sorted(found) if found[name] != expected.get(name, found[name])]


@functools.cache
def _sum_for(sharding):
    """Return the compiled sum, whose result every process holds."""
    whole = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
    return jax.jit(_sum, out_shardings=whole)


def _sum(x):
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
