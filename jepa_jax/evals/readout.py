"""Positions read off latents by a linear map that was fitted on true ones: errors in centimetres."""

from typing import NamedTuple

import numpy as np

from jepa_jax.evals.rollouts import MODES, TRUE

_FOLDS = 4
# Penalties tried, in mean squared lengths of the features.
_PENALTIES = 10.0 ** np.arange(-5, 3)
_CENTIMETRES = 100.0
# More rows cost minutes and change little.
_MAX_ROWS = 3000
TRUE_LATENTS, COPY_LAST, MEAN_POSITION = "true_latents", "copy_last", "mean_position"


class Ridge(NamedTuple):
    """A linear map with the means that it works around; `penalty` is one of `_PENALTIES`."""

    weights: np.ndarray
    feature_mean: np.ndarray
    target_mean: np.ndarray
    penalty: float

    def apply(self, features):
        """Turn features `[..., P]` into targets `[..., K]`."""
        return (features - self.feature_mean) @ self.weights + self.target_mean


class Decoded(NamedTuple):
    """Position errors of the samples that the readout was not fitted on.

    Attributes:
      errors: dict from row to float64 `[n, H]`, cm: `TRUE_LATENTS`, the modes of `rollouts`, `COPY_LAST`
        (what is read off the last context frame) and `MEAN_POSITION` (of the fitted part).
      tested: int64 `[n]`, numbers of these samples.
      fitted_trajectories, tested_trajectories: how many.
      penalty: of the ridge, in mean squared lengths of the features.
    """

    errors: dict[str, np.ndarray]
    tested: np.ndarray
    fitted_trajectories: int
    tested_trajectories: int
    penalty: float


def decode_positions(read, positions, trajectory, *, context, seed=0):
    """Fit a readout on the true latents of half of the trajectories and apply it to those of the others.

    Args:
      read: as in `rollouts.Measured`.
      positions: `[N, F, K]`, m.
      trajectory: int `[N]`, the trajectory of every sample.
      context: frames before the first prediction.
      seed: of the halves.

    Returns:
      `Decoded`.

    Raises:
      ValueError: fewer than four trajectories.
    """
    numbers = np.random.default_rng(seed).permutation(np.unique(trajectory))
    if len(numbers) < 4:
        raise ValueError(f"{len(numbers)} trajectories; a readout needs at least 4 (two to fit it, two to test it)")
    fitted = np.isin(trajectory, numbers[: len(numbers) // 2])
    positions = np.asarray(positions, np.float64)
    frames = positions.shape[1]
    ridge = fit_ridge(
        read[TRUE][fitted].reshape(-1, read[TRUE].shape[-1]), positions[fitted].reshape(-1, positions.shape[-1]),
        np.repeat(trajectory[fitted], frames),
    )
    targets = positions[~fitted, context:]
    seen = ridge.apply(read[TRUE][~fitted])
    guesses = {TRUE_LATENTS: seen[:, context:]} | {mode: ridge.apply(read[mode][~fitted]) for mode in MODES}
    guesses[COPY_LAST] = seen[:, context - 1 : context]
    guesses[MEAN_POSITION] = positions[fitted].mean((0, 1))
    errors = {name: np.linalg.norm(guess - targets, axis=-1) * _CENTIMETRES for name, guess in guesses.items()}
    return Decoded(errors, np.flatnonzero(~fitted), len(numbers) // 2, len(numbers) - len(numbers) // 2, ridge.penalty)


def fit_ridge(features, targets, groups):
    """Fit a ridge regression, its penalty chosen on groups left out.

    Args:
      features: `[n, P]`; P may be far larger than n. Of very many rows some are taken, evenly spaced.
      targets: `[n, K]`.
      groups: `[n]`: rows of one group are left out together.

    Returns:
      `Ridge`.
    """
    rows = np.unique(np.linspace(0, len(features) - 1, min(len(features), _MAX_ROWS)).astype(int))
    targets, groups = np.asarray(targets, np.float64)[rows], groups[rows]
    mean, target_mean = features[rows].mean(0, dtype=np.float64), targets.mean(0)
    features = features[rows] - mean
    names = np.unique(groups)
    folds = min(_FOLDS, len(names))
    fold = np.searchsorted(names, groups) % folds
    # Products of all rows with each other are all that is needed, however wide the rows are.
    products = features @ features.T
    losses = np.zeros(len(_PENALTIES))
    for number in range(folds):
        train, test = fold != number, fold == number
        centered, across = _center(products, train, test)
        base = targets[train].mean(0)
        for place, alpha in enumerate(_solve(centered, targets[train] - base)):
            losses[place] += np.square(across @ alpha + base - targets[test]).sum()
    best = int(losses.argmin())
    alpha = _solve(products, targets - target_mean)[best]
    return Ridge(features.T @ alpha, mean, target_mean, float(_PENALTIES[best]))


def _center(products, train, test):
    """Return products of rows less the mean of the training rows: of these, and of test rows with these."""
    inner, across = products[np.ix_(train, train)], products[np.ix_(test, train)]
    means = inner.mean(0)
    return (
        inner - means - means[:, None] + means.mean(),
        across - across.mean(1, keepdims=True) - means + means.mean(),
    )


def _solve(products, targets):
    """Solve (products + penalty) alpha = targets for every penalty."""
    values, vectors = np.linalg.eigh(products)
    turned = vectors.T @ targets
    scale = max(float(np.trace(products)) / len(products), 1e-12)
    return [vectors @ (turned / (np.maximum(values, 0) + penalty * scale)[:, None]) for penalty in _PENALTIES]
