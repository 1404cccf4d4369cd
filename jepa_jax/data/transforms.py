"""Crops and resizes of frames, with every random choice made by given uniforms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

CROP_ATTEMPTS = 10


def random_crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    uniforms: np.ndarray,
) -> tuple[int, int, int, int]:
    """Choose the box of a random resized crop.

    Args:
        height, width: size of the frame, pixels.
        scale: smallest and largest part of the frame's area.
        aspect: smallest and largest width/height; drawn evenly in its logarithm.
        uniforms: `[CROP_ATTEMPTS, 4]` numbers in [0, 1): area, aspect, row and
            column of each attempt.

    Returns:
        (top, left, height, width), pixels. When no attempt fits the frame, the
        largest centered box, as `centered_crop_box`.

    Source: src/datasets/utils/video/transforms.py
    """
    log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
    for area_u, aspect_u, row_u, column_u in np.asarray(uniforms, np.float64).tolist():
        area = (scale[0] + area_u * (scale[1] - scale[0])) * height * width
        ratio = math.exp(log_low + aspect_u * (log_high - log_low))
        box_w = round(math.sqrt(area * ratio))
        box_h = round(math.sqrt(area / ratio))
        if 0 < box_w <= width and 0 < box_h <= height:
            top = math.floor(row_u * (height - box_h + 1))
            left = math.floor(column_u * (width - box_w + 1))
            return top, left, box_h, box_w
    return centered_crop_box(height, width, aspect)


def centered_crop_box(height: int, width: int, aspect: tuple[float, float]) -> tuple[int, int, int, int]:
    """Choose the largest centered box whose aspect lies in range.

    Args:
        height, width: size of the frame, pixels.
        aspect: smallest and largest width/height.

    Returns:
        (top, left, height, width), pixels.

    Source: src/datasets/utils/video/transforms.py
    """
    ratio = width / height
    if ratio < aspect[0]:
        box_w, box_h = width, min(height, round(width / aspect[0]))
    elif ratio > aspect[1]:
        box_w, box_h = min(width, round(height * aspect[1])), height
    else:
        box_w, box_h = width, height
    return (height - box_h) // 2, (width - box_w) // 2, box_h, box_w


def crop_resize(frames: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Cut a box out of every frame and resize it, bilinear, without antialiasing.

    Args:
        frames: uint8 or float32 `[T, H, W, C]`.
        box: (top, left, height, width), pixels.
        size: side of the square result, pixels.

    Returns:
        float32 `[T, size, size, C]` in the units of `frames`, half-pixel centres.

    Source: src/datasets/utils/video/transforms.py
    """
    return crop_resize_moving(frames, [box] * len(frames), size)


