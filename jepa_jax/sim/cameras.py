"""Cameras around the table: where they are, and the ray through each pixel.

A camera looks along its z axis, x right and y down. Its extrinsics are its pose in the robot's base
frame, x y z (m) and three angles (extrinsic xyz, rad), as in DROID's records.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jepa_jax.data import poses

# Degrees across a frame, of every camera.
FIELD_OF_VIEW = 35.0
WRIST = "wrist"
# Where each camera is and what it looks at, m.
_PLACES = {
    "front": ((1.32, 0.12, 0.86), (0.45, 0.0, 0.13)),
    "left": ((1.02, 0.86, 0.80), (0.45, 0.0, 0.13)),
    "right": ((1.02, -0.86, 0.80), (0.45, 0.0, 0.13)),
    "top": ((1.00, 0.0, 1.14), (0.47, 0.0, 0.10)),
}
# In the tool's frame: on the hand, looking down between the fingers.
_WRIST_PLACE = ((0.20, 0.0, 0.24), (0.0, 0.0, -0.03))
CAMERAS = (*_PLACES, WRIST)
# Directions nearer to 0 than this are moved away from it: rays are divided by them.
_SMALL = 1e-5


class Rays(NamedTuple):
    """Hold rays through pixels, in some frame; along it, distances are depths in front of the camera.

    Args:
        origin: three float32 numbers, m.
        direction: three float32 arrays `[s, H, W]`.
    """

    origin: tuple
    direction: tuple


def looking_at(place, target):
    """Return the extrinsics, float32 `[6]`, of an upright camera at `place` that looks at `target`."""
    forward = np.subtract(target, place)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), forward], 1)
    return np.concatenate([place, poses.matrix_to_euler(axes)]).astype(np.float32)


_EXTRINSICS = {name: looking_at(*pair) for name, pair in _PLACES.items()}
_WRIST_EXTRINSICS = looking_at(*_WRIST_PLACE)


def extrinsics(name, pose, jitter, xp=jnp):
    """Return where a camera is.

    Args:
        name: one of CAMERAS.
        pose: float32 `[7]`, of the tool, with which the camera 'wrist' moves.
        jitter: float32 `[6]`, added to where the camera should be, m and rad.
        xp: array library.

    Returns:
        float32 `[6]`.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in CAMERAS:
        raise ValueError(f"there is no camera {name!r}; allowed: {', '.join(CAMERAS)}")
    if name != WRIST:
        return _EXTRINSICS[name] + jitter
    mounted = _WRIST_EXTRINSICS + jitter
    return attached(pose, mounted, xp)


def attached(pose, inner, xp=jnp):
    """Return where something is that is fixed to the tool.

    Args:
        pose: float32 `[7]`, of the tool.
        inner: float32 `[6]`, place and angles in the tool's frame.
        xp: array library.

    Returns:
        float32 `[6]`, place and angles in the base frame.
    """
    turn = poses.euler_to_matrix(pose[3:6], xp)
    angles = poses.matrix_to_euler(poses.product(turn, poses.euler_to_matrix(inner[3:], xp)), xp)
    return xp.concatenate([pose[:3] + poses.product(turn, inner[:3, None])[:, 0], angles])


def pixel_rays(camera, height, width, samples):
    """Make the rays of a camera, several through each pixel.

    Args:
        camera: float32 `[6]`, extrinsics.
        height, width: pixels.
        samples: float32 `[s, 2]`, their places right and down of a pixel's middle, pixels.

    Returns:
        `Rays` `[s, H, W]` in the base frame.
    """
    turn = poses.euler_to_matrix(camera[3:], jnp)
    scale = 2 * np.tan(np.radians(FIELD_OF_VIEW) / 2) / width
    right = (np.arange(width) + 0.5 - width / 2 + samples[:, :1]) * scale
    down = (np.arange(height) + 0.5 - height / 2 + samples[:, 1:]) * scale
    right, down = (jnp.float32(side) for side in (right[:, None, :], down[:, :, None]))
    direction = tuple(_nonzero(turn[i, 0] * right + turn[i, 1] * down + turn[i, 2]) for i in range(3))
    return Rays(tuple(camera[i] for i in range(3)), direction)


def in_frame(rays, place, turn):
    """Express rays in the frame at `place` [3] whose axes are the columns of `turn` [3, 3]."""
    offset = [rays.origin[i] - place[i] for i in range(3)]

    def along(axis, vector):
        return turn[0, axis] * vector[0] + turn[1, axis] * vector[1] + turn[2, axis] * vector[2]

    return Rays(
        tuple(along(axis, offset) for axis in range(3)),
        tuple(_nonzero(along(axis, rays.direction)) for axis in range(3)),
    )


def _nonzero(values):
    return jnp.where(jnp.abs(values) < _SMALL, _SMALL, values)
