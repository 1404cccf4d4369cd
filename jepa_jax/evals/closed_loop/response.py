"""How much of what an action does to the energy a model foresees, for every number that is planned.

A planner takes the action whose foreseen energy is lowest, so a number to which predictions hardly respond is chosen at
random, however well energies of true pictures tell its values apart.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import planning
from jepa_jax.planning.rollouts import make_score

# Numbers whose true energy never changes have no response.
_TINY = 1e-9


def measure_response(environment, sight, model, oracle, spec, *, seed=0, episodes=16):
    """Follow the expert, and at every step exchange one number of its action after the other for a random one.

    Args:
      environment: `Environment`, a pure one.
      sight: `Sight` of the model.
      model, oracle: `planners.Dynamics`: whose response is measured, and what it should be.
      spec: `planning.PlanSpec`, whose bounds numbers are drawn from; of one step.
      seed, episodes: which starts.

    Returns:
      list of JSON-able dicts, one for each number that is planned: name; `true`, root mean square of how much it changes the
      energy of the next true picture; `slope`, change foreseen for a true change of 1, by least squares: 1 is perfect, 0 none;
      `correlation`; both None where nothing changes.
    """
    costs = jax.jit(lambda params: _costs(environment, sight, (model, oracle), spec, params, seed, episodes))(
        (sight.params, model.params, oracle.params))
    foreseen, true = (np.asarray(part, np.float64)[..., 1:] - np.asarray(part, np.float64)[..., :1] for part in costs)
    names = [model.robot.action_names[at] for at in model.robot.planned_dims]
    return [{"name": name, **_compare(foreseen[..., at].ravel(), true[..., at].ravel())} for at, name in enumerate(names)]


def describe_response(rows):
    """Say what `measure_response` found, in one line."""
    parts = [f"{row['name']} " + ("-" if row["slope"] is None else f"{100 * row['slope']:.0f} % ({row['correlation']:.2f})") for row in rows]
    return f"changes of the energy that are foreseen (correlation): {', '.join(parts)}"


def _compare(foreseen, true):
    power = float((true**2).mean())
    if power < _TINY:
        return {"true": power**0.5, "slope": None, "correlation": None}
    product, size = float((foreseen * true).mean()), float((foreseen**2).mean()) ** 0.5
    return {"true": power**0.5, "slope": product / power, "correlation": product / (size * power**0.5) if size else 0.0}


def _costs(environment, sight, both, spec, params, seed, episodes):
    """Return costs of model and oracle, each `[T, N, 1 + A]`: of the expert's action, and with each number exchanged."""
    seeing, *dynamics_params = params
    robot, low, high = both[0].robot, jnp.array(spec.low), jnp.array(spec.high)
    planned = jnp.array(robot.planned_dims)
    state, seen, goals, _ = environment.reset(jnp.int32(seed), jnp.arange(episodes))
    latents = sight.see(seeing, goals.frames.reshape(-1, *goals.frames.shape[2:]))
    latents = latents.reshape(*goals.frames.shape[:2], *latents.shape[1:])
    pursued = np.fromiter(itertools.chain(*([goal] * steps for goal, steps in enumerate(environment.goal_steps))), np.int32)

    def judge(dynamics, params, parts):
        *root, candidates = parts
        root = dynamics.root(*root, None)
        return make_score(params, root, dynamics.dynamics_fn, dynamics.cost_fn, spec)(candidates[:, None])

    def step(carry, given):
        state, seen = carry
        key, goal = given
        base = environment.expert(seen.truth)[:, planned]
        drawn = jax.random.uniform(key, base.shape, minval=low, maxval=high)
        candidates = jnp.where(jnp.eye(1 + spec.dims, spec.dims, -1, dtype=bool), drawn[:, None], base[:, None])
        parts = sight.see(seeing, seen.frames), seen, latents[:, goal], goals.poses[:, goal], candidates
        costs = [jax.lax.map(lambda one, kind=kind, own=own: judge(kind, own, one), parts) for kind, own in zip(both, dynamics_params)]
        return environment.step(state, planning.full_actions(robot, seen.poses, base)), costs

    keys = jax.random.split(jax.random.key(seed), environment.steps)
    return jax.lax.scan(step, (state, seen), (keys, pursued))[1]
