"""The planner: draw candidates, roll them out, fit, repeat; then follow the gradient. One loop for all kinds of it.

`PlanSpec` says which kind: the cross-entropy method, its improved form, path integrals, gradient
descent, or sampling followed by gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jepa_jax.planning.dilation import space_dilation
from jepa_jax.planning.rollouts import make_score
from jepa_jax.planning.spec import PlanOutput, Trace

# Below this, one elite has all the weight, which says nothing about a spread.
_LEAST_FREEDOM = 1e-6
# Of Adam: descents are so short that the usual ones would remember their start at their end.
_MOMENTA = (0.1, 0.6)
# Length of the last descent's first step, over all numbers, in learning rates.
_POLISHED = 0.25
# Far below any logit that counts, and finite, so that candidates that are all impossible weigh alike.
_IMPOSSIBLE = -1e9


class _Search(NamedTuple):
    """What goes from one iteration to the next."""

    mean: jax.Array  # [R, A]
    std: jax.Array  # [R, A]
    elites: jax.Array  # [K, R, A], best first
    best: jax.Array  # [R, A]
    best_cost: jax.Array  # []


def plan(params, rng, root, dynamics_fn, cost_fn, spec, *, noise=None, mesh=None):
    """Search the actions that lead from a state to a goal at least cost. Pure, to be jitted and vmapped.

    Args:
      params: any pytree, handed to the functions.
      rng: JAX key; nothing else is random.
      root: `Root`.
      dynamics_fn: function (params, state, action float32 `[S, A]`) -> the state that follows; states
        are pytrees whose leaves have a leading axis of S candidates. What it returns may have
        another structure than what it is given, such as a cache that grows.
      cost_fn: function (params, state, goal, action) -> float32 `[S]`, the cost of the state that
        `action` has led to. A cost that is not a number counts as infinite.
      spec: `PlanSpec`.
      noise: float32 `[I, R, S, A]`, standard normal numbers to draw candidates with, instead of `rng`'s.
      mesh: device mesh as `training.sharding` makes it: candidates are spread over its devices.

    Returns:
      `PlanOutput`.

    Raises:
      ValueError: if mean, noise or the costs that `cost_fn` returns have another shape.

    Source: notebooks/utils/mpc_utils.py (cem), with the presets of `presets.OFFICIAL`.
    """
    shape = (spec.horizon, spec.dims)
    _check_shape("the mean of the root", root.mean, shape, shape[1:])
    _check_shape("noise", noise, (spec.iterations, spec.horizon, spec.samples, spec.dims))
    score = make_score(params, root, dynamics_fn, cost_fn, spec, mesh)
    start = spec.start if root.mean is None else root.mean
    mean = _set_fixed(spec, jnp.broadcast_to(jnp.asarray(start, jnp.float32), shape))
    std = jnp.broadcast_to(jnp.array(spec.std, jnp.float32), shape)
    keys = jax.random.split(rng, 2)
    search = _Search(mean, std, jnp.broadcast_to(mean, (spec.elites, *shape)), mean, jnp.float32(jnp.inf))

    search, (costs, means, stds) = _sample(spec, search, keys[0], noise, score)
    search, descent = _descend(spec, search, keys[1], make_score(params, root, dynamics_fn, cost_fn, spec, mesh, slopes=True))
    actions = search.mean if spec.choice == "mean" else search.best
    actions = jnp.where(jnp.abs(actions) < jnp.array(spec.deadzone), 0.0, actions)
    cost = search.best_cost if spec.answers_evaluated else score(actions[None])[0]
    return PlanOutput(
        actions, cost, search.mean, search.std, jnp.int32(spec.evaluations),
        Trace(costs, means, stds, descent),
    )


def warm_start(output):
    """Return the mean `[R, A]` to search from after the first action of a plan was executed; its last one is repeated."""
    return jnp.concatenate([output.actions[1:], output.actions[-1:]])


def curve(output, spec):
    """Return what the search had reached after how much work.

    Args:
      output: `PlanOutput`, not of several plans.
      spec: `PlanSpec` of it.

    Returns:
      (evaluations, costs): int32 and float32 `[I + G + P]`, calls of the model so far and the best cost so far.
    """
    per_iteration = jnp.full(spec.iterations, spec.samples)
    per_step = [jnp.full(steps, calls) for steps, calls in spec.descents]
    work = jnp.cumsum(jnp.concatenate([per_iteration * spec.horizon, *per_step]))
    best = jnp.concatenate([output.trace.costs.min(1), output.trace.descent])
    return work, jax.lax.cummin(best)


def _check_shape(name, array, *allowed):
    if array is not None and jnp.shape(array) not in allowed:
        raise ValueError(f"planner: {name} has shape {jnp.shape(array)}; it must be {' or '.join(map(str, allowed))}")


def _sample(spec, search, rng, noise, score):
    """Draw candidates and fit to the best, again and again: (search, (costs, means, stds) of the iterations)."""
    if not spec.iterations:
        empty = jnp.zeros((0, *search.mean.shape), jnp.float32)
        return search, (jnp.zeros((0, spec.samples), jnp.float32), empty, empty)

    def iterate(search, step):
        number, given = step
        drawn = _draw(spec, jax.random.fold_in(rng, number)) if given is None else given
        candidates = _candidates(spec, search, drawn, number)
        costs = score(candidates)
        search = _fit(spec, search, candidates, costs)
        return search, (costs, search.mean, search.std)

    return jax.lax.scan(iterate, search, (jnp.arange(spec.iterations), noise))


def _draw(spec, rng):
    """Draw standard normal numbers `[R, S, A]`, colored over the horizon."""
    white = jax.random.normal(rng, (spec.horizon, spec.samples, spec.dims), jnp.float32)
    if not spec.noise_color or spec.horizon == 1:
        return white
    # Frequency 0 counts as the lowest one that the horizon holds.
    frequencies = jnp.maximum(jnp.fft.rfftfreq(spec.horizon), 1 / spec.horizon)
    power = frequencies ** (-spec.noise_color / 2)
    # Every other frequency stands for two, its own and its negative.
    twice = jnp.full(len(power), 2.0).at[0].set(1.0)
    twice = twice.at[-1].set(1.0) if spec.horizon % 2 == 0 else twice
    gain = power / jnp.sqrt((twice * power**2).sum() / spec.horizon)
    return jnp.fft.irfft(jnp.fft.rfft(white, axis=0) * gain[:, None, None], n=spec.horizon, axis=0)


def _candidates(spec, search, drawn, number):
    """Make the candidates `[S, R, A]` of an iteration."""
    candidates = constrain(spec, jnp.moveaxis(drawn * search.std[:, None] + search.mean[:, None], 1, 0))
    kept = jnp.where(number > 0, search.elites[: spec.keep], candidates[: spec.keep])
    mean = constrain(spec, search.mean)[None]
    # Joined, not written in place: XLA's partitioner, seen on 4 devices, would write the last row of every device.
    return jnp.concatenate([kept, candidates[spec.keep : spec.samples - spec.include_mean], mean[: int(spec.include_mean)]])


def constrain(spec, actions):
    """Bring actions `[..., R, A]` into the bounds and set the numbers that are not free."""
    actions = jnp.clip(actions, jnp.array(spec.low, actions.dtype), jnp.array(spec.high, actions.dtype))
    actions = _set_fixed(spec, actions)
    for dim, first, value in spec.held:
        actions = actions.at[..., first:, dim].set(value)
    return actions


def _set_fixed(spec, actions):
    for dim, value in spec.fixed:
        actions = actions.at[..., dim].set(value)
    return actions


def _fit(spec, search, candidates, costs):
    """Move mean and std towards the best candidates."""
    ranks, order = jax.lax.top_k(-costs, spec.elites)
    elites = candidates[order]
    weights = _weights(spec, costs, -ranks)[:, None, None]
    mean = (weights * elites).sum(0)
    # Unbiased, which with equal weights 1 / K is the sum of squares over K - 1.
    freedom = 1 - (weights**2).sum()
    std = jnp.sqrt((weights * (elites - mean) ** 2).sum(0) / jnp.maximum(freedom, _LEAST_FREEDOM))
    std = jnp.where(freedom > _LEAST_FREEDOM, std, search.std)
    stay_mean, stay_std = (jnp.array(momentum, jnp.float32) for momentum in (spec.momentum_mean, spec.momentum_std))
    better = -ranks[0] < search.best_cost
    return _Search(
        (1 - stay_mean) * mean + stay_mean * search.mean, (1 - stay_std) * std + stay_std * search.std, elites,
        jnp.where(better, elites[0], search.best), jnp.where(better, -ranks[0], search.best_cost),
    )


def _weights(spec, costs, elite_costs):
    """Return `[K]`, how much each elite counts; they sum to 1. Impossible ones do not count, unless all are."""
    if spec.temperature is None:
        counted = jnp.isfinite(elite_costs) | ~jnp.isfinite(elite_costs[0])
        return counted / counted.sum().astype(jnp.float32)
    # Where all cost alike, nothing is divided by 0.
    unit = jnp.maximum(spec.temperature * jnp.std(costs, where=jnp.isfinite(costs)), jnp.finfo(jnp.float32).tiny)
    logits = -(elite_costs - elite_costs[0]) / unit
    return jax.nn.softmax(jnp.where(jnp.isfinite(logits), jnp.maximum(logits, _IMPOSSIBLE), _IMPOSSIBLE))


def _descend(spec, search, rng, score_and_slope):
    """Follow the gradient from several plans at once, then from the best alone: (search, lowest cost `[G + P]` before each step)."""
    if spec.iterations:
        starts = jnp.concatenate([search.best[None], search.elites[1 : spec.restarts]])
    else:
        drawn = jax.random.normal(rng, (spec.restarts, spec.horizon, spec.dims), jnp.float32)
        # The first one is the mean itself.
        apart = (jnp.arange(spec.restarts) > 0)[:, None, None]
        starts = constrain(spec, search.mean + search.std * drawn * apart)
    # A schedule is for 1 step at least, also where none is made.
    slower = optax.cosine_decay_schedule(spec.learning_rate, max(1, spec.gradient_steps))
    search, costs = _follow_slopes(spec, search, starts, spec.gradient_steps, optax.adam(slower, *_MOMENTA), score_and_slope)
    to_bottom = space_dilation(_POLISHED * spec.learning_rate, bound=1.0)
    search, polished = _follow_slopes(spec, search, search.best[None], spec.polish_steps, to_bottom, score_and_slope)
    # Its steps go to and fro over the bottom, so that the last one is not the best.
    search = search._replace(mean=search.best) if spec.polish_steps else search
    return search, jnp.concatenate([costs, polished])


def _follow_slopes(spec, search, starts, steps, optimizer, score_and_slope):
    """Make steps of an optax optimizer from plans `[Q, R, A]`, in halves of the bounds: (search, lowest cost before each step)."""
    if not steps:
        return search, jnp.zeros(0, jnp.float32)
    bounds = jnp.broadcast_to(jnp.array([spec.low, spec.high])[:, None], (2, *starts.shape[1:]))
    low, high = constrain(spec, bounds)
    # [R, A]; half is 0 of numbers that are not free, whose slopes so are none.
    middle, half = (high + low) / 2, (high - low) / 2

    def step(carry, _):
        units, moments, search = carry
        actions = constrain(spec, middle + half * units)
        costs, slopes = score_and_slope(actions)
        at = jnp.argmin(costs)
        better = costs[at] < search.best_cost
        search = search._replace(
            best=jnp.where(better, actions[at], search.best), best_cost=jnp.where(better, costs[at], search.best_cost),
        )
        slopes = jnp.where(jnp.isfinite(slopes), slopes * half, 0.0)
        updates, moments = optimizer.update(slopes, moments, units)
        return (jnp.clip(units + updates, -1.0, 1.0), moments, search), costs[at]

    units = (starts - middle) / jnp.where(half > 0, half, 1.0)
    carry, costs = jax.lax.scan(step, (units, optimizer.init(units), search), None, steps)
    units, _, search = carry
    return search._replace(mean=constrain(spec, middle + half * units[0])), costs
