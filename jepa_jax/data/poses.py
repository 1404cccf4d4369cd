"""Poses of an end effector: Euler angles, actions between poses, and camera frames.

A pose is [..., 7]: x y z (m), three angles a b c (rad), gripper in [0, 1]. Angles are
extrinsic "xyz": R = Rz(c) Ry(b) Rx(a). Every function takes `xp`, the array library to
compute with, so that one formula serves NumPy on the host and others on devices; the
arrays keep their dtype. No function has a branch on values.
"""

from __future__ import annotations

import numpy as np

GRIPPER_RANGE = (0.0, 1.0)


def euler_to_matrix(angles, xp=np):
    """Turn extrinsic xyz angles into rotation matrices.

    Args:
        angles: `[..., 3]`, radians about the fixed x, y and z axis, in that order.
        xp: array library.

    Returns:
        `[..., 3, 3]`.
    """
    (ca, cb, cc), (sa, sb, sc) = (xp.moveaxis(part, -1, 0) for part in (xp.cos(angles), xp.sin(angles)))
    rows = [
        [cb * cc, sa * sb * cc - ca * sc, ca * sb * cc + sa * sc],
        [cb * sc, sa * sb * sc + ca * cc, ca * sb * sc - sa * cc],
        [-sb, sa * cb, ca * cb],
    ]
    return xp.stack([xp.stack(row, -1) for row in rows], -2)


def matrix_to_euler(matrices, xp=np):
    """Turn rotation matrices into extrinsic xyz angles; exact near gimbal lock too.

    Args:
        matrices: `[..., 3, 3]`.
        xp: array library.

    Returns:
        `[..., 3]`, radians; the middle one in [-pi/2, pi/2], the others in [-pi, pi].
    """
    # Exactly at lock, where c is 0 by choice, gradients of the angle and length of nothing would be NaN.
    locked = (matrices[..., 0, 0] == 0) & (matrices[..., 1, 0] == 0)
    along = xp.where(locked, 1, matrices[..., 0, 0])
    c = xp.arctan2(matrices[..., 1, 0], along)
    b = xp.arctan2(-matrices[..., 2, 0], xp.where(locked, 0, xp.hypot(along, matrices[..., 1, 0])))
    # With Rz(c) undone, what is left says a; near lock, where c is arbitrary, a still goes with it.
    sin, cos = xp.sin(c), xp.cos(c)
    a = xp.arctan2(
        sin * matrices[..., 0, 2] - cos * matrices[..., 1, 2], cos * matrices[..., 1, 1] - sin * matrices[..., 0, 1]
    )
    return xp.stack([a, b, c], -1)


def product(left, right):
    """Multiply small matrices `[..., i, j]` and `[..., j, k]`, in full precision on every device."""
    # An accelerator's own matrix product rounds float32 factors, by default to half their digits or fewer.
    return (left[..., :, :, None] * right[..., None, :, :]).sum(-2)


def pose_deltas(poses, xp=np):
    """Derive the actions between consecutive poses.

    Args:
        poses: `[..., n, 7]`.
        xp: array library.

    Returns:
        `[..., n - 1, 7]`: p' - p in the base frame, the angles of R' R^T (a rotation
        about the base's axes), and the change of the gripper.

    Source: app/vjepa_droid/droid.py
    """
    rotations = euler_to_matrix(poses[..., 3:6], xp)
    turn = matrix_to_euler(product(rotations[..., 1:, :, :], xp.swapaxes(rotations[..., :-1, :, :], -1, -2)), xp)
    change = poses[..., 1:, :] - poses[..., :-1, :]
    return xp.concatenate([change[..., :3], turn, change[..., 6:]], -1)


def apply_action(poses, actions, xp=np):
    """Move poses by actions; the inverse of `pose_deltas`.

    Args:
        poses: `[..., 7]`.
        actions: `[..., 7]`.
        xp: array library.

    Returns:
        `[..., 7]`; the gripper is clipped to [0, 1].

    Source: notebooks/utils/world_model_wrapper.py
    """
    turned = product(euler_to_matrix(actions[..., 3:6], xp), euler_to_matrix(poses[..., 3:6], xp))
    gripper = xp.clip(poses[..., 6:] + actions[..., 6:], *GRIPPER_RANGE)
    return xp.concatenate([poses[..., :3] + actions[..., :3], matrix_to_euler(turned, xp), gripper], -1)


def to_camera_frame(poses, extrinsics, xp=np):
    """Express poses relative to a camera instead of the robot's base.

    Args:
        poses: `[..., 7]`, in the base frame.
        extrinsics: `[..., 6]`, poses of the camera in the base frame.
        xp: array library.

    Returns:
        `[..., 7]`, in the camera frame; the gripper stays.

    Source: app/vjepa_droid/droid.py
    """
    back = xp.swapaxes(euler_to_matrix(extrinsics[..., 3:6], xp), -1, -2)
    offset = (poses[..., :3] - extrinsics[..., :3])[..., None]
    angles = matrix_to_euler(product(back, euler_to_matrix(poses[..., 3:6], xp)), xp)
    return xp.concatenate([product(back, offset)[..., 0], angles, poses[..., 6:]], -1)


def rotation_steps(angles, xp=np):
    """Measure how far consecutive orientations are apart.

    Args:
        angles: `[..., n, 3]`, extrinsic xyz, radians.
        xp: array library.

    Returns:
        `[..., n - 1]`, the angle of the single rotation between them, radians in [0, pi].
    """
    return matrix_steps(euler_to_matrix(angles, xp), xp)


def matrix_steps(matrices, xp=np):
    """Measure how far consecutive rotation matrices `[..., n, 3, 3]` are apart; as `rotation_steps`."""
    # The chord between two rotations keeps its precision where they are alike.
    chord = xp.sqrt(((matrices[..., 1:, :, :] - matrices[..., :-1, :, :]) ** 2).sum((-1, -2)))
    return 2 * xp.arcsin(xp.clip(chord / 8**0.5, 0, 1))
