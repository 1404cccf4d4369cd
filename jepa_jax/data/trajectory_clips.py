"""Cut training samples out of robot trajectories: frames, states and actions that belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jepa_jax.data.errors import DataError
from jepa_jax.data.trajectories import TrajectoryRecord
from jepa_jax.data.video import decode_frame_list


# Part by which a trajectory may be slower than what is asked of it: rates are measured, and rounded.
_RATE_TOLERANCE = 0.1


class TrajectoryClip(NamedTuple):
    """Hold one sample of T frames, its numbers as recorded.

    Args:
        frames: T uint8 `[H, W, 3]` RGB pictures, or None where latents are stored.
        latents: bfloat16 `[T, N, D]` features, or None where there are pictures.
        states: float32 `[T, S]`.
        recorded: float32 `[R, A]`, the recorded actions of all rows from the first sampled frame to
            the one before the last, or None.
        extrinsics: float32 `[T, 6]`, or None where the camera's pose is not known.
        view: number of the view in the record.
        indices: int64 `[T]`, native frames.
    """

    frames: list[np.ndarray] | None
    latents: np.ndarray | None
    states: np.ndarray
    recorded: np.ndarray | None
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

    Raises:
        DataError: 'rate too low', for a trajectory that has fewer frames per second.

    Source: app/vjepa_droid/droid.py
    """
    if native_fps * (1 + _RATE_TOLERANCE) < fps:
        raise DataError(
            "rate too low", f"{native_fps:g} frames per second were recorded, {fps:g} are wanted; take no more than that"
        )
    # Parity: the ratio is rounded up; pretraining rounds the native rate up and the ratio down.
    return max(1, math.ceil(native_fps / fps))


def trajectory_indices(
    num_frames: int,
    native_fps: float,
    *,
    frames: int,
    fps: float,
    uniform: float,
    stored: Sequence[int] | None = None,
) -> np.ndarray:
    """Choose the frames of one sample.

    Args:
        num_frames: frames of the trajectory.
        native_fps: its rate, frames per second.
        frames: frames of the sample.
        fps: sampling rate, frames per second.
        uniform: in [0, 1), places the window.
        stored: frames to choose from, ascending; None for all.

    Returns:
        int64 `[frames]`, ascending in equal steps.

    Raises:
        DataError: 'too short', for a trajectory that is not longer than the window; 'rate not
            stored', where frames at that rate are not among those stored; or as in `trajectory_step`.

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
    starts, offsets = np.arange(num_frames - window), np.arange(0, window, step)
    if stored is not None:
        starts = starts[np.isin(starts[:, None] + offsets, stored).all(axis=1)]
        if not len(starts):
            raise DataError("rate not stored", f"no {frames} frames that are {step} apart have stored latents")
    return starts[math.floor(uniform * len(starts))] + offsets


def sample_trajectory(
    record: TrajectoryRecord,
    *,
    frames: int,
    fps: float,
    uniforms: Sequence[float],
    views: Sequence[str] | None = None,
) -> TrajectoryClip:
    """Cut one sample out of a trajectory, by the record's own sampling rate.

    Args:
        record: the trajectory.
        frames: frames of the sample, at least 2.
        fps: sampling rate, frames per second.
        uniforms: two numbers in [0, 1): the first chooses the view, the second the window.
        views: names to choose from; all of the record's if None.

    Returns:
        The sample.

    Raises:
        DataError: 'missing view', 'too short', 'rate not stored', 'rate too low'; or the video cannot be decoded.

    Source: app/vjepa_droid/droid.py
    """
    names = [view.name for view in record.views]
    wanted = list(views) if views is not None else names
    name = wanted[math.floor(uniforms[0] * len(wanted))]
    if name not in names:
        raise DataError("missing view", f"{record.source_id}: no view {name!r}; there are {', '.join(names)}")
    view = record.views[names.index(name)]
    stored = None if view.latents is None else view.latents.frames
    try:
        indices = trajectory_indices(
            record.num_frames, record.sampling_fps, frames=frames, fps=fps, uniform=uniforms[1], stored=stored
        )
        pictures = decode_frame_list(view.data, indices) if view.latents is None else None
    except DataError as error:
        raise DataError(error.reason, f"{record.source_id}: {error}") from error
    except IndexError as error:
        raise DataError("fewer frames than stated", f"{record.source_id}: {error}") from error
    return TrajectoryClip(
        pictures,
        None if view.latents is None else view.latents.rows(indices),
        record.states[indices],
        None if record.actions is None else record.actions[indices[0] : indices[-1]],
        None if view.extrinsics is None else view.extrinsics[indices],
        names.index(name),
        indices,
    )
