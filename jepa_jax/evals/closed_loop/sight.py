"""How policies see: frames to latents, by a trained encoder, an untrained one, or none at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.evals.controls import random_weights
from jepa_jax.models import world_model
from jepa_jax.models.norms import normalize_latents

TRAINED, UNTRAINED, PATCHES = KINDS = ("trained", "untrained", "patches")
# Frames that are encoded at once.
_AT_ONCE = 64


class Sight(NamedTuple):
    """See frames.

    Attributes:
      name: one of `KINDS`.
      see: (params, uint8 `[B, H, W, 3]`) -> float32 `[B, h*w, D]`, every latent normalised. Pure. Of L layers of an encoder
        `[B, h*w, L*D]`, each layer's latents normalised by themselves.
      params: pytree.
      grid: (h, w).
      size: side of the frames, pixels.
      encoder_sha256: identity of the trained encoder whose output is seen; "" where it is anything else.
    """

    name: str
    see: Callable
    params: Any
    grid: tuple[int, int]
    size: int
    encoder_sha256: str = ""


def make_sight(kind, model, params, *, seed=0, layers=()):
    """Make a way to see that gives as many latents as a model's encoder does.

    Args:
      kind: 'trained'; 'untrained' (the same encoder with new weights), or 'patches' (the pixels of a patch are its latent).
      model: `jepa_jax.weights.model.Model` with an encoder.
      params: its parameters.
      seed: of new weights.
      layers: blocks of the encoder whose outputs are seen together, -1 for the last; empty for its output alone.

    Returns:
      `Sight`.

    Raises:
      ValueError: the kind is unknown, or has not these layers.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no encoder {kind!r}; allowed: {', '.join(KINDS)}")
    encoder, pre = model.encoder, model.preprocessing
    size = pre.crop_size
    if kind == PATCHES:
        if layers:
            raise ValueError(f"layers {_text(layers)}: encoder {PATCHES!r} has none; take {TRAINED} or {UNTRAINED}")
        return patch_sight(size, encoder.patch_size)
    layers = _block_numbers(layers, encoder.depth)
    grid = (size // encoder.patch_size,) * 2

    def see(params, frames):
        mean, std = (jnp.array(numbers, jnp.float32) for numbers in (pre.mean, pre.std))
        return world_model.encode_frames(encoder, params, frames[:, None], mean=mean, std=std, layers=layers)[:, 0]

    weights = params["encoder"] if kind == TRAINED else random_weights(encoder, seed)
    plain = kind == TRAINED and not layers
    return Sight(kind, see, weights, grid, size, model.sha256["encoder"] if plain else "")


def see_all(sight, frames, read=lambda latents: latents, on_frames=lambda count: None):
    """See many frames, so many at once.

    Args:
      sight: `Sight`.
      frames: uint8 `[n, H, W, 3]`.
      read: pure function of latents `[B, h*w, D]` that says what to keep of them.
      on_frames: called with the number of frames of every batch.

    Yields:
      What `read` returns for the next frames, arrays of the device.
    """
    see = jax.jit(lambda params, frames: read(sight.see(params, frames)))
    for first in range(0, len(frames), _AT_ONCE):
        chunk = frames[first : first + _AT_ONCE]
        missing = _AT_ONCE - len(chunk)
        # Filled up, so that all have one shape.
        chunk = np.concatenate([chunk, np.zeros((missing, *chunk.shape[1:]), chunk.dtype)])
        yield see(sight.params, chunk)[: _AT_ONCE - missing]
        on_frames(_AT_ONCE - missing)


def patch_sight(size=64, patch=8):
    """See raw pixels: the latents of square frames are their patches, each normalised.

    Args:
      size, patch: sides of frames and patches, pixels.

    Returns:
      `Sight`.
    """
    return Sight(PATCHES, lambda _, frames: _cut(frames, patch), (), (size // patch,) * 2, size)


def _block_numbers(layers, depth):
    """Count layers from 0 on."""
    numbers = tuple(layer % depth for layer in layers)
    if not all(-depth <= layer < depth for layer in layers) or len(set(numbers)) < len(numbers):
        raise ValueError(f"layers {_text(layers)}: the encoder has layers 0 to {depth - 1}, -1 for the last; name each once")
    return numbers


def _text(layers):
    return ",".join(map(str, layers))


def _cut(frames, patch):
    """Cut frames into patches and normalise each of them."""
    count, height, width, channels = frames.shape
    parts = frames.astype(jnp.float32).reshape(count, height // patch, patch, width // patch, patch, channels) / 255
    return normalize_latents(jnp.moveaxis(parts, 3, 2).reshape(count, -1, patch * patch * channels))