def crop_resize_moving(frames: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Cut one box per frame and resize it, as `crop_resize`.

    Args:
        frames: uint8 or float32 `[T, H, W, C]`.
        boxes: int `[T, 4]`, (top, left, height, width) in pixels.
        size: side of the square result, pixels.

    Returns:
        float32 `[T, size, size, C]`.
    """
    return np.stack([resized.copy() for resized in _resized_crops(frames, boxes, size)])


def crop_resize_uint8(frames: Sequence[np.ndarray], box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Do as `crop_resize`, then round to the nearest grey level.

    Args:
        frames: uint8 `[T, H, W, C]`, or a list of T frames.
        box: (top, left, height, width), pixels.
        size: side of the square result, pixels.

    Returns:
        uint8 `[T, size, size, C]`.
    """
    return crop_resize_moving_uint8(frames, [box] * len(frames), size)


def crop_resize_moving_uint8(frames: Sequence[np.ndarray], boxes: np.ndarray, size: int) -> np.ndarray:
    """Do as `crop_resize_moving`, then round to the nearest grey level; uint8 `[T, size, size, C]`."""
    out = np.empty((len(frames), size, size, frames[0].shape[-1]), np.uint8)
    for target, resized in zip(out, _resized_crops(frames, boxes, size), strict=True):
        # Rounds half to even, like numpy, in a third of the time.
        cv2.convertScaleAbs(resized, dst=target)
    return out


def _resized_crops(
    frames: Sequence[np.ndarray], boxes: Sequence[Sequence[int]], size: int
) -> Iterator[np.ndarray]:
    """Yield float32 `[size, size, C]` per frame, in one buffer that is used again."""
    buffer = np.empty((size, size, frames[0].shape[-1]), np.float32)
    for frame, (top, left, height, width) in zip(frames, boxes, strict=True):
        # Floats before the resize: OpenCV's integer path has 11-bit weights.
        crop = frame[top : top + height, left : left + width].astype(np.float32)
        yield cv2.resize(crop, (size, size), dst=buffer, interpolation=cv2.INTER_LINEAR)


def motion_boxes(first: np.ndarray, last: np.ndarray, frames: int) -> np.ndarray:
    """Move a box linearly from the first frame to the last.

    Args:
        first, last: int `[4]` boxes (top, left, height, width), pixels.
        frames: number of frames.

    Returns:
        int `[frames, 4]`, truncated to whole pixels.

    Source: src/datasets/utils/video/transforms.py
    """
    first, last = np.asarray(first, np.float32), np.asarray(last, np.float32)
    # Parity: float32, from both ends to the middle, decides which of two pixels a rounded-off
    # number is truncated to.
    step = (last - first) / np.float32(max(1, frames - 1))
    places = np.arange(frames, dtype=np.float32)[:, None]
    rising, falling = first + step * places, last - step * places[::-1]
    return np.where(places < max(1, frames // 2), rising, falling).astype(np.int64)


def flip_in_place(frames: np.ndarray) -> None:
    """Mirror frames `[T, H, W, C]` left to right."""
    for frame in frames:
        # NumPy needs ten times as long to copy a mirrored view.
        cv2.flip(frame, 1, dst=frame)


def eval_resize(frames: np.ndarray, short_side: int) -> np.ndarray:
    """Resize so that the short side is `short_side`, bilinear, without antialiasing.

    Args:
        frames: uint8 `[T, H, W, 3]`.
        short_side: pixels.

    Returns:
        uint8 `[T, H', W', 3]`; the long side is int(short_side * long / short).

    Source: src/datasets/utils/video/functional.py
    """
    height, width = frames.shape[1:3]
    if width < height:
        size = (short_side, int(short_side * height / width))
    else:
        size = (int(short_side * width / height), short_side)
    if size == (width, height):
        return frames
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in frames])


def center_crop(frames: np.ndarray, size: int) -> np.ndarray:
    """Cut the central square out of every frame.

    Args:
        frames: `[T, H, W, C]`.
        size: side of the square, pixels.

    Returns:
        `[T, size, size, C]`, a view; offsets are rounded half to even.

    Raises:
        ValueError: the frame is smaller than the square.
    """
    height, width = frames.shape[1:3]
    if size > min(height, width):
        raise ValueError(f"a centre crop of {size} pixels does not fit frames of {height}x{width}; resize first")
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return frames[:, top : top + size, left : left + size]


def spatial_views(frames: np.ndarray, size: int, num_views: int) -> list[np.ndarray]:
    """Resize the short side to `size` and cut evenly spaced squares along the long side.

    Args:
        frames: uint8 `[T, H, W, 3]`.
        size: side of the squares, pixels.
        num_views: how many; one view is the first, at offset 0.

    Returns:
        `num_views` arrays uint8 `[T, size, size, 3]`.

    Source: evals/video_classification_frozen/utils.py
    """
    frames = eval_resize(frames, size)
    height, width = frames.shape[1:3]
    step = (max(height, width) - size) // (num_views - 1) if num_views > 1 else 0
    if width >= height:
        return [frames[:, :size, i * step : i * step + size] for i in range(num_views)]
    return [frames[:, i * step : i * step + size, :size] for i in range(num_views)]
