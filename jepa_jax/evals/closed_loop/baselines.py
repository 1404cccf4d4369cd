"""Policies that learn nothing: no motion, random motion, and the scripted expert."""

import jax
import jax.numpy as jnp

from jepa_jax import planning
from jepa_jax.evals.closed_loop.episodes import Choice, Policy
from jepa_jax.planning import latent


def zero_policy(environment):
    """Stay where it is: what counts as success here was there from the start.

    Args:
      environment: `Environment`.

    Returns:
      `Policy`.
    """
    still = lambda keys, seen: latent.still_actions(environment.robot, seen.poses)
    return _memoryless("zero", environment, still)


def random_policy(environment):
    """Draw what a planner would plan anew at every step, evenly within its bounds."""
    robot = environment.robot
    low, high = (jnp.float32(bounds)[jnp.array(robot.planned_dims)] for bounds in (robot.action_low, robot.action_high))

    def decide(keys, seen):
        drawn = jax.vmap(lambda key: jax.random.uniform(key, low.shape, minval=low, maxval=high))(keys)
        return planning.full_actions(robot, seen.poses, drawn)

    return _memoryless("random", environment, decide)


def expert_policy(environment):
    """Do as the scripted expert of a pure environment does, which knows all: the best that can be hoped for."""
    return _memoryless("expert", environment, lambda keys, seen: environment.expert(seen.truth))


def _memoryless(name, environment, decide):
    # Whoever looks at no goals is judged by the last one, which films then show.
    last = len(environment.goal_steps) - 1

    def act(params, memory, keys, seen):
        count = len(seen.poses)
        return Choice(decide(keys, seen), jnp.full(count, last, jnp.int32), jnp.full(count, jnp.nan)), memory

    return Policy(name, lambda params, goals: (), act)
