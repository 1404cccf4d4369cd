"""Several goals, one after the other: when to go on to the next."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Progress(NamedTuple):
    """Say which goal is pursued, and for how many steps it has been: int32 `[...]` each."""

    goal: jax.Array
    steps: jax.Array


def start_goals(shape=()):
    """Return the `Progress` of robots that begin with their first goal."""
    return Progress(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32))


def next_goal(progress, energy, num_goals, *, timer=None, threshold=None):
    """Advance by one executed step: go on when the time of a goal is over, or it is near. The last one stays.

    Args:
      progress: `Progress`.
      energy: float32 `[...]`, of what is seen now, to the goal that is pursued.
      num_goals: how many there are.
      timer: int32 `[num_goals]`, or as a tuple: steps for each goal; None for no limit. The official
        protocol for pick-and-place is 4, 10, 4.
      threshold: energy below which a goal counts as reached, a float or `[num_goals]`; None for never.

    Returns:
      `Progress`.

    Raises:
      ValueError: if neither is given, or times are too few.

    Source: paper, section 4 (timer).
    """
    if timer is None and threshold is None:
        raise ValueError("goals switch by timer, threshold or both; neither is given")
    if timer is not None and len(timer) != num_goals:
        raise ValueError(f"{len(timer)} times for {num_goals} goals; there must be one for each")
    steps = progress.steps + 1
    over = jnp.zeros(jnp.shape(steps), bool)
    if timer is not None:
        over |= steps >= jnp.asarray(timer)[progress.goal]
    if threshold is not None:
        over |= energy < jnp.broadcast_to(jnp.asarray(threshold, jnp.float32), (num_goals,))[progress.goal]
    over &= progress.goal < num_goals - 1
    return Progress(progress.goal + over, jnp.where(over, 0, steps))
