"""Means, ratios and rates with the interval that other trajectories of the same kind would give."""

from typing import NamedTuple

import numpy as np

_DRAWS = 1000
_PERCENT = (2.5, 97.5)
# Half the width of the middle 95 % of the normal distribution.
_NORMAL_95 = 1.959964


class Estimate(NamedTuple):
    """A number, or float64 `[...]` of them, and its 95 % interval."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def to_json(self):
        """Return the numbers as plain data."""
        return {name: np.round(value, 6).tolist() for name, value in self._asdict().items()}


class Bootstrap:
    """Draw trajectories again and again; samples of one trajectory, which resemble each other, stay together.

    Args:
      trajectory: int `[N]`, the trajectory of every sample.
      seed: of the draws.
    """

    def __init__(self, trajectory, seed=0):
        numbers, self._group = np.unique(trajectory, return_inverse=True)
        size = len(numbers)
        self._counts = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), _DRAWS)

    def mean(self, values):
        """Estimate the mean over samples of `[N, ...]`."""
        return self.ratio(values, np.ones_like(values))

    def ratio(self, above, below):
        """Estimate the mean of one quantity `[N, ...]` in means of another, both of the same samples."""
        above, below = self._sums(above), self._sums(below)
        drawn = np.tensordot(self._counts, above, 1) / np.maximum(np.tensordot(self._counts, below, 1), 1e-12)
        value = above.sum(0) / np.maximum(below.sum(0), 1e-12)
        return Estimate(value, *np.percentile(drawn, _PERCENT, axis=0))

    def _sums(self, values):
        """Add up samples `[N, ...]` by trajectory."""
        values = np.asarray(values, np.float64)
        sums = np.zeros((self._counts.shape[1], *values.shape[1:]))
        np.add.at(sums, self._group, values)
        return sums


def wilson(successes, trials):
    """Estimate a rate of success, with Wilson's interval, which holds for few trials and near 0 and 1.

    Args:
      successes: how many trials succeeded.
      trials: how many there were, at least 1.

    Returns:
      `Estimate` of a float.
    """
    rate, spread = successes / trials, _NORMAL_95**2 / trials
    middle = (rate + spread / 2) / (1 + spread)
    half = np.sqrt(rate * (1 - rate) * spread + spread**2 / 4) / (1 + spread)
    return Estimate(rate, max(0.0, middle - half), min(1.0, middle + half))
