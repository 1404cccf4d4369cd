"""Pixel normalisation, done on the device so that frames travel as uint8."""

import jax
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


def erase_boxes(video, boxes, seeds):
    """Fill one box of every clip with noise, the last step of random erasing.

    Args:
      video: float32 `[B, F, H, W, 3]`, normalised.
      boxes: int32 `[B, 4]`, (top, left, height, width) in pixels; an empty box changes nothing.
      seeds: uint32 `[B]`, of the noise, one per clip.

    Returns:
      float32 `[B, F, H, W, 3]` with standard normal numbers in the boxes, other ones in every
      frame, pixel and channel.

    Source: src/datasets/utils/video/randerase.py
    """
    def erase(clip, box, seed):
        top, left, height, width = box
        rows, columns = jnp.arange(clip.shape[1]), jnp.arange(clip.shape[2])
        inside = ((rows >= top) & (rows < top + height))[:, None] & ((columns >= left) & (columns < left + width))
        return jnp.where(inside[:, :, None], jax.random.normal(jax.random.key(seed), clip.shape, clip.dtype), clip)

    return jax.vmap(erase)(video, boxes, seeds)
