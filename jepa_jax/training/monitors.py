"""Signs of collapse: how much of its space the representation uses."""

import jax
import jax.numpy as jnp


def effective_rank(features):
    """Compute RankMe, the exponential of the entropy of the normalised singular values.

    Args:
      features: float32 `[n, D]`.

    Returns:
      float32 scalar between 1 and min(n, D).

    Source: Garrido et al. 2023 (arXiv 2210.02885), equation 1.
    """
    values = jnp.linalg.svd(features, compute_uv=False)
    shares = values / jnp.maximum(values.sum(), 1e-12)
    return jnp.exp(-jnp.sum(shares * jnp.log(shares + 1e-7)))


def collapse_metrics(targets, predictions):
    """Summarise a sample of target latents and their predictions.

    Args:
      targets, predictions: float `[n, D]`.

    Returns:
      dict of float32 scalars: standard deviation over the sample (mean and minimum over
      dimensions), effective rank, and mean cosine between prediction and target.
    """
    metrics = {}
    targets, predictions = targets.astype(jnp.float32), predictions.astype(jnp.float32)
    for name, x in (("target", targets), ("prediction", predictions)):
        std = jnp.std(x, axis=0)
        metrics[f"collapse/{name}_std"] = std.mean()
        metrics[f"collapse/{name}_std_min"] = std.min()
        metrics[f"collapse/{name}_rank"] = effective_rank(x)
    product = jnp.sum(targets * predictions, axis=-1)
    norms = jnp.linalg.norm(targets, axis=-1) * jnp.linalg.norm(predictions, axis=-1)
    metrics["collapse/cosine"] = jnp.mean(product / jnp.maximum(norms, 1e-12))
    return metrics


@jax.jit
def collapse_metrics_jit(samples):
    """Compiled `collapse_metrics` of a dict with keys `targets` and `predictions`."""
    return collapse_metrics(samples["targets"], samples["predictions"])
