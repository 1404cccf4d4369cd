"""Pose arithmetic equals the official one on the golden arrays, near +-pi and gimbal lock too."""

import numpy as np
import pytest

from jepa_jax.data import poses
from parity.files import load

_SETS = ("general", "smooth", "wrap", "gimbal", "gimbaldiff")
_DTYPES = (np.float32, np.float64)


def _compare(result, expected, angles):
    """Compare positions, grippers and orientations; angles too where they are well-conditioned."""
    result, expected = np.asarray(result, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(result[..., :3], expected[..., :3], atol=1e-6)
    np.testing.assert_allclose(result[..., 6:], expected[..., 6:], atol=1e-6)
    matrices = (poses.euler_to_matrix(pose[..., 3:6]) for pose in (result, expected))
    np.testing.assert_allclose(*matrices, atol=2e-6)
    if angles:
        difference = result[..., 3:6] - expected[..., 3:6]
        np.testing.assert_allclose((difference + np.pi) % (2 * np.pi) - np.pi, 0, atol=1e-5)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("name", _SETS)
def test_poses(golden, name, dtype):
    arrays, _ = load(golden, "poses")
    states, extrinsics, actions = (
        arrays[f"in/{part}_{name}"].astype(dtype) for part in ("poses", "extrinsics", "actions")
    )
    deltas = poses.pose_deltas(states)
    assert deltas.dtype == dtype
    _compare(deltas, arrays[f"out64/diffs_{name}"], angles=name != "gimbaldiff")
    np.testing.assert_allclose(poses.euler_to_matrix(deltas[:, 3:6]), arrays[f"out/diffs_rotmat_{name}"], atol=2e-6)
    for number in range(len(states) - 1):
        pair = poses.pose_deltas(states[number : number + 2])[0]
        _compare(pair, arrays[f"out/pair_diff_{name}"][number], angles=name != "gimbaldiff")
    transformed = poses.to_camera_frame(states, extrinsics)
    _compare(transformed, arrays[f"out64/transform_{name}"], angles=not name.startswith("gimbal"))
    moved = poses.apply_action(states, actions)
    _compare(moved, arrays[f"out/new_pose_{name}"][:, 0], angles=not name.startswith("gimbal"))
