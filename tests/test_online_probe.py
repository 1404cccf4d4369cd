"""Classes of held-out features, by neighbours and by a linear head."""

import numpy as np

from jepa_jax.tasks.online_probe import separate, vote


def test_neighbours_vote_by_distance():
    known = np.array([[0, 1], [0, 1.1], [1, 0], [1.1, 0], [0.9, 0.1]], np.float32)
    labels, asked = np.array([2, 2, 0, 0, 0]), np.array([[0, 2], [2, 0]], np.float32)
    assert vote(known, labels, asked, 2).tolist() == [2, 0]
    # Three of five are of class 0, but they are far away.
    assert vote(known, labels, asked, 5).tolist() == [2, 0]


def test_a_linear_head_finds_a_direction_that_neighbours_miss():
    """One channel of 30 tells the class, the others are louder."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    features = rng.normal(size=(600, 30))
    features[:, 3] = 0.5 * features[:, 3] + labels - 0.5
    known, asked = features[:300], features[300:]
    right = [(guess == labels[300:]).mean() for guess in (separate(known, labels[:300], asked), vote(known, labels[:300], asked, 10))]
    assert right[0] > 0.75 and right[0] > right[1] + 0.1
