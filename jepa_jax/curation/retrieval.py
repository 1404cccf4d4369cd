"""Which clusters of a pool are like the target sets, and which of their scenes to take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Shares of the target sets in the paper (table 11).
PAPER_WEIGHTS = {"K710": 0.7, "SSv2": 0.125, "COIN": 0.125, "EpicKitchen": 0.05}


def cluster_weights(hits: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Weigh clusters by the target samples in them: w_c = sum over sets d of w_d N_dc / N_d.

    Args:
        hits: by target set, int `[K]`: how many of its samples are in each cluster.
        weights: by target set.

    Returns:
        float64 `[K]`; 0 for clusters without any target sample, which are left out.

    Raises:
        ValueError: a set is empty or has no weight above 0.
    """
    total = np.zeros(len(next(iter(hits.values()))), np.float64)
    for name, counts in hits.items():
        if not weights.get(name, 0) > 0:
            raise ValueError(f"target set {name!r} has weight {weights.get(name)}; give one above 0")
        if not counts.sum():
            raise ValueError(f"target set {name!r} has no sample that could be embedded")
        total += weights[name] * counts / counts.sum()
    return total


def realized_shares(
    hits: Mapping[str, np.ndarray], weights: Mapping[str, float], counts: np.ndarray
) -> dict[str, float]:
    """Say to which target sets scenes were written: a cluster's are divided as the terms of its weight are.

    Args:
        hits, weights: as in `cluster_weights`.
        counts: int `[K]`, scenes written of each cluster.

    Returns:
        By target set, its part of all scenes; 0 for all where there are none.
    """
    total = cluster_weights(hits, weights)
    per_weight = np.divide(counts, total, out=np.zeros(len(total)), where=total > 0) / max(1, counts.sum())
    return {name: float(weights[name] * (found @ per_weight) / found.sum()) for name, found in hits.items()}


def share_out(sizes: np.ndarray, weights: np.ndarray, wanted: int) -> np.ndarray:
    """Decide how many scenes to take of each cluster: in proportion to its weight, as far as it has so many.

    What small clusters cannot give is taken from the others, again in proportion.

    Args:
        sizes: int `[K]`, scenes per cluster.
        weights: float `[K]`, at least 0.
        wanted: scenes in all.

    Returns:
        int64 `[K]`, at most `sizes`; sums to `wanted`, or to all scenes of clusters with weight.
    """
    limits = np.where(weights > 0, sizes, 0).astype(np.int64)
    if wanted >= limits.sum():
        return limits
    # With scenes per weight ascending, a cluster is emptied before those after it.
    kept = np.flatnonzero(limits)
    order = kept[np.argsort(limits[kept] / weights[kept], kind="stable")]
    given = np.concatenate([[0], np.cumsum(limits[order])[:-1]])
    left = np.cumsum(weights[order][::-1])[::-1]
    levels = (wanted - given) / left
    full = limits[order] / weights[order] <= levels
    first = int(np.argmin(full)) if not full.all() else len(order) - 1
    exact = np.zeros(len(sizes))
    exact[order] = np.minimum(limits[order], levels[first] * weights[order])
    return _round_to(exact, wanted, limits)


def _round_to(exact: np.ndarray, total: int, limits: np.ndarray) -> np.ndarray:
    """Round to whole numbers that sum to `total`: up where the rest is largest."""
    whole = np.minimum(np.floor(exact + 1e-9).astype(np.int64), limits)
    order = np.argsort(-(exact - whole), kind="stable")
    order = order[whole[order] < limits[order]]
    whole[order[: total - whole.sum()]] += 1
    return whole


def draw_scenes(labels: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Draw scenes of each cluster at random, without replacement.

    Args:
        labels: int `[N]`, cluster of each scene; -1 for none.
        counts: int `[K]`, how many to draw of each.
        seed: of the draw.

    Returns:
        int64, numbers of the drawn scenes, ascending.
    """
    rows = np.flatnonzero((labels >= 0) & (counts[labels] > 0))
    keys = np.random.default_rng(seed).random(len(rows))
    # Ordered by cluster, in it by a random key; the first of each are taken.
    order = np.lexsort((keys, labels[rows]))
    clusters = labels[rows][order]
    firsts = np.searchsorted(clusters, clusters)
    return np.sort(rows[order[np.arange(len(rows)) - firsts < counts[clusters]]])
