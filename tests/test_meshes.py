"""Meshes of devices, and what does not fit onto them."""

import jax
import pytest

from jepa_jax.training import sharding


def test_mesh_must_fit_devices_and_batch():
    with pytest.raises(ValueError, match="mesh.fsdp 3 does not divide the number of devices, 8"):
        sharding.make_mesh(3)
    assert sharding.make_mesh(-1).shape["fsdp"] == 8
    with pytest.raises(ValueError, match="batch size 12 of group 'video' is not a multiple of 16"):
        sharding.check_batch_size("video", 12, sharding.make_mesh(2), parts=2)


@pytest.mark.parametrize("fsdp, sequence, message", [
    (1, 3, "mesh.sequence 3 does not divide the number of devices, 4"), (4, 2, "mesh.fsdp 4 x mesh.sequence 2 does not divide"),
    (1, 0, "mesh.sequence 0"), (3, 1, "mesh.fsdp 3 does not divide"),
])
def test_meshes_that_do_not_fit(fsdp, sequence, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(fsdp, jax.devices()[:4], sequence)
