"""Positions read off latents by a small attentive readout that was fitted on true ones: errors in centimetres."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import optax

from jepa_jax.evals.rollouts import MODES, TRUE
from jepa_jax.models.attentive_readout import apply_readout, init_readout

_CENTIMETRES = 100.0
TRUE_LATENTS, COPY_LAST, MEAN_POSITION = "true_latents", "copy_last", "mean_position"
_STEPS, _MIN_STEPS, _BATCH, _CHUNK = 4000, 300, 64, 256
# Updates per frame at most: few frames are learnt by heart.
_ROUNDS = 30
_RATE, _DECAY, _WARMUP, _HUBER = 1e-3, 0.05, 100, 0.3

_read = jax.jit(apply_readout)


class Frames(NamedTuple):
    """Frames to fit a readout on.

    Attributes:
      latents: float `[n, N, D]`.
      positions: dict from a name to `[n, K]`, m.
      trajectories: how many they are of.
    """

    latents: np.ndarray
    positions: dict[str, np.ndarray]
    trajectories: int


class Readout(NamedTuple):
    """A fitted readout; `mean` and `scale` of the targets are float64 `[K]`."""

    params: dict
    mean: np.ndarray
    scale: np.ndarray

    def apply(self, latents):
        """Turn latents `[..., N, D]` into targets `[..., K]`."""
        rows = latents.reshape(-1, *latents.shape[-2:])
        found = [np.asarray(_read(self.params, rows[first : first + _CHUNK])) for first in range(0, len(rows), _CHUNK)]
        return (np.concatenate(found) * self.scale + self.mean).reshape(*latents.shape[:-2], -1)


class Decoded(NamedTuple):
    """Position errors of the samples that the readout was not fitted on.

    Attributes:
      errors: dict from row to float64 `[n, H]`, cm: `TRUE_LATENTS`, the modes of `rollouts`, `COPY_LAST`
        (what is read off the last context frame) and `MEAN_POSITION` (of the fitted part).
      tested: int64 `[n]`, numbers of these samples.
      fitted_trajectories, tested_trajectories: how many.
      fitted_frames: how many.
    """

    errors: dict[str, np.ndarray]
    tested: np.ndarray
    fitted_trajectories: int
    tested_trajectories: int
    fitted_frames: int


def decode_positions(read, positions, trajectory, *, context, fit_on=None, seed=0):
    """Fit a readout on true latents and apply it to those of other trajectories, true and predicted.

    Args:
      read: as in `rollouts.Measured`.
      positions: dict from a name to `[N, F, K]`, m.
      trajectory: int `[N]`, the trajectory of every sample.
      context: frames before the first prediction.
      fit_on: `Frames` of other trajectories. Without them half of these serve, and only the others are tested.
      seed: of the halves and of the readout.

    Returns:
      dict from the names to `Decoded`.

    Raises:
      ValueError: fewer than four trajectories, where half of them are to be fitted.
    """
    numbers = np.unique(trajectory)
    tested = np.ones(len(trajectory), bool)
    if fit_on is None:
        numbers = np.random.default_rng(seed).permutation(numbers)
        if len(numbers) < 4:
            raise ValueError(f"{len(numbers)} trajectories; a readout needs at least 4 (two to fit it, two to test it)")
        half = len(numbers) // 2
        tested = ~np.isin(trajectory, numbers[:half])
        flat = lambda values: values[~tested].reshape(-1, *values.shape[2:])
        fit_on = Frames(flat(read[TRUE]), {name: flat(values) for name, values in positions.items()}, half)
        numbers = numbers[half:]
    ends = np.cumsum([values.shape[-1] for values in positions.values()])
    means = {name: fit_on.positions[name].mean(0) for name in positions}
    readout = fit_readout(fit_on.latents, np.concatenate([fit_on.positions[name] for name in positions], -1), seed=seed)
    apply = lambda latents: dict(zip(positions, np.split(readout.apply(latents), ends[:-1], axis=-1)))
    seen, guesses = apply(read[TRUE][tested]), {mode: apply(read[mode][tested]) for mode in MODES}
    found = {}
    for name, truth in positions.items():
        rows = {TRUE_LATENTS: seen[name][:, context:]} | {mode: guess[name] for mode, guess in guesses.items()}
        rows |= {COPY_LAST: seen[name][:, context - 1 : context], MEAN_POSITION: means[name]}
        truth = np.asarray(truth, np.float64)[tested, context:]
        errors = {row: np.linalg.norm(guess - truth, axis=-1) * _CENTIMETRES for row, guess in rows.items()}
        found[name] = Decoded(errors, np.flatnonzero(tested), fit_on.trajectories, len(numbers), len(fit_on.latents))
    return found


def fit_readout(latents, targets, *, seed=0):
    """Fit an attentive readout: queries that point at tokens, and a small network on what they find there.

    Args:
      latents: float `[n, N, D]`; normalised before use.
      targets: `[n, K]`.
      seed: of weights and batches.

    Returns:
      `Readout`.
    """
    targets = np.asarray(targets, np.float64)
    mean, scale = targets.mean(0), np.maximum(targets.std(0), 1e-6)
    steps = int(np.clip(_ROUNDS * len(latents) // _BATCH, _MIN_STEPS, _STEPS))
    rate = optax.warmup_cosine_decay_schedule(0.0, _RATE, _WARMUP, steps)
    optimizer = optax.adamw(rate, weight_decay=_DECAY)
    params = init_readout(jax.random.key(seed), *latents.shape[1:], targets.shape[1])
    state, rng = optimizer.init(params), np.random.default_rng(seed)
    step = jax.jit(functools.partial(_step, optimizer), donate_argnums=(0, 1))
    scaled = ((targets - mean) / scale).astype(np.float32)
    for _ in range(steps):
        rows = rng.integers(0, len(latents), _BATCH)
        params, state = step(params, state, latents[rows], scaled[rows])
    return Readout(params, mean, scale)


def _step(optimizer, params, state, latents, targets):
    """Make one step of AdamW on the Huber loss."""
    loss = lambda params: optax.huber_loss(_read(params, latents), targets, delta=_HUBER).mean()
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state
