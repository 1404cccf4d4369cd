"""Ways to write a rotation down, each to and from matrices.

Every function takes `xp`, the array library to compute with, and keeps the dtype of the
arrays. None branches on values, and gradients are finite at the identity and at half turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jepa_jax.data import poses

NO_ROTATION = "none"
# Below this square (of half an angle's sine, or of an angle) series replace quotients of two small
# numbers; their first term that is left out is under 1e-17.
_SMALL = 1e-4


class Rotation(NamedTuple):
    """Hold one way to write rotations.

    Attributes:
        width: numbers per rotation.
        angles: whether the numbers are radians.
        to_matrix: function of numbers `[..., width]` and `xp`, returns `[..., n, n]`.
        from_matrix: its inverse; returns the canonical one of equivalent writings.
    """

    width: int
    angles: bool
    to_matrix: Callable
    from_matrix: Callable


def yaw_to_matrix(angle, xp=np):
    """Turn headings `[..., 1]`, rad, into matrices of the plane `[..., 2, 2]`."""
    cos, sin = xp.cos(angle[..., 0]), xp.sin(angle[..., 0])
    return xp.stack([xp.stack([cos, -sin], -1), xp.stack([sin, cos], -1)], -2)


def matrix_to_yaw(matrices, xp=np):
    """Turn matrices of the plane `[..., 2, 2]` into headings `[..., 1]`, rad in [-pi, pi]."""
    return xp.arctan2(matrices[..., 1, 0], matrices[..., 0, 0])[..., None]


def quaternion_to_matrix(quaternions, xp=np):
    """Turn quaternions into rotation matrices.

    Args:
        quaternions: `[..., 4]`, x y z w, of any length above 0.
        xp: array library.

    Returns:
        `[..., 3, 3]`.
    """
    # Zeros give the identity, not NaN.
    tiny = xp.finfo(quaternions.dtype).tiny
    double = 2 / xp.maximum((quaternions**2).sum(-1), tiny)
    x, y, z, w = xp.moveaxis(quaternions, -1, 0)
    rows = [
        [1 - double * (y * y + z * z), double * (x * y - z * w), double * (x * z + y * w)],
        [double * (x * y + z * w), 1 - double * (x * x + z * z), double * (y * z - x * w)],
        [double * (x * z - y * w), double * (y * z + x * w), 1 - double * (x * x + y * y)],
    ]
    return xp.stack([xp.stack(row, -1) for row in rows], -2)


def matrix_to_quaternion(matrices, xp=np):
    """Turn rotation matrices into unit quaternions.

    Args:
        matrices: `[..., 3, 3]`.
        xp: array library.

    Returns:
        `[..., 4]`, x y z w, with w >= 0.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (
        (matrices[..., row, 0], matrices[..., row, 1], matrices[..., row, 2]) for row in range(3)
    )
    # Row i is 4 q[i] q: all say the same; the longest says it most precisely.
    rows = [
        [1 + xx - yy - zz, xy + yx, xz + zx, zy - yz],
        [xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx],
        [xz + zx, yz + zy, 1 - xx - yy + zz, yx - xy],
        [zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz],
    ]
    longest = xp.argmax(xp.stack([rows[place][place] for place in range(4)], -1), -1)
    table = xp.stack([xp.stack(row, -1) for row in rows], -2)
    row = xp.take_along_axis(table, longest[..., None, None], -2)[..., 0, :]
    unit = row / xp.sqrt((row**2).sum(-1, keepdims=True))
    return xp.where(unit[..., 3:] < 0, -unit, unit)


def axis_angle_to_matrix(vectors, xp=np):
    """Turn rotation vectors into rotation matrices.

    Args:
        vectors: `[..., 3]`, axis times angle, rad.
        xp: array library.

    Returns:
        `[..., 3, 3]`.
    """
    square = (vectors**2).sum(-1, keepdims=True)
    small = square < _SMALL
    # The quotient is kept finite where it is not used: its gradient counts there too.
    angle = xp.sqrt(xp.where(small, 1, square))
    half_sine = xp.where(small, 1 / 2 - square / 48 + square**2 / 3840, xp.sin(angle / 2) / angle)
    cosine = xp.where(small, 1 - square / 8 + square**2 / 384, xp.cos(angle / 2))
    return quaternion_to_matrix(xp.concatenate([vectors * half_sine, cosine], -1), xp)


def matrix_to_axis_angle(matrices, xp=np):
    """Turn rotation matrices `[..., 3, 3]` into rotation vectors `[..., 3]`, rad, at most pi long."""
    quaternions = matrix_to_quaternion(matrices, xp)
    axis, cosine = quaternions[..., :3], quaternions[..., 3:]
    square = (axis**2).sum(-1, keepdims=True)
    small = square < _SMALL
    sine = xp.sqrt(xp.where(small, 1, square))
    series = 2 + square / 3 + square**2 * (3 / 20) + square**3 * (5 / 56)
    return axis * xp.where(small, series, 2 * xp.arctan2(sine, cosine) / sine)


# Robots that move in a plane turn by 'yaw'; all others turn in space.
ROTATIONS = {
    "yaw": Rotation(1, True, yaw_to_matrix, matrix_to_yaw),
    "xyz euler": Rotation(3, True, poses.euler_to_matrix, poses.matrix_to_euler),
    "axis angle": Rotation(3, True, axis_angle_to_matrix, matrix_to_axis_angle),
    "quaternion": Rotation(4, False, quaternion_to_matrix, matrix_to_quaternion),
}
