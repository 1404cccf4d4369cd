"""Which frames of a video make a clip."""

from __future__ import annotations

import math

import numpy as np


def frame_step(
    fps_video: float,
    *,
    frames: int,
    fps: float | None = None,
    duration: float | None = None,
    step: int | None = None,
) -> int:
    """Convert one of three ways of stating a sampling rate to a step in native frames.

    Args:
        fps_video: native rate of the video, frames per second.
        frames: frames in a clip.
        fps: sampling rate, frames per second.
        duration: length of a clip, seconds.
        step: the step itself, native frames.

    Returns:
        Native frames per sampled frame; 0 when the video is slower than asked.

    Raises:
        ValueError: not exactly one of fps, duration and step is given.

    Source: src/datasets/video_dataset.py
    """
    given = [name for name, value in (("fps", fps), ("duration", duration), ("step", step)) if value is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of fps, duration and step, got {given or 'none'}")
    if step is not None:
        return int(step)
    if not (math.isfinite(fps_video) and fps_video > 0):
        return 0
    # Parity: the official code rounds the native rate up, so 29.97 counts as 30.
    native = math.ceil(fps_video)
    if fps is not None:
        return int(native // fps)
    return int(duration * native / frames)


def sample_frame_indices(
    num_frames: int,
    fps_video: float,
    *,
    frames: int,
    num_clips: int = 1,
    fps: float | None = None,
    duration: float | None = None,
    step: int | None = None,
    allow_overlap: bool = False,
    random: bool = True,
    uniforms: np.ndarray | None = None,
) -> np.ndarray:
    """Choose the frames of `num_clips` clips from one video.

    The video is cut into `num_clips` equal partitions with one clip in each. A
    partition longer than a clip gets a window, a shorter one gives its frames in
    order and then its last frame, repeated.

    Args:
        num_frames: frames in the video.
        fps_video: its native rate, frames per second.
        frames: frames in a clip.
        num_clips: clips to choose.
        fps, duration, step: exactly one, as in `frame_step`.
        allow_overlap: let clips of a short video overlap instead of stretching.
        random: draw the window; otherwise it starts with the partition.
        uniforms: `[num_clips]` in [0, 1), to place the windows when `random`.

    Returns:
        int32 `[num_clips, frames]` frame indices, ascending in a clip.

    Raises:
        ValueError: an empty video, a step below 1, or missing uniforms.

    Source: src/datasets/video_dataset.py
    """
    if num_frames < 1 or frames < 1 or num_clips < 1:
        raise ValueError(f"num_frames, frames, num_clips are {num_frames}, {frames}, {num_clips}; each must be above 0")
    if random and (uniforms is None or np.shape(uniforms) != (num_clips,)):
        raise ValueError(f"random windows need uniforms of shape ({num_clips},), got {np.shape(uniforms)}")
    stride = frame_step(fps_video, frames=frames, fps=fps, duration=duration, step=step)
    if stride < 1:
        raise ValueError(
            f"a video of {fps_video:g} frames/s is too slow for fps={fps}, duration={duration}, step={step}: "
            "the step would be below one native frame"
        )
    span = frames * stride
    partition = num_frames // num_clips
    clips = []
    for clip in range(num_clips):
        if partition > span:
            end = span + (math.floor(float(uniforms[clip]) * (partition - span)) if random else 0)
            indices = _window(end - span, end, frames) + clip * partition
        elif not allow_overlap:
            indices = _stretched(partition, partition // stride, frames) + clip * partition
        else:
            last = min(span, num_frames) - 1
            indices = _stretched(last, last // stride, frames)
            if num_frames > span and num_clips > 1:
                indices = indices + clip * ((num_frames - span) // (num_clips - 1))
        clips.append(indices)
    return np.stack(clips).astype(np.int32)


def _window(start: int, end: int, frames: int) -> np.ndarray:
    # Parity: both ends are included and the end is then clipped, so the spacing
    # is slightly more than the step and the last frame is end - 1.
    return np.linspace(start, end, frames).clip(start, end - 1).astype(np.int64)


def _stretched(end: int, real: int, frames: int) -> np.ndarray:
    """Spread `real` indices over [0, end], then repeat the last one up to `frames`."""
    # Parity: `real` may be smaller than the video offers; the rest is padding.
    spread = np.linspace(0, end, num=real)
    padded = np.concatenate([spread, np.full(frames - real, end, np.float64)])
    return padded.clip(0, max(end - 1, 0)).astype(np.int64)
