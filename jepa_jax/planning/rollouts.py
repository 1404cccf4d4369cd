"""What candidates cost: roll them out through the model, so many at once as memory allows."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa_jax.training.sharding import batch_sharding


def make_score(params, root, dynamics_fn, cost_fn, spec, mesh=None, *, slopes=False):
    """Return a function from actions `[S, R, A]` to their costs.

    Args:
      params, root, dynamics_fn, cost_fn, spec, mesh: as in `search.plan`.
      slopes: return derivatives too.

    Returns:
      Function from float32 `[S, R, A]`, any S, to float32 `[S]`; with `slopes`, to (that, `[S, R, A]`).
      What is not a number is infinite.

    Raises:
      ValueError: if samples or chunks do not divide over the devices of the mesh; when called, if costs have another shape.
    """
    num_devices = 1 if mesh is None else mesh.size
    for name, count in (("samples", spec.samples if spec.iterations else 0), ("chunk", spec.chunk or 0)):
        if count % num_devices:
            raise ValueError(f"planner: {name} is {count}; it must be a multiple of the {num_devices} devices")

    def total(actions):
        costs = _rollout(params, root, dynamics_fn, cost_fn, spec, actions)
        return costs.sum(), costs

    def score(actions):
        if mesh is not None and len(actions) % num_devices == 0:
            actions = jax.lax.with_sharding_constraint(actions, batch_sharding(mesh))
        if not slopes:
            return _or_infinite(total(actions)[1])
        (_, costs), found = jax.value_and_grad(total, has_aux=True)(actions)
        return _or_infinite(costs), found

    return lambda actions: _in_chunks(score, actions, spec.chunk)


def _rollout(params, root, dynamics_fn, cost_fn, spec, actions):
    """Return the costs `[S]` of actions `[S, R, A]`."""
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(actions), *jnp.shape(leaf))), root.state)
    costs = jnp.zeros(len(actions), jnp.float32)
    # Unrolled, as states may grow from step to step.
    for step, weight in enumerate(spec.cost_weights):
        state = dynamics_fn(params, state, actions[:, step])
        if weight:
            found = cost_fn(params, state, root.goal, actions[:, step])
            if found.shape != costs.shape:
                raise ValueError(f"planner: cost_fn returns shape {found.shape}; it must be one cost of each candidate, {costs.shape}")
            costs += weight * found.astype(jnp.float32)
    if any(spec.action_penalty):
        half = (jnp.array(spec.high) - jnp.array(spec.low)) / 2
        units = actions / jnp.where(half > 0, half, 1.0)
        costs += (jnp.array(spec.action_penalty) * units**2).mean(-1).sum(-1)
    return costs


def _or_infinite(costs):
    return jnp.where(jnp.isnan(costs), jnp.inf, costs)


def _in_chunks(function, actions, chunk):
    """Apply a function to a chunk of the leading axis after the other."""
    count = len(actions)
    if chunk is None or chunk >= count:
        return function(actions)
    num_chunks = -(-count // chunk)
    padded = jnp.concatenate([actions, jnp.broadcast_to(actions[-1], (num_chunks * chunk - count, *actions.shape[1:]))])
    found = jax.lax.map(function, padded.reshape(num_chunks, chunk, *actions.shape[1:]))
    return jax.tree.map(lambda leaf: leaf.reshape(num_chunks * chunk, *leaf.shape[2:])[:count], found)
