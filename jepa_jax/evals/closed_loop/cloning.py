"""Behaviour cloning on frozen latents: the policy that a planner has to beat with the same eyes and the same data.

A small network is told what is seen, what shall be seen and the robot's pose, and learns the action that was taken
on the way from one to the other, up to 20 steps later (hindsight goals, as Octo was fine-tuned in the paper).
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jepa_jax.evals.closed_loop.episodes import Choice, Policy
from jepa_jax.evals.closed_loop.sight import see_all
from jepa_jax.models.aggregate import average_tokens

MAX_AHEAD = 20
_HIDDEN, _DEPTH = 512, 2
# Numbers of a frame that the network reads; tokens are averaged until they are no more.
_MAX_READ = 2048
_BATCH, _RATE, _WEIGHT_DECAY = 128, 1e-3, 1e-3
_EPS = 1e-6
_STEPS_AT_ONCE = 50


class _Scales(NamedTuple):
    """Mean and deviation of poses and actions; arrays `[2, S]` and `[2, A]`."""

    poses: np.ndarray
    actions: np.ndarray


def clone(pursuit, arrays, *, steps=1500, seed=0, on_steps=lambda count: None):
    """Train a policy on recorded trajectories.

    Args:
      pursuit: `Pursuit`, whose sight it sees with.
      arrays: dict with 'video' uint8 `[M, F, H, W, 3]`, 'states' float32 `[M, F, S]` and 'actions' float32
        `[M, F - 1, A]`, as `evals.samples` reads them; hindsight goals are up to min(F - 1, 20) steps away.
      steps: of training.
      seed: of weights and batches.
      on_steps: called with the number of steps done since the last call.

    Returns:
      `Policy`, and the mean absolute error of its actions in deviations, over the last steps.

    Raises:
      ValueError: clips of one frame, or of another size than the sight takes.
    """
    sight = pursuit.sight
    count, frames = arrays["video"].shape[:2]
    if frames < 2 or arrays["video"].shape[2] != sight.size:
        raise ValueError(f"clips of {frames} frames of {arrays['video'].shape[2]} pixels; cloning takes at least 2 of {sight.size}")
    read = functools.partial(_read, sight.grid, _pool_factor(sight))
    latents = jnp.concatenate(list(see_all(sight, arrays["video"].reshape(-1, *arrays["video"].shape[2:]), read)))
    data = latents.reshape(count, frames, -1), jnp.asarray(arrays["states"]), jnp.asarray(arrays["actions"])
    scales = _Scales(*(_scale(np.asarray(arrays[name])) for name in ("states", "actions")))
    sizes = [2 * data[0].shape[-1] + data[1].shape[-1], *[_HIDDEN] * _DEPTH, data[2].shape[-1]]
    weights = _new_weights(jax.random.key(seed), sizes)
    optimizer = optax.adamw(optax.cosine_decay_schedule(_RATE, steps), weight_decay=_WEIGHT_DECAY)

    def loss(weights, batch):
        now, goal, pose, action = batch
        return jnp.abs(_network(weights, scales, now, goal, pose) - (action - scales.actions[0]) / scales.actions[1]).mean()

    def one(carry, key):
        weights, state = carry
        value, slopes = jax.value_and_grad(loss)(weights, _sample(key, *data))
        updates, state = optimizer.update(slopes, state, weights)
        return (optax.apply_updates(weights, updates), state), value

    train = jax.jit(lambda carry, keys: jax.lax.scan(one, carry, keys))
    carry, found = (weights, optimizer.init(weights)), []
    for first in range(0, steps, _STEPS_AT_ONCE):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), first), min(_STEPS_AT_ONCE, steps - first))
        carry, values = train(carry, keys)
        found.append(np.asarray(values))
        on_steps(len(keys))
    return _policy(pursuit, read, scales, carry[0]), float(found[-1].mean())


def _policy(pursuit, read, scales, weights):
    def act(params, pursued, keys, seen):
        now, goal, _, energy, pursued = pursuit.look(params["sight"], pursued, seen)
        out = _network(params["weights"], scales, read(now), read(goal), seen.poses)
        return Choice(out * scales.actions[1] + scales.actions[0], pursued.progress.goal, energy), pursued

    params = {"sight": pursuit.sight.params, "weights": weights}
    return Policy("cloning", lambda params, goals: pursuit.begin(params["sight"], goals), act, params)


def _pool_factor(sight):
    """Return the side of the squares of tokens that are averaged."""
    width = jax.eval_shape(sight.see, sight.params, jax.ShapeDtypeStruct((1, sight.size, sight.size, 3), jnp.uint8)).shape[-1]
    common = math.gcd(*sight.grid)
    sides = [side for side in range(1, common + 1) if common % side == 0]
    return next((side for side in sides if math.prod(sight.grid) // side**2 * width <= _MAX_READ), common)


def _read(grid, side, latents):
    """Average `[B, h*w, D]` over squares of tokens; `[B, P]`."""
    return average_tokens(latents, grid, (side, side)).reshape(len(latents), -1)


def _scale(values):
    rows = values.reshape(-1, values.shape[-1])
    deviation = rows.std(0)
    # A number that never changes tells nothing, and is not blown up.
    return np.float32([rows.mean(0), np.where(deviation < _EPS, 1.0, deviation)])


def _sample(key, latents, states, actions):
    """Draw frames, goals that came later, poses, and the actions taken in these frames."""
    clip_key, now_key, ahead_key = jax.random.split(key, 3)
    count, frames = latents.shape[:2]
    clip = jax.random.randint(clip_key, (_BATCH,), 0, count)
    now = jax.random.randint(now_key, (_BATCH,), 0, frames - 1)
    ahead = jnp.minimum(frames - 1 - now, MAX_AHEAD)
    goal = now + 1 + jnp.floor(jax.random.uniform(ahead_key, (_BATCH,)) * ahead).astype(jnp.int32)
    return latents[clip, now], latents[clip, goal], states[clip, now], actions[clip, now]


def _new_weights(key, sizes):
    draw = jax.nn.initializers.lecun_normal()
    keys = jax.random.split(key, len(sizes) - 1)
    return [(draw(key, pair), jnp.zeros(pair[1])) for key, pair in zip(keys, itertools.pairwise(sizes))]


def _network(weights, scales, now, goal, pose):
    """Return actions `[B, A]` in deviations from their mean."""
    x = jnp.concatenate([now, goal - now, (pose - scales.poses[0]) / scales.poses[1]], -1)
    for matrix, bias in weights[:-1]:
        x = jax.nn.gelu(x @ matrix + bias)
    return x @ weights[-1][0] + weights[-1][1]
