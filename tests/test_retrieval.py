"""Which clusters are like the target sets, and how many scenes each gives."""

import numpy as np
import pytest

from jepa_jax.curation import retrieval


def test_weights_of_clusters_by_hand():
    hits = {"K710": np.array([6, 2, 0, 0]), "SSv2": np.array([0, 5, 5, 0])}
    weights = retrieval.cluster_weights(hits, retrieval.PAPER_WEIGHTS)
    # 0.7 * 6/8, 0.7 * 2/8 + 0.125 * 5/10, 0.125 * 5/10, nothing.
    np.testing.assert_allclose(weights, [0.525, 0.2375, 0.0625, 0.0])
    assert sum(retrieval.PAPER_WEIGHTS.values()) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="'mine' has weight None"):
        retrieval.cluster_weights({"mine": np.array([1])}, retrieval.PAPER_WEIGHTS)
    with pytest.raises(ValueError, match="'COIN' has no sample"):
        retrieval.cluster_weights({"COIN": np.array([0])}, retrieval.PAPER_WEIGHTS)


def test_scenes_are_shared_out_by_weight_as_far_as_clusters_reach():
    sizes = np.array([100, 100, 100, 100])
    weights = np.array([0.5, 0.3, 0.2, 0.0])
    assert retrieval.share_out(sizes, weights, 100).tolist() == [50, 30, 20, 0]
    # The first has but 10; the rest is shared by the others, 3 to 2.
    assert retrieval.share_out(np.array([10, 100, 100, 100]), weights, 60).tolist() == [10, 30, 20, 0]
    assert retrieval.share_out(sizes, weights, 7).sum() == 7
    assert retrieval.share_out(sizes, weights, 1000).tolist() == [100, 100, 100, 0]
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes, weights = rng.integers(0, 30, 20), rng.random(20) * (rng.random(20) > 0.4)
        wanted = int(rng.integers(1, 300))
        counts = retrieval.share_out(sizes, weights, wanted)
        assert (counts <= np.where(weights > 0, sizes, 0)).all()
        assert counts.sum() == min(wanted, sizes[weights > 0].sum())
        # Clusters that could give more have the same number of scenes per weight, but for rounding.
        more = (counts < sizes) & (weights > 0)
        ratio = (counts[more, None] + [-1, 1]) / weights[more, None]
        assert not more.any() or ratio[:, 0].max() <= ratio[:, 1].min()


def test_written_scenes_are_divided_among_the_target_sets_of_their_clusters():
    # The first cluster weighs 0.6 + 0.1, the second 0.1, the third 0.2.
    hits = {"a": np.array([3, 0, 1, 0]), "b": np.array([1, 1, 0, 0])}
    weights = {"a": 0.8, "b": 0.2}
    shares = retrieval.realized_shares(hits, weights, np.array([70, 10, 20, 0]))
    assert shares == pytest.approx({"a": 0.8, "b": 0.2})
    # Only 7 scenes of the first: 6 of them for a, 1 for b.
    shares = retrieval.realized_shares(hits, weights, np.array([7, 10, 20, 0]))
    assert shares == pytest.approx({"a": 26 / 37, "b": 11 / 37})
    assert retrieval.realized_shares(hits, weights, np.zeros(4, int)) == {"a": 0, "b": 0}


def test_scenes_are_drawn_from_their_clusters():
    labels = np.array([0, 1, 1, -1, 2, 1, 0, 2, 1])
    drawn = retrieval.draw_scenes(labels, np.array([1, 2, 0]), 0)
    assert sorted(labels[drawn]) == [0, 1, 1] and (np.diff(drawn) > 0).all()
    assert drawn.tolist() == retrieval.draw_scenes(labels, np.array([1, 2, 0]), 0).tolist()
    assert len({tuple(retrieval.draw_scenes(labels, np.array([1, 2, 0]), seed)) for seed in range(20)}) > 3
    assert retrieval.draw_scenes(labels, np.array([2, 4, 2]), 0).tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
