"""Random erasing: where the box of noise goes."""

from __future__ import annotations

import math

import numpy as np

ATTEMPTS = 100
# Part of the frame's area, and height over width, drawn evenly in its logarithm.
AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)


def erase_box(height: int, width: int, uniforms: np.ndarray) -> tuple[int, int, int, int]:
    """Choose the box that random erasing fills with noise in every frame of a clip.

    Args:
        height, width: size of the clip, pixels.
        uniforms: `[ATTEMPTS, 4]` numbers in [0, 1): area, aspect, row and column of
            each attempt.

    Returns:
        (top, left, height, width), pixels; all 0 when no attempt fits.

    Source: src/datasets/utils/video/randerase.py
    """
    log_low, log_high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for area_u, aspect_u, row_u, column_u in np.asarray(uniforms, np.float64).tolist():
        area = (AREA[0] + area_u * (AREA[1] - AREA[0])) * height * width
        aspect = math.exp(log_low + aspect_u * (log_high - log_low))
        box_h, box_w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        # Parity: a box as high or as wide as the frame is refused.
        if box_h < height and box_w < width:
            top = math.floor(row_u * (height - box_h + 1))
            left = math.floor(column_u * (width - box_w + 1))
            return top, left, box_h, box_w
    return 0, 0, 0, 0


def draw_box(probability: float, size: int, rng: np.random.Generator) -> tuple[tuple[int, int, int, int], int]:
    """Draw the box that becomes noise, empty for most clips, and the seed of the noise.

    Args:
        probability: that a clip gets a box; 0 draws nothing.
        size: side of the clip, pixels.
        rng: consumed.

    Returns:
        ((top, left, height, width), seed).
    """
    if not probability:
        return (0, 0, 0, 0), 0
    chosen, uniforms, seed = rng.random(), rng.random((ATTEMPTS, 4)), int(rng.integers(2**32))
    return (erase_box(size, size, uniforms) if chosen < probability else (0, 0, 0, 0)), seed
