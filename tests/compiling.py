"""Options that make XLA compile faster, for tests that compile much and run little."""

import functools

import jax
import jax.numpy as jnp

_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@functools.cache
def fast_options():
    """Return those options that this version of XLA knows."""
    known = {}
    for name, value in _OPTIONS.items():
        try:
            jax.jit(lambda x: x + 1, compiler_options={name: value})(jnp.zeros(()))
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


def fast_jit(function, **kwargs):
    """Like `jax.jit`, with less optimisation: about a sixth of the compile time on CPU."""
    return jax.jit(function, compiler_options=fast_options(), **kwargs)
