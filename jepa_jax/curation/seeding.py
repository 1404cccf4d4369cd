"""Where k-means begins."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jepa_jax.training.sharding import BATCH_AXES, replicated

INITS = ("auto", "k-means++", "random")
# More clusters than this are begun at random: one after the other would take too long.
_MAX_PLUS_PLUS = 4096
# Vectors that k-means++ looks at: per cluster, at least and at most.
_SEEN_PER_CLUSTER, _MIN_SEEN, _MAX_SEEN = 16, 4096, 2**16


def first_centroids(vectors, spec, mesh):
    """Choose the first centroids among the vectors.

    Args:
      vectors, spec, mesh: as in `kmeans.cluster`.

    Returns:
      float32 `[K, D]`.

    Raises:
      ValueError: if the init is unknown.
    """
    if spec.init not in INITS:
        raise ValueError(f"init {spec.init!r} is unknown; choose one of {', '.join(INITS)}")
    rng = np.random.default_rng(spec.seed)
    plus_plus = spec.init == "k-means++" or (spec.init == "auto" and spec.clusters <= _MAX_PLUS_PLUS)
    if not plus_plus:
        return vectors.take(np.sort(rng.choice(len(vectors), spec.clusters, replace=False)))
    seen = max(_MIN_SEEN, min(_SEEN_PER_CLUSTER * spec.clusters, _MAX_SEEN), spec.clusters)
    seen = min(len(vectors), seen)
    points = vectors.take(np.sort(rng.choice(len(vectors), seen, replace=False)))
    # Copies of the first point, which is never drawn twice, fill up what does not divide.
    padding = -len(points) % mesh.size
    points = np.concatenate([points, np.repeat(points[:1], padding, axis=0)])
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    points = jax.make_array_from_callback(points.shape, sharding, lambda index: points[index])
    trials = 2 + int(np.log(spec.clusters))
    return np.asarray(_plus_plus(points, jax.random.key(spec.seed), spec.clusters, trials, replicated(mesh)))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _plus_plus(points, key, clusters, trials, sharding):
    """Draw centroids one by one, far from those before; of some candidates the one that helps most."""

    def distances(rows):
        products = jnp.dot(rows, points.T, precision=jax.lax.Precision.HIGH)
        return jnp.maximum(jnp.sum(rows**2, 1)[:, None] + jnp.sum(points**2, 1) - 2 * products, 0)

    def add(number, state):
        centroids, nearest = state
        odds = jnp.where(number == 0, 0.0, jnp.log(nearest))
        ids = jax.random.categorical(jax.random.fold_in(key, number), odds, shape=(trials,))
        candidates = points[ids]
        left = jnp.minimum(nearest, distances(candidates))
        best = jnp.argmin(left.sum(axis=1))
        return centroids.at[number].set(candidates[best]), left[best]

    start = jnp.zeros((clusters, points.shape[1])), jnp.full(len(points), jnp.inf)
    return jax.lax.with_sharding_constraint(jax.lax.fori_loop(0, clusters, add, start)[0], sharding)
