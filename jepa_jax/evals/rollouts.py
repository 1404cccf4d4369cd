"""How far a world model's predictions are from the truth, and from what trivial predictors reach."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.models.aggregate import average_tokens
from jepa_jax.models.norms import normalize_latents

# Every frame predicted from the true ones before it; or from the context and the predictions before it.
MODES = ONE_STEP, OPEN_LOOP = ("one_step", "open_loop")
MODEL, SHUFFLED, MEAN_ACTION, COPY_LAST = "model", "shuffled_actions", "mean_action", "copy_last"
ROWS = (MODEL, SHUFFLED, MEAN_ACTION, COPY_LAST)
TRUE = "true"
# Numbers of a frame that are kept for readouts; tokens are pooled until they are no more.
_MAX_READ = 1 << 15


class Example(NamedTuple):
    """Latents of one sample, to look at: `[F, h*w, D]` of its frames, `[H, h*w, D]` as predicted in open loop."""

    sample: int
    true: np.ndarray
    predicted: np.ndarray


class Measured(NamedTuple):
    """What was measured on N samples, H steps after the context.

    Attributes:
      errors: dict from mode to row to float32 `[N, H]`: mean |difference| over tokens and channels.
      sensitivity: float32 `[N, A]`: mean |change| of the next latents for a change of one action number
        by its standard deviation.
      deviations: float64 `[A]`, those deviations, in the robot's units.
      read: dict from `TRUE` (`[N, F, n, D]`) and the modes (`[N, H, n, D]`) to float32 latents in few
        numbers, for readouts; empty where not asked for.
      pooled: (rows, columns) of tokens that were averaged to get there.
      example: `Example`.
    """

    errors: dict[str, dict[str, np.ndarray]]
    sensitivity: np.ndarray
    deviations: np.ndarray
    read: dict[str, np.ndarray]
    pooled: tuple[int, int]
    example: Example


def measure(world, params, samples, *, context=1, batch_size=8, seed=0, keep_latents=False, on_samples=lambda count: None):
    """Compare predictions with the frames that came.

    Actions of the model's rivals differ from the last context frame on: those of a random sample of another
    trajectory, or the mean over all samples. In open loop states follow from the actions at hand
    where the robot allows that (`RobotSpec.integrable`), the rivals' from theirs; otherwise, and in
    one-step prediction, they are the true ones. The frame that is copied is the one before, in open loop the
    last of the context.

    Args:
      world: `WorldModel`.
      params: its parameters: action_predictor, and encoder unless samples hold latents.
      samples: `Samples` of at least two trajectories.
      context: C true frames before the first prediction, so that H = F - C.
      batch_size: samples computed together; compiled once.
      seed: of the shuffling.
      keep_latents: fill `read`.
      on_samples: called with the number of samples of every batch.

    Returns:
      `Measured`.

    Raises:
      ValueError: if there is no frame to predict, frames and no encoder, or predictions are not finite.
    """
    arrays, total = samples.arrays, len(samples)
    actions = arrays["actions"]
    horizon = actions.shape[1] + 1 - context
    if context < 1 or horizon < 1:
        raise ValueError(f"context {context} of {actions.shape[1] + 1} frames; it must leave at least one to predict")
    if "video" in arrays and world.encoder is None:
        raise ValueError("the shards hold frames, but these weights have no encoder; give the encoder too")
    rows = actions.reshape(-1, actions.shape[-1]).astype(np.float64)
    other = _other_samples(samples.trajectory, np.random.default_rng(seed))
    arrays = arrays | {SHUFFLED: actions[other]}
    deviations, factors = rows.std(0), pooling(world.predictor.grid, world.predictor.output_dim)
    show = _most_moving(actions, deviations)
    run = jax.jit(functools.partial(_measure, world, context, factors if keep_latents else None))
    statistics = [jnp.asarray(value, jnp.float32) for value in (rows.mean(0), deviations)]
    found, example = [], None
    for first in range(0, total, batch_size):
        numbers = np.arange(first, first + batch_size)
        # The last batch is filled up, so that all have one shape.
        batch = {name: value[np.minimum(numbers, total - 1)] for name, value in arrays.items()}
        measured, latents = run(params, batch, *statistics, max(show - first, 0) % batch_size)
        found.append(_fetch(measured, min(batch_size, total - first)))
        if show in numbers:
            example = Example(show, *map(np.asarray, latents))
        on_samples(min(batch_size, total - first))
    errors, sensitivity, read = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    _check_finite(errors)
    # JAX sorts the keys of dicts.
    errors = {mode: {row: errors[mode][row] for row in ROWS} for mode in MODES}
    return Measured(errors, sensitivity, deviations, read, factors, example)


def read_latents(world, params, samples, *, batch_size=8, on_samples=lambda count: None):
    """Compute the latents of samples in as few numbers as those of `Measured.read`.

    Args:
      world, params, batch_size, on_samples: as in `measure`.
      samples: `Samples`; of a single trajectory too.

    Returns:
      float32 `[N, F, n, D]`.
    """
    factors, total = pooling(world.predictor.grid, world.predictor.output_dim), len(samples)
    average = functools.partial(average_tokens, grid=world.predictor.grid, factors=factors)
    run = jax.jit(lambda params, batch: average(_latents(world, params, batch)).astype(jnp.float32))
    seen = {name: samples.arrays[name] for name in ("video", "latents") if name in samples.arrays}
    found = []
    for first in range(0, total, batch_size):
        rows = np.minimum(np.arange(first, first + batch_size), total - 1)
        count = min(batch_size, total - first)
        found.append(np.asarray(run(params, {name: value[rows] for name, value in seen.items()}))[:count])
        on_samples(count)
    return np.concatenate(found)


def pooling(grid, width):
    """Return (rows, columns) of tokens to average for readouts: the fewest that leave few enough numbers."""
    divisors = [[n for n in range(1, side + 1) if side % n == 0] for side in grid]
    pairs = sorted(itertools.product(*divisors), key=lambda pair: (pair[0] * pair[1], abs(pair[0] - pair[1])))
    return next((pair for pair in pairs if grid[0] * grid[1] // (pair[0] * pair[1]) * width <= _MAX_READ), pairs[-1])


def _fetch(measured, count):
    return jax.tree.map(lambda value: np.asarray(value)[:count], measured)


def _check_finite(errors):
    for mode, rows in errors.items():
        if bad := int((~np.isfinite(rows[MODEL]).all(1)).sum()):
            raise ValueError(f"the {mode.replace('_', ' ')} predictions of {bad} of {len(rows[MODEL])} samples are not finite: "
                             "the training has diverged, or numbers are too large for the compute dtype")


def _measure(world, context, factors, params, batch, mean_action, deviations, show):
    """Measure one batch: ((errors, sensitivity, read), latents of the sample to show)."""
    latents = _latents(world, params, batch)
    actions, states = batch["actions"], batch["states"]
    cameras = [batch["extrinsics"][:, :-1]] if "extrinsics" in batch else []
    horizon = actions.shape[1] + 1 - context
    told = [actions, *(
        jnp.concatenate([actions[:, : context - 1], rival], axis=1)
        for rival in (batch[SHUFFLED][:, context - 1 :], jnp.broadcast_to(mean_action, (len(actions), horizon, len(mean_action))))
    )]
    integrate = world.robot.integrable
    known = states[:, :context] if integrate else states[:, :-1]

    def predict(told):
        each = world.predict_next(params, latents[:, :-1], told, states[:, :-1], *cameras)
        return {
            ONE_STEP: each[:, context - 1 :],
            OPEN_LOOP: world.rollout(params, latents[:, :context], told, known, *cameras, integrate=integrate),
        }

    # One after the other: a third of the memory and of the compilation.
    found = jax.lax.map(predict, jnp.stack(told))
    copied = {ONE_STEP: latents[:, context - 1 : -1], OPEN_LOOP: latents[:, context - 1 : context]}
    predicted, errors = {mode: value[0] for mode, value in found.items()}, {}
    for mode in MODES:
        distance = lambda guess: jnp.abs(guess - latents[:, context:]).mean((-2, -1))
        errors[mode] = dict(zip(ROWS, [*distance(found[mode]), distance(copied[mode])]))
    read = {}
    if factors is not None:
        kept = {TRUE: latents} | predicted
        read = {
            name: average_tokens(value, world.predictor.grid, factors).astype(jnp.float32) for name, value in kept.items()
        }
    now = (value[:, :context] for value in (latents, actions, states, *cameras))
    sensitivity = _sensitivity(world, params, deviations, *now)
    return (errors, sensitivity, read), (latents[show], predicted[OPEN_LOOP][show])


def _sensitivity(world, params, deviations, latents, actions, *told):
    """Return `[B, A]`: half of how far predictions are apart when the last action differs by two deviations."""

    def predict(offset):
        return world.predict_next(params, latents, actions.at[:, -1].add(offset), *told)[:, -1]

    def change(offset):
        return jnp.abs(predict(offset) - predict(-offset)).mean((1, 2)) / 2

    return jax.lax.map(change, jnp.diag(deviations)).T


def _latents(world, params, batch):
    return normalize_latents(batch["latents"]) if "latents" in batch else world.encode(params, batch["video"])


def _other_samples(trajectory, rng):
    """Choose for every sample one of another trajectory."""
    choices = rng.permutation(len(trajectory))
    return np.array([rng.choice(choices[trajectory[choices] != own]) for own in trajectory])


def _most_moving(actions, deviations):
    """Return the sample with the largest actions, in deviations."""
    return int(np.abs(actions / np.where(deviations > 0, deviations, 1)).sum((1, 2)).argmax())
