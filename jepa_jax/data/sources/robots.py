"""What all sources of robot trajectories share: checks of rows and rates, and the spec they build on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jepa_jax.data import trajectories
from jepa_jax.data.conversion import Noted
from jepa_jax.data.encoding import Encoding
from jepa_jax.data.errors import DataError, RecordError
from jepa_jax.data.poses import GRIPPER_RANGE
from jepa_jax.data.sources.angles import check_turns, find_wraps, seems_reversed
from jepa_jax.data.trajectories import TrajectoryRecord
from jepa_jax.data.trajectory_clips import trajectory_step

POSE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
POSE_UNITS = ("m", "m", "m", "rad", "rad", "rad", "closedness")
# Rates that differ by a smaller part are the same: clocks of robots jitter.
_SAME_RATE = 0.02
# A step between rows that is so many times longer than usual is a gap.
_GAP = 2.0
# What the released recipe samples: frames, and frames per second.
_USUAL_FRAMES, _USUAL_FPS = 8, 4.0


@dataclass(frozen=True)
class TrajectorySpec(Encoding):
    """Say how trajectories are stored and which are refused; sources add their own settings.

    Args:
        size, gop, crf: of the videos, as in `Encoding`.
        min_frames: shorter trajectories are skipped.
        max_turn: fastest believable rotation of the end effector, rad/s.
        max_gap: longest believable time between two rows, seconds.
    """

    kind: ClassVar[str] = trajectories.KIND
    min_frames: int = 8
    max_turn: float = 10.0
    max_gap: float = 1.0

    def checked(self, record: TrajectoryRecord, notes: Sequence[str] = ()) -> Noted:
        """Return a record that is fit for training, with what is odd about it.

        Args:
            record: of a source; with a gripper_range, its gripper is as recorded, and will be a closedness.
            notes: what the source found odd.

        Raises:
            DataError: 'too short', 'states not finite', 'actions not finite', 'angles not in radians',
                'implausible rotation', 'unknown gripper', 'inconsistent trajectory'.
        """
        name = record.source_id
        if record.num_frames < self.min_frames:
            raise DataError(
                "too short",
                f"{name}: {record.num_frames} frames; at least {self.min_frames} are wanted (--min-frames)",
            )
        check_finite(name, "states", record.states)
        check_finite(name, "actions", record.actions)
        notes = list(notes)
        if record.rotation != "none":
            angles = record.states[:, 3:6].astype(np.float64)
            check_turns(name, angles, record.control_rate, self.max_turn)
            if seems_reversed(angles):
                notes.append("the third angle stays near pi as a roll does: is their order yaw, pitch, roll?")
        notes += _wrap_notes(record) + _sampling_notes(record)
        views = tuple(
            view if view.extrinsics is None or np.isfinite(view.extrinsics).all() else view._replace(extrinsics=None)
            for view in record.views
        )
        if any(new is not old for new, old in zip(views, record.views, strict=True)):
            notes.append("extrinsics of a view are not finite, so left out")
        record = _with_closedness(record._replace(views=views))
        try:
            trajectories.to_fields(record)
        except RecordError as error:
            raise DataError("inconsistent trajectory", str(error)) from error
        return Noted(record, tuple(notes))

    def check_times(self, name: str, seconds: np.ndarray, rate: float) -> list[str]:
        """Look for gaps between rows.

        Args:
            name: of the trajectory, for messages.
            seconds: float64 `[L]`, time of each row.
            rate: rows per second.

        Returns:
            Notes.

        Raises:
            DataError: 'time gap'.
        """
        steps = np.diff(seconds)
        longest = int(steps.argmax()) if len(steps) else 0
        limit = max(self.max_gap, _GAP / rate)
        if len(steps) and not steps[longest] <= limit:
            raise DataError(
                "time gap",
                f"{name}: {steps[longest]:.3g} s lie between rows {longest} and {longest + 1} by their time stamps, at "
                f"{rate:g} rows per second (at most {limit:g} s is believed, --max-gap)",
            )
        notes = []
        if (steps * rate > _GAP).any():
            notes.append(f"time stamps have gaps of more than {_GAP:g} steps")
        if (steps < 0).any():
            notes.append("time stamps go back")
        return notes


def _wrap_notes(record: TrajectoryRecord) -> list[str]:
    """Name the numbers beside the angles of a pose that wrap: nobody knows that these are angles."""
    wraps = find_wraps(record.states.astype(np.float64))
    if record.rotation != "none":
        wraps[3:6] = False
    names = [name for name, found in zip(record.state_names, wraps, strict=True) if found]
    if not names:
        return []
    return [f"{', '.join(names)} jump by a whole turn, which plain differences take for a move: unwrap such angles first"]


def _sampling_notes(record: TrajectoryRecord) -> list[str]:
    """Say what training has to be told to sample a trajectory, where its usual settings cannot."""
    fps, notes = _USUAL_FPS, []
    try:
        step = trajectory_step(record.sampling_fps, fps)
    except DataError:
        # Rounded up: just below the rate, every second row would be taken.
        step, fps = 1, math.ceil(record.sampling_fps * 100) / 100
        notes.append(f"below {_USUAL_FPS:g} frames/s: set --config.data.fps={fps:g} in training and `prepare features --fps {fps:g}`")
    if record.num_frames <= _USUAL_FRAMES * step:
        notes.append(f"too short for samples of {_USUAL_FRAMES} frames at {fps:g}/s")
    return notes


def _with_closedness(record: TrajectoryRecord) -> TrajectoryRecord:
    """Rescale the gripper's number to 0 for open, 1 for closed, so that robots agree; unknown ranges stay unknown."""
    if record.gripper_range is None:
        return record
    places = [place for place, name in enumerate(record.state_names) if "gripper" in name.lower()]
    if not places and record.rotation != "none" and len(record.state_names) == len(POSE_NAMES):
        places = [len(POSE_NAMES) - 1]
    if not places:
        raise DataError(
            "unknown gripper",
            f"{record.source_id}: the gripper's range is given, but no number of the state is named 'gripper': "
            f"{', '.join(record.state_names)}",
        )
    opened, closed = record.gripper_range
    states, units = record.states.copy(), list(record.state_units)
    for place in places:
        states[:, place] = (states[:, place] - opened) / (closed - opened)
        units[place] = POSE_UNITS[-1]
    return record._replace(states=states, state_units=tuple(units), gripper_range=GRIPPER_RANGE)


def units_of(names: Sequence[str], posed: bool) -> tuple[str, ...]:
    """Return the units of a state: of a pose where it is one, unknown otherwise."""
    units = POSE_UNITS[:6] if posed else ()
    return units + ("",) * (len(names) - len(units))


def is_same_rate(rate: float, other: float) -> bool:
    """Tell whether two rates are one, but for the jitter of clocks."""
    return abs(rate / other - 1) <= _SAME_RATE


def snap_rate(measured: float, stated: float) -> float:
    """Return the rate that a clock meant, rows per second, so that one robot has one rate.

    Args:
        measured: by time stamps.
        stated: by a video's header; a quarter of it is usual too.

    Returns:
        A stated or whole rate that is within 2 percent, the nearest of them, or else the measured one.
    """
    nominal = min((stated, stated / 4, float(round(measured))), key=lambda rate: abs(rate - measured))
    return nominal if is_same_rate(nominal, measured) else measured


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
        tolerance: rows that may be there beyond the last frame; if any may, so may one frame beyond the last row.
    """
    if not -min(1, tolerance) <= rows - frames <= tolerance:
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
