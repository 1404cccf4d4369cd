"""What all sources of robot trajectories share: checks of rows and rates, and the spec they build on."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jepa_jax.data import poses, trajectories
from jepa_jax.data.encoding import Encoding
from jepa_jax.data.errors import DataError, RecordError
from jepa_jax.data.trajectories import TrajectoryRecord

POSE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
POSE_UNITS = ("m", "m", "m", "rad", "rad", "rad", "closedness")
# Beyond this an angle is in degrees, or no angle.
_MAX_ANGLE = 2 * np.pi + 0.1
# A guess must explain the jumps this much better to be named.
_BETTER = 0.5


@dataclass(frozen=True)
class TrajectorySpec(Encoding):
    """Say how trajectories are stored and which are refused; sources add their own settings.

    Args:
        size, gop, crf: of the videos, as in `Encoding`.
        min_frames: shorter trajectories are skipped.
        max_turn: fastest believable rotation of the end effector, rad/s.
    """

    kind: ClassVar[str] = trajectories.KIND
    min_frames: int = 8
    max_turn: float = 10.0

    def checked(self, record: TrajectoryRecord) -> TrajectoryRecord:
        """Return a record that is fit for training.

        Raises:
            DataError: 'too short', 'states not finite', 'actions not finite', 'extrinsics not finite',
                'angles not in radians', 'implausible rotation', 'inconsistent trajectory'.
        """
        name = record.source_id
        if record.num_frames < self.min_frames:
            raise DataError(
                "too short",
                f"{name}: {record.num_frames} frames; at least {self.min_frames} are wanted (--min-frames)",
            )
        check_finite(name, "states", record.states)
        check_finite(name, "actions", record.actions)
        for view in record.views:
            check_finite(f"{name}, view {view.name}", "extrinsics", view.extrinsics)
        if record.rotation != "none":
            _check_turns(name, record.states[:, 3:6].astype(np.float64), record.control_rate, self.max_turn)
        try:
            trajectories.to_fields(record)
        except RecordError as error:
            raise DataError("inconsistent trajectory", str(error)) from error
        return record


def check_finite(name: str, what: str, array: np.ndarray | None) -> None:
    """Raise 'WHAT not finite' if an array `[L, n]` holds NaN or infinity."""
    if array is None or np.isfinite(array).all():
        return
    rows = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
    raise DataError(
        f"{what} not finite",
        f"{name}: {len(rows)} of {len(array)} rows of {what} hold NaN or infinity, first {rows[0]}",
    )


def check_rows(name: str, view: str, rows: int, frames: int, tolerance: int = 0) -> None:
    """Raise 'rows do not match frames' unless there is one row of states for each frame of a view.

    Args:
        name: of the trajectory, for messages.
        view: name of the view.
        rows: of states.
        frames: of the video.
        tolerance: largest difference that may be cut off.
    """
    if abs(rows - frames) > tolerance:
        raise DataError(
            "rows do not match frames",
            f"{name}: {rows} rows of states, but view {view} has {frames} frames; row k must belong to frame k",
        )


def median_rate(seconds: np.ndarray) -> float | None:
    """Measure the rate of rows from their time stamps.

    Args:
        seconds: `[L]`, time of each row, seconds.

    Returns:
        Rows per second, by the median step; None if the stamps do not ascend.
    """
    steps = np.diff(seconds)
    step = float(np.median(steps)) if len(steps) else 0.0
    return 1 / step if np.isfinite(step) and step > 0 else None


def _check_turns(name: str, angles: np.ndarray, rate: float, limit: float) -> None:
    largest = float(np.abs(angles).max())
    if largest > _MAX_ANGLE:
        raise DataError(
            "angles not in radians", f"{name}: an angle is {largest:.4g}; radians lie within {_MAX_ANGLE:.2f}: degrees?"
        )
    if len(angles) < 2:
        return
    turns = poses.rotation_steps(angles)
    worst = int(turns.argmax())
    if turns[worst] * rate <= limit:
        return
    guess = _better_reading(angles, float(turns[worst]))
    raise DataError(
        "implausible rotation",
        f"{name}: between rows {worst} and {worst + 1} the end effector turns by {turns[worst]:.2f} rad, "
        f"{turns[worst] * rate:.3g} rad/s (at most {limit:g} is believed, --max-turn): the angles are damaged or are "
        f"not extrinsic xyz radians{guess}",
    )


def _better_reading(angles: np.ndarray, worst: float) -> str:
    """Name another reading of the numbers under which they turn smoothly, if there is one.

    Another order of the three rotations is not among them: every order repeats itself at its own
    lock in the same way, so it never makes jumps.
    """
    readings = {
        f"angles about x, y, z in columns {', '.join(map(str, order))}": poses.euler_to_matrix(angles[:, order])
        for order in itertools.permutations(range(3))
    }
    readings["rotation vectors"] = _vectors_to_matrices(angles)
    turns = {reading: float(poses.matrix_steps(matrices).max()) for reading, matrices in readings.items()}
    best = min(turns, key=turns.get)
    return f"; read as {best} they turn by at most {turns[best]:.2f} rad a row" if turns[best] < worst * _BETTER else ""


def _vectors_to_matrices(vectors: np.ndarray) -> np.ndarray:
    """Turn rotation vectors `[L, 3]`, rad, into matrices `[L, 3, 3]`."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    x, y, z = (vectors / np.maximum(angle[:, 0], 1e-12)).T
    zero = np.zeros_like(x)
    cross = np.stack([np.stack(row, -1) for row in ([zero, -z, y], [z, zero, -x], [-y, x, zero])], -2)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
