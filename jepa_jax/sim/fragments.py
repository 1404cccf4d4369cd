"""What a ray meets, packed into one whole number, so that the smallest of several is what is in front.

    bits 13..30  depth, in steps of 1 / 2**16 m
    bits 8..12   material
    bits 0..7    how much the place faces the light, 0..255

One number instead of three keeps XLA from meeting every body once for each of them.
"""

import jax.numpy as jnp

_DEPTH_STEPS = 2**16
_DEPTH_SHIFT, _MATERIAL_SHIFT = 13, 8
# What is farther counts as this far, m.
MAX_DEPTH = 3.99
NUM_MATERIALS = 2 ** (_DEPTH_SHIFT - _MATERIAL_SHIFT)
_FACING_STEPS = 2**_MATERIAL_SHIFT - 1


def pack(depth, facing, material):
    """Pack depth (m), facing in [0, 1] (others are clipped) and material (below NUM_MATERIALS) to int32."""
    depth = (jnp.minimum(depth, MAX_DEPTH) * _DEPTH_STEPS).astype(jnp.int32)
    facing = (jnp.clip(facing, 0.0, 1.0) * _FACING_STEPS).astype(jnp.int32)
    return (depth << _DEPTH_SHIFT) | (material << _MATERIAL_SHIFT) | facing


def unpack(packed):
    """Return depth (m), facing and material of what `pack` made."""
    depth = (packed >> _DEPTH_SHIFT).astype(jnp.float32) * (1 / _DEPTH_STEPS)
    material = (packed >> _MATERIAL_SHIFT) & (NUM_MATERIALS - 1)
    return depth, (packed & _FACING_STEPS).astype(jnp.float32) * (1 / _FACING_STEPS), material
