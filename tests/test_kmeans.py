"""K-means: planted clusters are found, on any mesh, and a stopped run goes on."""

import numpy as np
import pytest

from jepa_jax.curation import kmeans
from jepa_jax.curation.kmeans import KMeansSpec
from jepa_jax.training.sharding import make_mesh


class Rows:
    """Vectors in memory."""

    def __init__(self, rows):
        self.rows = np.asarray(rows, np.float32)
        self.width = self.rows.shape[1]

    def __len__(self):
        return len(self.rows)

    def take(self, rows):
        return self.rows[rows]


def _planted(count=600, clusters=13, width=8, seed=0):
    """Directions with a little noise; returns (unit vectors, which direction each has)."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(clusters, width))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    truth = rng.integers(clusters, size=count)
    rows = centers[truth] + 0.03 * rng.normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), truth


def _same_partition(left, right):
    pairs = set(zip(left.tolist(), right.tolist()))
    return len(pairs) == len(set(left.tolist())) == len(set(right.tolist()))


@pytest.mark.parametrize("fsdp", [1, 4, 8])
def test_planted_clusters_are_recovered_however_centroids_are_split(fsdp):
    rows, truth = _planted()
    spec = KMeansSpec(13, batch=100)
    found = kmeans.cluster(Rows(rows), spec, make_mesh(fsdp))
    assert _same_partition(found.labels, truth)
    # Against a direct computation of the nearest centroid and the mean.
    far = ((rows[:, None] - found.centroids) ** 2).sum(-1)
    np.testing.assert_array_equal(found.labels, far.argmin(1))
    np.testing.assert_allclose(found.distances, far.min(1), atol=1e-5)
    for label in range(13):
        mean = rows[found.labels == label].mean(0)
        np.testing.assert_allclose(found.centroids[label], mean / np.linalg.norm(mean), atol=1e-4)
    assert found.history[-1] == pytest.approx(far.min(1).mean(), rel=1e-3)
    other = kmeans.assign(Rows(rows[:7]), found.centroids, spec, make_mesh(fsdp))
    np.testing.assert_array_equal(other, found.labels[:7])


def test_the_split_of_centroids_changes_nothing_and_a_rerun_gives_the_same_bits():
    rows, _ = _planted(clusters=40, count=500)
    spec = KMeansSpec(21, batch=128, passes=4, init="random")
    runs = [kmeans.cluster(Rows(rows), spec, make_mesh(fsdp)) for fsdp in (1, 1, 8)]
    np.testing.assert_array_equal(runs[0].centroids, runs[1].centroids)
    np.testing.assert_array_equal(runs[0].labels, runs[2].labels)
    np.testing.assert_allclose(runs[0].centroids, runs[2].centroids, atol=1e-5)
    other = kmeans.cluster(Rows(rows), KMeansSpec(21, batch=128, passes=4, init="random", seed=1), make_mesh())
    assert not np.array_equal(other.labels, runs[0].labels)


def test_passes_lower_the_distance_and_end_when_nothing_moves():
    rows, _ = _planted(clusters=60, count=800)
    spec = KMeansSpec(15, online_passes=0, passes=50, init="random", tolerance=0.0)
    found = kmeans.cluster(Rows(rows), spec, make_mesh())
    assert 3 < len(found.history) < 51 and (np.diff(found.history) <= 1e-7).all()
    # Passes that move after every batch come closer in the same number of passes.
    few = KMeansSpec(15, online_passes=0, passes=1, init="random")
    online = KMeansSpec(15, online_passes=1, passes=1, init="random", batch=64)
    both = [kmeans.cluster(Rows(rows), spec, make_mesh()).history[0] for spec in (few, online)]
    assert both[1] < 0.8 * both[0]


def test_clusters_without_vectors_begin_again_elsewhere():
    # Nearly all vectors are one and the same, so a random start takes copies of it.
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.tile([1.0, 0, 0, 0], (200, 1)), np.eye(4)[[1, 2, 3]], np.eye(4)[[1, 2, 3]]])
    spec = KMeansSpec(4, online_passes=0, init="random", batch=32)
    found = kmeans.cluster(Rows(rows[rng.permutation(len(rows))]), spec, make_mesh(4))
    assert found.reseeded >= 3 and sorted(np.bincount(found.labels, minlength=4)) == [2, 2, 2, 200]
    # More clusters than different vectors: the others stay empty.
    found = kmeans.cluster(Rows(rows), KMeansSpec(7, init="random"), make_mesh())
    assert sorted(np.bincount(found.labels, minlength=7)) == [0, 0, 0, 2, 2, 2, 200]
    assert np.isfinite(found.centroids).all()


def test_without_unit_length_centroids_are_means():
    rows = np.concatenate([np.full((50, 3), 1.0), np.full((30, 3), 5.0)]) + np.random.default_rng(0).normal(
        0, 0.1, (80, 3)
    )
    found = kmeans.cluster(Rows(rows), KMeansSpec(2, spherical=False), make_mesh())
    order = np.argsort(found.centroids[:, 0])
    np.testing.assert_allclose(found.centroids[order], [rows[:50].mean(0), rows[50:].mean(0)], atol=1e-4)


@pytest.mark.parametrize("stopped_after", [1, 2, 4])
def test_a_stopped_clustering_goes_on(stopped_after, tmp_path, monkeypatch):
    rows, _ = _planted(clusters=60, count=500)
    spec = KMeansSpec(15, online_passes=2, passes=4, init="random", tolerance=0.0, batch=64)
    whole = kmeans.cluster(Rows(rows), spec, make_mesh())
    path, saved, save = str(tmp_path / "centroids.npz"), [], kmeans._save

    def stop(*arguments):
        save(*arguments)
        saved.append(1)
        if len(saved) == stopped_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(kmeans, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        kmeans.cluster(Rows(rows), spec, make_mesh(), checkpoint=path)
    monkeypatch.setattr(kmeans, "_save", save)
    monkeypatch.setattr(kmeans.seeding, "first_centroids", lambda *_: pytest.fail("began anew"))
    again = kmeans.cluster(Rows(rows), spec, make_mesh(), checkpoint=path)
    np.testing.assert_array_equal(again.centroids, whole.centroids)
    assert again.history == whole.history


def test_a_finished_clustering_may_be_asked_for_fewer_passes(tmp_path):
    rows, _ = _planted(clusters=60, count=500)
    path = str(tmp_path / "centroids.npz")
    settings = {"online_passes": 1, "init": "random", "tolerance": -1.0, "batch": 64}
    whole = kmeans.cluster(Rows(rows), KMeansSpec(15, passes=6, **settings), make_mesh(), checkpoint=path)
    fewer = kmeans.cluster(Rows(rows), KMeansSpec(15, passes=2, **settings), make_mesh(), checkpoint=path)
    np.testing.assert_array_equal(fewer.labels, whole.labels)
    np.testing.assert_array_equal(fewer.centroids, whole.centroids)


@pytest.mark.parametrize("spherical", [True, False])
def test_copies_of_few_vectors_settle(spherical):
    rows = np.repeat(_planted(count=10)[0].astype(np.float16), 50, axis=0)
    spec = KMeansSpec(20, passes=20, spherical=spherical)
    found = kmeans.cluster(Rows(rows), spec, make_mesh())
    assert len(found.history) < 6 and found.reseeded <= 10
    assert len(set(found.labels.tolist())) == 10


def test_centroids_of_another_clustering_are_not_gone_on_from(tmp_path):
    rows, _ = _planted()
    path = str(tmp_path / "centroids.npz")
    kmeans.cluster(Rows(rows), KMeansSpec(5), make_mesh(), checkpoint=path)
    found = kmeans.cluster(Rows(rows), KMeansSpec(13), make_mesh(), checkpoint=path)
    assert found.centroids.shape == (13, 8)


def test_centroids_are_split_no_further_than_they_must_be():
    # 1.5 million of 1024 numbers are 18.4 GB with their sums and successors: 9 devices of 2 GiB, and 16 divide 256.
    assert kmeans.choose_split(1_500_000, 1024, 256) == 16
    assert kmeans.choose_split(1000, 1024, 8) == 1 and kmeans.choose_split(10**9, 1024, 12) == 12


def test_a_device_reads_only_its_part_of_the_vectors():
    rows, _ = _planted(count=640)
    read = []

    class Counted(Rows):
        def take(self, rows):
            read.append(len(rows))
            return super().take(rows)

    vectors = Counted(rows)
    steps = kmeans._Steps(vectors, KMeansSpec(8, batch=40), make_mesh(4))
    steps.pass_exact(steps.put_centroids(rows[:8]))
    # Two parts of the mesh, 40 vectors for each in a step, though four devices share each part.
    assert read == [40] * 16


def test_what_cannot_be_clustered_is_refused():
    rows, _ = _planted(count=10)
    with pytest.raises(ValueError, match="11 clusters of 10 vectors"):
        kmeans.cluster(Rows(rows), KMeansSpec(11), make_mesh())
    with pytest.raises(ValueError, match="'best' is unknown; choose one of auto"):
        kmeans.cluster(Rows(rows), KMeansSpec(2, init="best"), make_mesh())
