"""Rotary positions on the (time, row, column) token grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.models.precision import widen

LAYOUTS = ("tiled", "interleaved")
_BASE = 10000.0


def grid_positions(ids, grid):
    """Turn token ids into grid positions.

    Args:
      ids: int32 `[..., N]`, row-major over (time, row, column).
      grid: (t, h, w) of the clip the ids refer to; t is not needed for the
        arithmetic and may be any value.

    Returns:
      int32 `[..., N, 3]`: time, row and column index, counted from 0. They are
      not scaled by resolution or frame rate.

    Source: src/models/utils/modules.py (RoPEAttention).
    """
    _, h, w = grid
    return jnp.stack([ids // (h * w), ids % (h * w) // w, ids % w], axis=-1)


def rotary_axis_dim(head_dim):
    """Return how many channels of a head are rotated per axis (even)."""
    axis_dim = 2 * (head_dim // 3 // 2)
    if axis_dim < 2:
        raise ValueError(f"head_dim {head_dim} leaves no channel to rotate; it must be at least 6")
    return axis_dim


def rotary_angles(positions, head_dim, layout="tiled"):
    """Compute the angle of every head channel.

    The channels of a head are `[time | row | column | rest]`, each axis
    `rotary_axis_dim(head_dim)` wide; the rest is not rotated (angle 0).

    Args:
      positions: int or float `[..., N, 3]` from `grid_positions`.
      head_dim: channels per head.
      layout: "tiled" repeats the n frequencies of an axis as a whole,
        "interleaved" repeats each twice, which makes pairs true rotations.

    Returns:
      float32 `[..., N, head_dim]`, radians.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"rope layout {layout!r} is unknown; choose one of {LAYOUTS}")
    axis_dim = rotary_axis_dim(head_dim)
    n = axis_dim // 2
    frequencies = (_BASE ** (-np.arange(n, dtype=np.float64) / n)).astype(np.float32)
    # Parity: the official code rotates neighbouring channels (2j, 2j+1) but
    # tiles the frequencies, so the two members of a pair turn by different
    # angles. Released weights need it.
    expand = np.tile if layout == "tiled" else np.repeat
    angles = positions[..., None].astype(jnp.float32) * expand(frequencies, 2)
    angles = angles.reshape(*angles.shape[:-2], 3 * axis_dim)
    rest = [(0, 0)] * (angles.ndim - 1) + [(0, head_dim - 3 * axis_dim)]
    return jnp.pad(angles, rest)


def rotate(x, angles):
    """Rotate neighbouring channel pairs of queries or keys.

    Args:
      x: `[B, N, K, d]` in any float dtype.
      angles: float32 `[B or 1, N, d]` from `rotary_angles`.

    Returns:
      Same shape and dtype as `x`; the arithmetic is at least float32.
    """
    angles = angles[:, :, None, :]
    # (a, b) -> (-b, a). An axis of two, which pairs would have, makes TPU programs slower to run and to compile, and there every
    # shift is a copy with a padded last axis; on CPU the derivative of shifts takes three times as long.
    y = widen(x)
    by_product = functools.partial(_turn_by_product, dtype=x.dtype)
    turned = jax.lax.platform_dependent(y, cpu=_turn_pairs, tpu=by_product, default=_turn_by_shifts)
    return (y * jnp.cos(angles) + turned * jnp.sin(angles)).astype(x.dtype)


def _turn_pairs(y):
    pairs = y.reshape(*y.shape[:-1], -1, 2)
    return jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(y.shape)


def _turn_by_shifts(y):
    first = np.arange(y.shape[-1]) % 2 == 0
    return jnp.where(first, -jnp.roll(y, -1, axis=-1), jnp.roll(y, 1, axis=-1))


def _turn_by_product(y, dtype):
    """Turn what is of a narrower dtype than it says: the product is exact then too, as each sum has one term."""
    turn = np.kron(np.eye(y.shape[-1] // 2), [[0, 1], [-1, 0]])
    return jnp.einsum("...i,ij->...j", y.astype(dtype), jnp.asarray(turn, dtype), precision="highest", preferred_element_type=y.dtype)
