"""Distances between predicted and target latents."""

import jax.numpy as jnp

from jepa_jax.models.norms import normalize_latents
from jepa_jax.models.precision import widen


def latent_loss(predictions, targets, *, exponent=1.0, weights=None):
    """Average |prediction - target|^exponent / exponent in float32 or wider.

    Args:
      predictions, targets: `[..., B, K, D]`; leading axes may hold levels.
      exponent: 1 for L1.
      weights: float `[..., B, K]` per-token weights that broadcast, or None for the plain
        mean over everything.

    Returns:
      Scalar.

    Source: app/vjepa/train.py (loss_fn).
    """
    distance = jnp.abs(widen(predictions) - widen(targets)) ** exponent / exponent
    per_token = distance.mean(axis=-1)
    if weights is None:
        return per_token.mean()
    weights = jnp.broadcast_to(weights, per_token.shape)
    return jnp.sum(per_token * weights) / jnp.sum(weights)


def correlation_loss(latents):
    """Measure how far the channels are from being uncorrelated and of equal variance, in float32 or wider.

    Short runs on few scenes let the latents shrink to a handful of directions, those that are easiest to
    predict; what is small in the picture goes first. Every latent is normalised before, so its scale does not
    matter.

    Args:
      latents: `[..., D]`; many more latents than channels.

    Returns:
      Scalar: the squared entries of (covariance - identity), summed, over D. 0 when all directions are used
      alike, D - 1 or so when a single one is.
    """
    width = latents.shape[-1]
    rows = normalize_latents(widen(latents)).reshape(-1, width)
    rows = rows - rows.mean(axis=0)
    covariance = rows.T @ rows / len(rows)
    return jnp.square(covariance - jnp.eye(width, dtype=rows.dtype)).sum() / width
