"""Everything a run carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Guard:
    """What the update guard remembers.

    Attributes:
      skipped: int32, updates skipped since the start of the run.
      grad_norm: float32, running average of the gradient norm of accepted updates.
    """

    skipped: jax.Array
    grad_norm: jax.Array


@flax.struct.dataclass
class TrainState:
    """State of a training run.

    Attributes:
      step: int32, batches consumed. All schedules and randomness derive from it.
      params: nested dict of float32 arrays that receive gradients.
      target_params: EMA copy of a part of `params`, or an empty dict.
      opt_state: optimiser state.
      guard: see `Guard`.
    """

    step: jax.Array
    params: Any
    target_params: Any
    opt_state: Any
    guard: Guard


def create_state(params, target_params, optimizer):
    """Make the state of step 0 from initial parameters and an optax optimiser."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        target_params=target_params,
        opt_state=optimizer.init(params),
        guard=Guard(skipped=jnp.zeros((), jnp.int32), grad_norm=jnp.zeros((), jnp.float32)),
    )


def tensor_names(tree):
    """Name every leaf of a tree by its path, in flattening order, such as `encoder/norm/scale`."""
    return ["/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
            for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
