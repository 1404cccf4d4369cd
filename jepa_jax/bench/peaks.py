"""How many operations per second a device can do."""

import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Dense bfloat16 TFLOP/s per JAX device, by the start of `device_kind`; longer names first.
# Source: the vendors' data sheets.
_BFLOAT16_TFLOP_PER_S = (
    ("TPU v6 lite", 918.0),
    ("TPU v5 lite", 197.0),
    ("TPU v5p", 459.0),
    ("TPU v5", 459.0),
    # One chip is one device under its megacore.
    ("TPU v4", 275.0),
    ("NVIDIA B200", 2250.0),
    ("NVIDIA H200", 989.0),
    ("NVIDIA H100 PCIe", 756.0),
    ("NVIDIA H100", 989.0),
    ("NVIDIA A100", 312.0),
)
_MATMUL_SIZES = {"cpu": 2048}
_DEFAULT_MATMUL_SIZE = 8192
_REPEATS = 5


class Peak(NamedTuple):
    """TFLOP/s of one device, and where the number comes from."""

    tflop_per_s: float
    source: str


def device_peak(device, dtype):
    """Return the peak of one device in a dtype.

    Args:
      device: `jax.Device`.
      dtype: compute dtype. Only bfloat16 has a table; for any other, and for unknown
        devices, a large matrix product is timed.
    """
    if jnp.dtype(dtype) == jnp.bfloat16:
        for name, peak in _BFLOAT16_TFLOP_PER_S:
            if device.device_kind.startswith(name):
                return Peak(peak, f"data sheet, dense bfloat16, {name}")
    size = _MATMUL_SIZES.get(device.platform, _DEFAULT_MATMUL_SIZE)
    return Peak(_measure_matmul(device, dtype, size), f"measured, {size}^3 product in {jnp.dtype(dtype).name}")


def _measure_matmul(device, dtype, size):
    x = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2e-12 * size**3 / statistics.median(times)
