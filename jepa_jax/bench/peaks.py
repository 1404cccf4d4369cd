"""How many operations per second a device can do."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa_jax.training.chips import peak_flops

_CPU_MATMUL_SIZE, _MATMUL_SIZE = 2048, 8192
_REPEATS = 5


class Peak(NamedTuple):
    """TFLOP/s of one device, and where the number comes from."""

    tflop_per_s: float
    source: str


def device_peak(device, dtype):
    """Return the peak of one device in a dtype.

    Args:
      device: `jax.Device`.
      dtype: compute dtype. The table is for bfloat16; for any other, and for devices that
        are not in it, a large matrix product is timed.
    """
    listed = peak_flops(device) if jnp.dtype(dtype) == jnp.bfloat16 else None
    if listed:
        return Peak(listed / 1e12, "data sheet, dense bfloat16")
    size = _CPU_MATMUL_SIZE if device.platform == "cpu" else _MATMUL_SIZE
    return Peak(_measure_matmul(device, dtype, size), f"measured, {size}^3 product in {jnp.dtype(dtype).name}")


def _measure_matmul(device, dtype, size):
    """Time the product of two square matrices; TFLOP/s of the best of a few."""
    x = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2e-12 * size**3 / min(times)
