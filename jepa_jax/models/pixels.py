"""Pixel normalisation, done on the device so that frames travel as uint8."""

import jax.numpy as jnp
import numpy as np

# ImageNet statistics in units of [0, 1]; every V-JEPA 2 network uses them.
# Source: app/vjepa/transforms.py, evals/*.
PIXEL_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
PIXEL_STD = np.array((0.229, 0.224, 0.225), np.float32)


def normalize_pixels(frames, mean=PIXEL_MEAN, std=PIXEL_STD):
    """Map 8-bit frames to the range the networks were trained on.

    Args:
      frames: uint8 (or float in 0..255) `[..., H, W, 3]`, RGB.
      mean, std: float32 `[3]`, in units of [0, 1].

    Returns:
      float32 of the same shape, by default zero mean and unit variance over ImageNet.
    """
    frames = jnp.asarray(frames, jnp.float32)
    return (frames - 255.0 * mean) / (255.0 * std)
