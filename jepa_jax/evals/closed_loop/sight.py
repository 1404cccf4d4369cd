"""How policies see: frames to latents, by a trained encoder, an untrained one, or none at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jepa_jax.models import world_model
from jepa_jax.models.norms import normalize_latents

TRAINED, UNTRAINED, PATCHES = KINDS = ("trained", "untrained", "patches")


class Sight(NamedTuple):
    """See frames.

    Attributes:
      name: one of `KINDS`.
      see: (params, uint8 `[B, H, W, 3]`) -> float32 `[B, h*w, D]`, every latent normalised. Pure.
      params: pytree.
      grid: (h, w).
      size: side of the frames, pixels.
    """

    name: str
    see: Callable
    params: Any
    grid: tuple[int, int]
    size: int


def make_sight(kind, model, params, *, seed=0):
    """Make a way to see that gives as many latents as a model's encoder does.

    Args:
      kind: 'trained'; 'untrained' (the same encoder with new weights), or 'patches' (the pixels of a patch are its latent).
      model: `jepa_jax.weights.model.Model` with an encoder.
      params: its parameters.
      seed: of new weights.

    Returns:
      `Sight`.

    Raises:
      ValueError: the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no encoder {kind!r}; allowed: {', '.join(KINDS)}")
    encoder, pre = model.encoder, model.preprocessing
    size = pre.crop_size
    if kind == PATCHES:
        return patch_sight(size, encoder.patch_size)
    grid = (size // encoder.patch_size,) * 2

    def see(params, frames):
        mean, std = (jnp.array(numbers, jnp.float32) for numbers in (pre.mean, pre.std))
        return world_model.encode_frames(encoder, params, frames[:, None], mean=mean, std=std)[:, 0]

    weights = params["encoder"] if kind == TRAINED else new_weights(encoder, seed)
    return Sight(kind, see, weights, grid, size)


def patch_sight(size=64, patch=8):
    """See raw pixels: the latents of square frames are their patches, each normalised.

    Args:
      size, patch: sides of frames and patches, pixels.

    Returns:
      `Sight`.
    """
    return Sight(PATCHES, lambda _, frames: _cut(frames, patch), (), (size // patch,) * 2, size)


def new_weights(encoder, seed):
    """Draw the weights of an encoder that was never trained."""
    shape = (1, encoder.tubelet_size, encoder.patch_size, encoder.patch_size, 3)
    return jax.jit(lambda key: encoder.init(key, jnp.zeros(shape))["params"])(jax.random.key(seed))


def _cut(frames, patch):
    """Cut frames into patches and normalise each of them."""
    count, height, width, channels = frames.shape
    parts = frames.astype(jnp.float32).reshape(count, height // patch, patch, width // patch, patch, channels) / 255
    return normalize_latents(jnp.moveaxis(parts, 3, 2).reshape(count, -1, patch * patch * channels))
