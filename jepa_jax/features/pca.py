"""Tokens as colours: their first three principal components, fitted over as many tokens as there are."""

from typing import NamedTuple

import numpy as np

# The tokens, in percent, whose distance from the median stays well inside the colour range;
# the rest is bent in, or a few outliers would leave everything else in one colour.
_CORE = 90
# Medians are taken over at most this many tokens, evenly spaced.
_MAX_SCORES = 1 << 20


class ColorMap(NamedTuple):
    """How a token becomes a colour.

    Attributes:
      mean: float64 `[D]`.
      axes: float64 `[D, 3]`, orthonormal, largest variance first.
      center, core: float64 `[3]`: the scores that become the middle of the colour range, and
        the distance from there within which `_CORE` percent of the tokens lie.
      share: of the variance that the three axes hold.
    """

    mean: np.ndarray
    axes: np.ndarray
    center: np.ndarray
    core: np.ndarray
    share: float

    def apply(self, latents):
        """Turn latents into colours.

        Args:
          latents: float `[..., D]`.

        Returns:
          float64 `[..., 3]` in 0..1.
        """
        distances = _scores(latents, self.mean, self.axes) - self.center
        return 0.5 + 0.5 * np.tanh(distances / np.maximum(self.core, 1e-12))


def fit_colors(chunks):
    """Fit one mapping to all tokens, in two passes and in memory that does not grow with them.

    Args:
      chunks: sequence of float arrays `[..., D]`, D at least 3; read twice.

    Returns:
      `ColorMap`.

    Raises:
      ValueError: if there are no tokens, or they have fewer than three channels.
    """
    count, shift = 0, None
    for chunk in chunks:
        tokens = _as_rows(chunk)
        if shift is None:
            # Near the mean, so that no digits are lost when it is taken off.
            shift = tokens.mean(axis=0)
            total, products = np.zeros_like(shift), np.zeros((len(shift),) * 2)
        tokens = tokens - shift
        count += len(tokens)
        total += tokens.sum(axis=0)
        products += tokens.T @ tokens
    if not count or len(shift) < 3:
        raise ValueError(f"colours need tokens of at least 3 channels, got {count} of {0 if shift is None else len(shift)}")
    offset = total / count
    mean = shift + offset
    variances, axes = np.linalg.eigh(products / count - np.outer(offset, offset))
    axes = axes[:, :-4:-1]
    # An axis has no direction of its own; its largest entry is made positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(3)])
    scores = _spaced_scores(chunks, mean, axes, -(-count // _MAX_SCORES))
    center = np.median(scores, axis=0)
    core = np.percentile(np.abs(scores - center), _CORE, axis=0)
    all_variance = variances.sum()
    share = float(variances[-3:].sum() / all_variance) if all_variance > 0 else 0.0
    return ColorMap(mean, axes, center, core, share)


def _spaced_scores(chunks, mean, axes, spacing):
    scores, first = [], 0
    for chunk in chunks:
        rows = chunk.reshape(-1, chunk.shape[-1])
        scores.append(_scores(rows[first::spacing], mean, axes))
        first = (first - len(rows)) % spacing
    return np.concatenate(scores)


def _scores(latents, mean, axes):
    return (np.asarray(latents, np.float64) - mean) @ axes


def _as_rows(chunk):
    return np.asarray(chunk, np.float64).reshape(-1, chunk.shape[-1])
