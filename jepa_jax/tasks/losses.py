"""Distances between predicted and target latents, and between scores and classes."""

import jax
import jax.numpy as jnp
import optax

from jepa_jax.models.norms import normalize_latents
from jepa_jax.models.precision import widen

# Of a variance, which keeps the slope of its root finite.
_TIP = 1e-6


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


def variance_loss(latents):
    """Measure how much the deviations of the channels fall short of 1, in float32 or wider.

    Where all latents are alike `correlation_loss` is flat, as it is quadratic in how they differ, so that nothing there
    leads back; this is steepest there.

    Args:
      latents: `[..., D]`; normalised before use.

    Returns:
      Scalar: the squared differences from 1, averaged over channels. 1 where all latents are alike.
    """
    rows = normalize_latents(widen(latents)).reshape(-1, latents.shape[-1])
    return jnp.square(1 - jnp.sqrt(rows.var(axis=0) + _TIP)).mean()


def focal_loss(logits, labels, *, alpha=0.25, gamma=2.0):
    """Compute the sigmoid focal loss: every class is a question of its own, and easy ones count little.

    Args:
      logits: `[..., C]`.
      labels: int `[...]`, the class that is true.
      alpha: weight of the true class, 1 - alpha of all others; negative for no weights.
      gamma: how fast answers stop to count as they become right; 0 is the binary cross-entropy.

    Returns:
      float32 or wider `[..., C]`, not summed. Officially it is, over classes and batch.

    Source: evals/action_anticipation_frozen/losses.py.
    """
    logits = widen(logits)
    truth = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    entropy = optax.sigmoid_binary_cross_entropy(logits, truth)
    chance = jax.nn.sigmoid(logits)
    loss = entropy * (chance + truth - 2 * chance * truth) ** gamma
    return loss if alpha < 0 else loss * (alpha * truth + (1 - alpha) * (1 - truth))
