"""Vectors in many files: read as one array, however many files there are."""

import os
import resource

import numpy as np
import pytest

from jepa_jax.curation.chunks import Chunks, Vectors


def _write_vectors(chunks, index, rows, failed=(), count=None):
    content = {"count": len(rows) if count is None else count, "failed": list(failed), "skips": []}
    chunks.write(index, content, rows)


def test_vectors_of_all_files_are_one_array(tmp_path):
    chunks = Chunks(str(tmp_path), "pool", 3)
    rows = np.arange(24).reshape(8, 3)
    for index, (low, high) in enumerate(((0, 4), (4, 4), (4, 8))):
        _write_vectors(chunks, index, rows[low:high], failed=[1] if index == 2 else [])
    assert chunks.missing(".npy") == [] and Chunks(str(tmp_path), "pool", 5).missing(".npy", 1, 3) == [4]
    vectors = Vectors(chunks)
    assert len(vectors) == 7 and vectors.good.tolist() == [0, 1, 2, 3, 4, 6, 7]
    order = np.array([6, 0, 5, 5, 3])
    np.testing.assert_array_equal(vectors.take(order), rows[[7, 0, 6, 6, 3]])


def test_vectors_of_more_files_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa_jax.curation.chunks._OPEN_FILES", 10)
    chunks = Chunks(str(tmp_path), "pool", 120)
    rows = np.arange(480).reshape(240, 2)
    for index in range(120):
        _write_vectors(chunks, index, rows[2 * index : 2 * index + 2])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd"))) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    try:
        order = np.random.default_rng(0).permutation(240)
        np.testing.assert_array_equal(Vectors(chunks).take(order), rows[order])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_vectors_that_are_not_as_many_as_they_say_are_refused(tmp_path):
    chunks = Chunks(str(tmp_path), "pool", 1)
    _write_vectors(chunks, 0, np.ones((3, 2)), count=4)
    with pytest.raises(ValueError, match="pool-000000.npy holds 3 vectors, its JSON says 4"):
        Vectors(chunks).take(np.arange(2))
