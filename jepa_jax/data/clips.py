"""Clips for a trained encoder: from a video or image file to uint8 frames of the right size."""

from __future__ import annotations

import math
import os

import numpy as np

from jepa_jax.data import sampling, transforms
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import IMAGE_SUFFIXES
from jepa_jax.data.stream import Timeline, read_timeline, stream_frames
from jepa_jax.data.video import decode_image, read_file

# Resizing a line of pixels to a usable height would fill the memory with its length.
_MAX_ELONGATION = 32


def read_clip(
    path: str | os.PathLike,
    frames: int = 64,
    size: int = 256,
    *,
    fps: float | None = None,
    step: int | None = None,
    start: float | None = None,
    crop: bool = True,
    multiple: int = 16,
    short_side: int | None = None,
) -> np.ndarray:
    """Read a video or image file as input for an encoder.

    Without `fps` and `step` the frames are spread evenly over the whole video. A
    video with too few frames ends in its last chosen frame, repeated. Videos and
    images are turned upright as the file says.

    Args:
        path: the file; by its ending an image, or else a video.
        frames: frames of the clip. An image is one frame, whatever is asked.
        size: side of the square clip, pixels; with `crop=False` the short side.
        fps: sampling rate, frames per second, rounded to a whole step in native frames;
            a video that is slower is taken frame by frame.
        step: native frames from one frame to the next.
        start: seconds from the first frame, with `fps` or `step`; centred if None.
        crop: cut the central square, as official evaluations do; otherwise keep
            everything but the borders that are no whole `multiple`.
        multiple: patch size of the encoder, pixels; used with `crop=False`.
        short_side: frames are resized to it before the crop, pixels; as official evaluations do if None.

    Returns:
        uint8 `[frames, size, size, 3]`, or `[frames, H, W, 3]` with `crop=False`, or
        `[1, ...]` for an image.

    Raises:
        DataError: the file cannot be read; its `reason` says why in two words.
        ValueError: arguments that no video could satisfy, or a start beyond the end.
    """
    _check_arguments(frames, size, fps, step, start)
    side = (short_side or resized_side(size)) if crop else size
    if is_image(path):
        return preprocess(read_image(path)[None], size if crop else None, side, multiple)
    timeline = read_timeline(path)
    if fps is None and step is None:
        indices = _spread(timeline.num_frames, frames)
    else:
        indices = _from_start(timeline, frames, sampling_step(timeline, fps, step), start)
    needed, order = np.unique(indices, return_inverse=True)
    images = [
        preprocess(image[None], size if crop else None, side, multiple)[0]
        for image in stream_frames(timeline, needed)
    ]
    return np.stack(images)[order]


def _check_arguments(frames: int, size: int, fps: float | None, step: int | None, start: float | None) -> None:
    if frames < 1 or size < 1:
        raise ValueError(f"frames is {frames} and size is {size}; both must be at least 1")
    if fps is not None and step is not None:
        raise ValueError(f"fps={fps} and step={step} both state the sampling rate; give one of them")
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps is {fps}; it must be above 0 frames per second")
    if step is not None and step < 1:
        raise ValueError(f"step is {step}; it must be at least 1 native frame")
    if start is not None and fps is None and step is None:
        raise ValueError("start needs fps or step: without them the frames are spread over the whole video")
    if start is not None and not start >= 0:
        raise ValueError(f"start is {start}; it must be at least 0 seconds")


def is_image(path: str | os.PathLike) -> bool:
    """Tell by its ending whether a file is a still image."""
    return os.fspath(path).lower().endswith(IMAGE_SUFFIXES)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image file, upright.

    Args:
        path: the file.

    Returns:
        uint8 `[H, W, 3]` RGB.

    Raises:
        DataError: 'missing file', 'unreadable file', or as in `video.decode_image`.
    """
    data = read_file(path)
    try:
        return decode_image(data)
    except DataError as error:
        raise DataError(error.reason, f"{path}: {error}") from error


def resized_side(crop_size: int) -> int:
    """Return the short side, in pixels, to which evaluations resize before a central crop.

    Source: evals/video_classification_frozen/utils.py, src/hub/preprocessor.py
    """
    return crop_size * 256 // 224


def preprocess(frames: np.ndarray, crop_size: int | None, short_side: int, multiple: int = 16) -> np.ndarray:
    """Resize and crop frames as official evaluations do: bilinear, without antialiasing.

    Args:
        frames: uint8 `[T, H, W, 3]`.
        crop_size: side of the central square, pixels; None keeps the aspect and cuts
            the borders to whole multiples.
        short_side: frames are resized to it, pixels.
        multiple: used without a crop, pixels.

    Returns:
        uint8 `[T, crop_size, crop_size, 3]`, or `[T, H', W', 3]`.

    Raises:
        DataError: 'too elongated', for frames that are next to a line.
        ValueError: the result would be empty, or smaller than the crop.
    """
    check_elongation(*frames.shape[1:3])
    frames = transforms.eval_resize(frames, short_side)
    return whole_patches(frames, multiple) if crop_size is None else transforms.center_crop(frames, crop_size)


def check_elongation(height: int, width: int) -> None:
    """Raise DataError 'too elongated' for frames, in pixels, that are next to a line."""
    if max(height, width) > _MAX_ELONGATION * min(height, width):
        raise DataError("too elongated", f"frames of {width}x{height} pixels; the long side may be {_MAX_ELONGATION} "
                        "times the short one")


def whole_patches(frames: np.ndarray, multiple: int) -> np.ndarray:
    """Cut the borders so that both sides are whole multiples.

    Args:
        frames: `[T, H, W, C]`.
        multiple: patch size, pixels.

    Returns:
        `[T, H', W', C]`, a view.

    Raises:
        ValueError: a side is less than one multiple.
    """
    height, width = (side // multiple * multiple for side in frames.shape[1:3])
    if not height or not width:
        raise ValueError(f"frames of {frames.shape[2]}x{frames.shape[1]} pixels are less than one patch of {multiple}")
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return frames[:, top : top + height, left : left + width]


def sampling_step(timeline: Timeline, fps: float | None, step: int | None) -> int:
    """Return native frames per sampled frame, at least 1.

    Args:
        timeline: of the video.
        fps, step: one of them, the other None.

    Raises:
        DataError: 'no frame rate', when a rate is asked of a video that states none.
    """
    if step is None and not timeline.fps > 0:
        raise DataError("no frame rate", f"{timeline.path}: states no frame rate; give a step in frames instead")
    return max(1, sampling.frame_step(timeline.fps, frames=1, fps=fps, step=step))


def _spread(num_frames: int, frames: int) -> np.ndarray:
    if num_frames <= frames:
        return np.minimum(np.arange(frames), num_frames - 1)
    return np.linspace(0, num_frames - 1, frames).round().astype(np.int64)


def _from_start(timeline: Timeline, frames: int, step: int, start: float | None) -> np.ndarray:
    if start is None:
        first = max(0, (timeline.num_frames - (frames - 1) * step - 1) // 2)
    else:
        first = int(np.searchsorted(timeline.times, start))
    if first >= timeline.num_frames:
        raise ValueError(f"start is {start:g} s; {timeline.path} ends with a frame at {timeline.times[-1]:.3f} s")
    sampled = np.arange(first, timeline.num_frames, step)
    return sampled[np.minimum(np.arange(frames), len(sampled) - 1)]
