"""Fit learned distances on recorded clips, and find out what they are worth on clips that were held out."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jepa_jax.models.norms import normalize_latents
from jepa_jax.weights.learned_energy import init_points, init_reading, point_distance, read_points

# Clips of a batch, and frames of each: a frame is read once for all its pairs. Where there are none, frames of many scenes teach more.
_PAIRED, _SINGLE = (16, 10), (128, 1)
_RATE, _DECAY, _WARMUP = 3e-3, 0.05, 100
# Of the logarithm of distances: larger errors count linearly.
_HUBER = 0.3
# A step counts as a move where it is at least this part of the largest one, and of all moves so many are no faster than a usual one.
_MOVES, _USUAL = 0.05, 0.95
# Of what is read beside the gripper.
_ASIDE = 0.3
# A move that is counted: so many steps, and so much of the distance at least, m.
_MOVE, _LEAST_CHANGE = 2, 0.03
# Robots take detours, so the time between two frames is only the most that is needed: distances above it count fully,
# those below it so much. What is left is near the shortest way that any clip shows.
_BELOW = 0.03


def steps_apart(count, frames):
    """Return the steps between frames of the same clip, float32 `[M, F, F]`."""
    apart = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
    return np.broadcast_to(apart, (count, frames, frames)).astype(np.float32)


def states_apart(robot, states):
    """Measure how far apart a robot's states are, in units of how much each number usually changes in one step.

    Of a robot with a position, that and its gripper count: how a gripper turns is hardly to be seen, and counting it made
    distances worse. Of one without, as of joints, all numbers do.

    Args:
      robot: `RobotSpec`.
      states: `[M, F, S]` of M clips.

    Returns:
      float32 `[M, F, F]`, Euclidean over the numbers.

    Raises:
      ValueError: nothing ever changes.
    """
    states = np.asarray(states, np.float64)
    if robot.part("position"):
        parts = [part for kind in ("position", "gripper") if (part := robot.part(kind))]
        states = np.concatenate([states[..., part.where] for part in parts], axis=-1)
    usual = np.sqrt((np.diff(states, axis=1) ** 2).mean((0, 1)))
    if not usual.any():
        raise ValueError(f"robot {robot.name!r} never moves in these clips, so that its states tell no distance")
    states = states[..., usual > 0] / usual[usual > 0]
    return np.linalg.norm(states[:, :, None] - states[:, None], axis=-1).astype(np.float32)


def positions_apart(robot, states):
    """Measure how many steps a robot's positions are apart, if it goes straight and as fast as it usually moves.

    Args:
      robot: `RobotSpec` with a position.
      states: `[M, F, S]` of M clips.

    Returns:
      float32 `[M, F, F]`.

    Raises:
      ValueError: it never moves.
    """
    places = _place_steps(robot, states)
    return np.linalg.norm(places[:, :, None] - places[:, None], axis=-1).astype(np.float32)


def gripper_steps(robot, states):
    """Count a robot's gripper in units of how much it changes in a step when it moves.

    Args:
      robot: `RobotSpec` with a gripper.
      states: `[M, F, S]` of M clips.

    Returns:
      float32 `[M, F, K]`, the gripper last, after the position if there is one, in units of its own; and the gripper's unit.

    Raises:
      ValueError: it never moves.
    """
    closed = np.asarray(states, np.float64)[..., robot.part("gripper").where]
    step = float(_usual_moves(robot, closed)[0])
    places = [_place_steps(robot, states)] if robot.part("position") else []
    return np.concatenate([*places, closed / step], -1).astype(np.float32), step


def _place_steps(robot, states):
    """Count positions in usual moves of each of their numbers, without those that never change: `[M, F, K]`."""
    places = np.asarray(states, np.float64)[..., robot.part("position").where]
    usual = _usual_moves(robot, places)
    return places[..., usual > 0] / usual[usual > 0]


def _usual_moves(robot, values):
    """Return for each of the numbers `[M, F, K]` how much it changes in a step of a usual fast move, `[K]`; 0 if it never does."""
    changes = np.abs(np.diff(values, axis=1)).reshape(-1, values.shape[-1])
    if not changes.any():
        raise ValueError(f"robot {robot.name!r} never moves in these clips, so that its states tell no distance")
    return np.float64([np.quantile(change[change >= _MOVES * change.max()], _USUAL) for change in changes.T])


def fit_points(latents, apart, *, detours, steps=3000, noise=0.1, seed=0, on_steps=lambda count: None):
    """Fit a network that reads frames as points, as far apart as frames of a clip are by some measure.

    Args:
      latents: float `[M, F, N, D]` of M clips of F frames, one step apart; normalised before use.
      apart: float32 `[M, F, F]`, the measure between the frames of each clip.
      detours: it is only the most that frames are apart, as time is.
      steps: of training.
      noise: deviation of what is added to normalised latents at most: a planner looks at predicted ones.
      seed: of weights, batches and noise.
      on_steps: called with the number of steps done since the last call.

    Returns:
      Parameters of `weights.learned_energy.read_points`, whose `point_distance` is what was measured.

    Raises:
      ValueError: clips of one frame, or the fit has diverged.
    """
    if latents.shape[1] < 2:
        raise ValueError(f"clips of {latents.shape[1]} frame; a distance is fitted on at least 2")
    below = _BELOW if detours else 1.0

    def loss(points, pairs):
        errors = jnp.log1p(point_distance(points[:, :, None], points[:, None])) - jnp.log1p(pairs)
        return (jnp.where(errors > 0, 1.0, below) * optax.huber_loss(errors, delta=_HUBER)).mean()

    pairs = lambda clips, times: apart[clips[..., None], times[:, :, None], times[:, None]]
    params = init_points(jax.random.key(seed), *latents.shape[2:])
    return _fit(params, latents, pairs, loss, _PAIRED, steps=steps, noise=noise, seed=seed, on_steps=on_steps)


def fit_reading(latents, values, *, steps=9000, seed=0, on_steps=lambda count: None):
    """Fit a network that reads numbers from a frame: the last one is how far a gripper is closed.

    The others are read beside it: a network that is to say where the arm is learns what to look at. Fingers alone hardly teach it.

    Args:
      latents: float `[M, F, N, D]` of M clips of F frames; normalised before use.
      values: float32 `[M, F, K]`.
      steps, seed, on_steps: as in `fit_points`. There is no noise: goals are true frames, and it blurs fingers.

    Returns:
      Parameters of `weights.learned_energy.read_points`, whose points are the numbers.

    Raises:
      ValueError: the fit has diverged.
    """
    params = init_reading(jax.random.key(seed), *latents.shape[2:], values.shape[-1])
    params["out_bias"] = jnp.asarray(values.mean((0, 1)), jnp.float32)

    def loss(points, values):
        errors = values - points
        # Grippers are open or closed and seldom between: where a picture leaves doubt, what is likelier is read, not the mean.
        return jnp.abs(errors[..., -1]).mean() + _ASIDE * optax.huber_loss(errors[..., :-1], delta=_HUBER).sum(-1).mean()

    return _fit(params, latents, lambda clips, times: values[clips, times], loss, _SINGLE, steps=steps, noise=0.0, seed=seed, on_steps=on_steps)


def _fit(params, latents, targets, loss, batch, *, steps, noise, seed, on_steps):
    """Fit what is read from frames of clips: `targets` of (clips, times) is what `loss` compares the points with, `batch` so many of each."""
    (count, frames), (at_once, of_each) = latents.shape[:2], batch
    schedule = optax.warmup_cosine_decay_schedule(0.0, _RATE, min(_WARMUP, steps // 2), steps)
    optimizer = optax.adamw(schedule, weight_decay=_DECAY)
    state, rng, key = optimizer.init(params), np.random.default_rng(seed), jax.random.key(seed)
    step = jax.jit(functools.partial(_step, optimizer, noise, loss), donate_argnums=(0, 1))
    for number in range(steps):
        clips = rng.integers(0, count, (at_once, 1))
        times = np.argsort(rng.random((at_once, frames)), axis=1)[:, :of_each]
        params, state, value = step(params, state, jax.random.fold_in(key, number), latents[clips, times], targets(clips, times))
        on_steps(1)
    if not np.isfinite(value):
        raise ValueError("the fit of the distance has diverged: latents hold numbers that are too large, or not finite")
    return params


def _step(optimizer, noise, loss, params, state, key, latents, targets):
    """Make one step of AdamW."""
    latents = normalize_latents(latents)
    if noise:
        strength_key, noise_key = jax.random.split(key)
        # Some clean, some noisier: the distance is to hold for true frames too.
        strength = noise * jax.random.uniform(strength_key, (*latents.shape[:2], 1, 1))
        latents += strength * jax.random.normal(noise_key, latents.shape)
    value, slopes = jax.value_and_grad(lambda params: loss(read_points(params, latents), targets))(params)
    updates, state = optimizer.update(slopes, state, params)
    return optax.apply_updates(params, updates), state, value


def hold_out(trajectory, share, seed=0):
    """Choose the trajectories to test on: bool `[M]` for the trajectory of each clip, int `[M]`; at least one, not all.

    Raises:
      ValueError: there is only one trajectory.
    """
    numbers = np.random.default_rng(seed).permutation(np.unique(trajectory))
    if len(numbers) < 2:
        raise ValueError(f"clips of {len(numbers)} trajectory; there must be one to fit and one to test at least")
    held = min(max(1, round(share * len(numbers))), len(numbers) - 1)
    return np.isin(trajectory, numbers[:held])


def clip_energies(energy, latents, grid, states):
    """Measure all frames of clips against all others as goals.

    Args:
      energy: as in `planning.bind`.
      latents: float `[M, F, N, D]`; normalised before use.
      grid: (h, w), N = h * w.
      states: float `[M, F, S]` of the robot.

    Returns:
      float32 `[M, F, F]`: clip, goal, frame.
    """
    # One goal after the other: differences of all pairs would not fit into memory.
    @jax.jit
    def one(clip, states):
        clip = normalize_latents(clip)
        return jax.lax.map(lambda goal: energy(clip, goal, grid, states), clip)

    return np.stack([np.asarray(one(*both)) for both in zip(latents, np.asarray(states, np.float32))])


def rank_correlation(energies, truth):
    """Compare how energies and a true distance order the other frames of a clip by their way to a goal.

    Args:
      energies, truth: `[M, F, F]`: clip, goal, frame.

    Returns:
      Spearman's coefficient, 1 for the same order, the mean over all goals; NaN if no goal has anything to order.
    """
    others = ~np.eye(energies.shape[-1], dtype=bool)
    ranks = [_ranks(values[:, others].reshape(*values.shape[:2], -1)) for values in (energies, truth)]
    first, second = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    spread = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    # Where nothing moves there is no order.
    some = spread > 0
    return float(((first * second).sum(-1)[some] / spread[some]).mean()) if some.any() else float("nan")


def right_way(energies, metres, edges):
    """Count how often the energy falls where a robot comes nearer to the goal, and rises where it goes away.

    Args:
      energies: `[M, F, F]`: clip, goal, frame.
      metres: `[M, F, F]`, distance of the robot from where it is at the goal, m.
      edges: K + 1 distances, ascending, between which moves are counted; of a move the nearer end counts.

    Returns:
      K shares of the moves of two steps that change the distance by 3 cm or more; NaN where there are none. 0.5 is chance.
    """
    change, nearer = (metres[:, :, _MOVE:] - metres[:, :, :-_MOVE], np.minimum(metres[:, :, _MOVE:], metres[:, :, :-_MOVE]))
    right = np.sign(energies[:, :, _MOVE:] - energies[:, :, :-_MOVE]) == np.sign(change)
    parts = [right[(nearer >= low) & (nearer < high) & (abs(change) >= _LEAST_CHANGE)] for low, high in itertools.pairwise(edges)]
    return [float(part.mean()) if part.size else float("nan") for part in parts]


def told_apart(energies, alike, differ):
    """Say how well energies tell pairs of frames that differ from those that are alike.

    Args:
      energies: `[M, F, F]`.
      alike, differ: bool `[M, F, F]`, the pairs of each kind.

    Returns:
      Share of the pairs of pairs, one of each kind, in which the one that differs has the higher energy: 1 is perfect, 0.5
      chance; NaN if there are none.
    """
    low, high = np.sort(energies[alike]), energies[differ]
    return float(np.searchsorted(low, high).mean() / len(low)) if low.size and high.size else float("nan")


def _ranks(values):
    """Rank along the last axis; equal values share their mean rank."""
    one, other = values[..., :, None], values[..., None, :]
    return (one > other).sum(-1) + 0.5 * (one == other).sum(-1)
