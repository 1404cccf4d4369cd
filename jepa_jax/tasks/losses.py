"""Distances between predicted and target latents."""

import jax.numpy as jnp

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
