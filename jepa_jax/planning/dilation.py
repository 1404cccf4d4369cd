"""Descent to the bottom of a cost that has kinks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

# Each turn makes space so many times narrower along the change of the slopes.
_NARROWER = 3.0
# A step that is still downhill at its end is followed by one so much longer.
_LONGER = 1.05


class _Dilation(NamedTuple):
    """What goes from one step to the next, of N numbers in all."""

    scale: jax.Array  # [N, N], from the space in which slopes are compared to that of the numbers
    slopes: jax.Array  # [N], where it last turned
    heading: jax.Array  # [N], against which it goes
    length: jax.Array  # []


def space_dilation(length):
    """Return an optax transformation that makes steps of Shor's r-algorithm, for few numbers and a cost with kinks.

    At a kink slopes do not fade, they jump from one side to the other. Steps of Adam then go to and fro until the rate has
    fallen, and as each number has a rate of its own they get stuck where a kink is oblique. Here space is made narrower along
    that jump with each turn, so that what is left of the slopes points along the kink. No line search: one gradient a step.

    Args:
      length: of the first step, over all numbers.

    Returns:
      `optax.GradientTransformation` of one float32 array of any shape; its memory is the square of its size.

    Source: N. Z. Shor, Minimization Methods for Non-Differentiable Functions, Springer 1985 (r-algorithm).
    """

    def init(numbers):
        zeros = jnp.zeros(numbers.size, jnp.float32)
        return _Dilation(jnp.eye(numbers.size, dtype=jnp.float32), zeros, zeros, jnp.float32(length))

    def update(updates, state, numbers=None):
        del numbers
        slopes = updates.reshape(-1)
        # 0 at the very first step, which turns without having seen slopes change.
        downhill = slopes @ state.heading
        jump = _unit(state.scale.T @ (slopes - state.slopes))
        narrowed = state.scale + (1 / _NARROWER - 1) * jnp.outer(state.scale @ jump, jump)
        scale = jnp.where(downhill < 0, narrowed, state.scale)
        turned = _Dilation(scale, slopes, scale @ _unit(scale.T @ slopes), state.length)
        onward = state._replace(length=_LONGER * state.length)
        state = jax.tree.map(lambda go, turn: jnp.where(downhill > 0, go, turn), onward, turned)
        return -(state.length * state.heading).reshape(updates.shape), state

    return optax.GradientTransformation(init, update)


def _unit(vector):
    return vector / jnp.maximum(jnp.linalg.norm(vector), jnp.finfo(jnp.float32).tiny)
