"""Cut training samples out of robot trajectories: frames, states and actions that belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jepa_jax.data import poses
from jepa_jax.data.errors import DataError
from jepa_jax.data.trajectories import TrajectoryRecord
from jepa_jax.data.video import decode_frame_list


class TrajectoryClip(NamedTuple):
    """Hold one sample of T frames.

    Args:
        frames: T uint8 `[H, W, 3]` RGB pictures.
        states: float32 `[T, S]`.
        actions: float32 `[T - 1, A]`, what leads from one state to the next.
        extrinsics: float32 `[T, 6]`, or None where the camera's pose is not known.
        view: number of the view in the record.
        indices: int64 `[T]`, native frames.
    """

    frames: list[np.ndarray]
    states: np.ndarray
    actions: np.ndarray
    extrinsics: np.ndarray | None
    view: int
    indices: np.ndarray


def trajectory_step(native_fps: float, fps: float) -> int:
    """Return native frames per sampled frame.

    Args:
        native_fps: rate of the trajectory, frames per second.
        fps: sampling rate, frames per second.

    Returns:
        The step, at least 1.

    Source: app/vjepa_droid/droid.py
    """
    # Parity: the ratio is rounded up; pretraining rounds the native rate up and the ratio down.
    return max(1, math.ceil(native_fps / fps))


def trajectory_indices(num_frames: int, native_fps: float, *, frames: int, fps: float, uniform: float) -> np.ndarray:
    """Choose the frames of one sample.

    Args:
        num_frames: frames of the trajectory.
        native_fps: its rate, frames per second.
        frames: frames of the sample.
        fps: sampling rate, frames per second.
        uniform: in [0, 1), places the window.

    Returns:
        int64 `[frames]`, ascending in equal steps.

    Raises:
        DataError: 'too short', for a trajectory that is not longer than the window.

    Source: app/vjepa_droid/droid.py
    """
    step = trajectory_step(native_fps, fps)
    window = frames * step
    # Parity: a trajectory exactly as long as its window counts as too short.
    if num_frames <= window:
        raise DataError(
            "too short",
            f"{num_frames} frames at {native_fps:g}/s; {frames} frames at {fps:g}/s are {step} apart and need more "
            f"than {window}",
        )
    # Parity: the last frame is never the end of the window, which itself is left out.
    end = window + math.floor(uniform * (num_frames - window))
    return np.arange(end - window, end, step)


def sample_trajectory(
    record: TrajectoryRecord,
    *,
    frames: int,
    fps: float,
    uniforms: Sequence[float],
    views: Sequence[str] | None = None,
    camera_frame: bool = False,
) -> TrajectoryClip:
    """Cut one sample out of a trajectory, by the record's own sampling rate.

    Args:
        record: the trajectory.
        frames: frames of the sample, at least 2.
        fps: sampling rate, frames per second.
        uniforms: two numbers in [0, 1): the first chooses the view, the second the window.
        views: names to choose from; all of the record's if None.
        camera_frame: express states, and so actions, relative to the camera.

    Returns:
        The sample.

    Raises:
        DataError: 'missing view', 'too short', 'no extrinsics'; or the video
            cannot be decoded.

    Source: app/vjepa_droid/droid.py
    """
    names = [view.name for view in record.views]
    wanted = list(views) if views is not None else names
    name = wanted[math.floor(uniforms[0] * len(wanted))]
    if name not in names:
        raise DataError("missing view", f"{record.source_id}: no view {name!r}; there are {', '.join(names)}")
    view = record.views[names.index(name)]
    try:
        indices = trajectory_indices(
            record.num_frames, record.sampling_fps, frames=frames, fps=fps, uniform=uniforms[1]
        )
    except DataError as error:
        raise DataError(error.reason, f"{record.source_id}: {error}") from error
    states = record.states[indices].astype(np.float64)
    extrinsics = None if view.extrinsics is None else view.extrinsics[indices]
    if camera_frame:
        if extrinsics is None or record.rotation == "none":
            raise DataError("no extrinsics", f"{record.source_id}: view {name!r} has no camera pose, or states no pose")
        states = poses.to_camera_frame(states, extrinsics.astype(np.float64))
    try:
        pictures = decode_frame_list(view.data, indices)
    except IndexError as error:
        raise DataError("fewer frames than stated", f"{record.source_id}: {error}") from error
    actions = _actions(record, states)
    return TrajectoryClip(
        pictures, states.astype(np.float32), actions.astype(np.float32), extrinsics, names.index(name), indices
    )


def _actions(record: TrajectoryRecord, states: np.ndarray) -> np.ndarray:
    """Derive what leads from state to state: recorded commands are for one native step, whatever is sampled."""
    return np.diff(states, axis=0) if record.rotation == "none" else poses.pose_deltas(states)
