"""Checkpoints that changed on disk: told from whole ones, set aside, and never used."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import media
import numpy as np
import optax
import pytest
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec
from jepa_jax.training import checkpoint, fingerprint, sharding, start
from jepa_jax.training.state import create_state

RUN = {"config": {}, "data": {}, "model": {}, "drawn": {}}


def _state(step, mesh):
    weights = np.random.default_rng(step).normal(size=(64, 96)).astype(np.float32)
    state = create_state({"layer": {"kernel": weights}}, {"layer": {"kernel": 2 * weights}}, optax.adam(0.1))
    return jax.device_put(state.replace(step=jnp.int32(step)), NamedSharding(mesh, PartitionSpec()))


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, jax.devices()[:2])


@pytest.fixture(scope="module")
def saved(mesh, tmp_path_factory):
    """A workdir with checkpoints of the steps 1, 2 and 3."""
    workdir = tmp_path_factory.mktemp("saved")
    store = checkpoint.CheckpointStore(workdir / "checkpoints")
    for step in (1, 2, 3):
        store.save(step, _state(step, mesh), RUN)
    store.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "run"))


def _resume(workdir, mesh):
    """Start a run as the train loop does; returns (step, state)."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _state(0, mesh))
    store = checkpoint.CheckpointStore(workdir / "checkpoints")
    try:
        state, _, text = start.start(store, abstract, None, None, lambda *_: None, mode="scratch", checkpoint="")
    finally:
        store.close()
    return int(text.split()[3]), state


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _largest(folder):
    return max(_files(folder), key=lambda path: path.stat().st_size)


def _flip(path):
    media.flip_byte(path, path.stat().st_size // 2)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [
    lambda step: _flip(_largest(step / "params")), lambda step: _flip(_largest(step / "opt_state")),
    lambda step: _cut(_largest(step / "params")), lambda step: _largest(step / "target_params").unlink(),
    lambda step: (step / "params" / "manifest.ocdbt").unlink(), lambda step: _cut(step / "opt_state" / "_METADATA"),
    lambda step: (step / "progress" / "_METADATA").unlink(), lambda step: (step / "run" / "metadata").unlink(),
    lambda step: _cut(step / "run" / "metadata"), lambda step: shutil.rmtree(step / "progress"),
], ids=["bit", "bit of Adam", "cut", "lost file", "lost manifest", "cut list", "lost list", "lost config", "cut config",
        "lost folder"])
def test_damaged_checkpoint_is_set_aside_for_the_one_before(harm, workdir, mesh, warnings):
    harm(workdir / "checkpoints" / "3")
    step, state = _resume(workdir, mesh)
    assert step == int(state.step) == 2
    np.testing.assert_array_equal(state.params["layer"]["kernel"], _state(2, mesh).params["layer"]["kernel"])
    assert any(f"checkpoint {workdir}/checkpoints/3" in line for line in warnings) and "going back to step 2" in warnings[-1]
    assert (workdir / checkpoint.DAMAGED / "3").is_dir() and not (workdir / "checkpoints" / "3").exists()


def test_relative_workdir(workdir, mesh, monkeypatch):
    monkeypatch.chdir(workdir.parent)
    assert _resume(pathlib.Path(workdir.name), mesh)[0] == 3


def test_size_and_time_of_a_save_are_logged(tmp_path, mesh, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "info", lambda text, *values: lines.append((text, values)))
    store = checkpoint.CheckpointStore(tmp_path / "checkpoints")
    for step in (1, 2):
        store.save(step, _state(step, mesh), RUN)
    store.close()
    saved = [values for text, values in lines if str(text).startswith("saved step")]
    assert [step for step, *_ in saved] == [1, 2]
    # Four arrays of float32: weights, their average, two moments of Adam; beside them a few counters.
    assert all(size * 2**30 == pytest.approx(4 * 64 * 96 * 4, rel=1e-3) and seconds > 0 for _, size, seconds, _ in saved)


def test_run_goes_on_saving_where_damage_was(workdir, mesh, warnings):
    _flip(_largest(workdir / "checkpoints" / "3" / "params"))
    _resume(workdir, mesh)
    for _ in range(2):
        store = checkpoint.CheckpointStore(workdir / "checkpoints")
        store.save(3, _state(3, mesh), RUN)
        store.close()
        step, state = _resume(workdir, mesh)
        assert step == 3
        _flip(_largest(workdir / "checkpoints" / "3" / "params"))
        assert _resume(workdir, mesh)[0] == 2
    assert sorted(path.name for path in (workdir / checkpoint.DAMAGED).iterdir()) == ["3", "3.1", "3.2", "README"]


def test_nothing_is_moved_where_no_checkpoint_is_whole(workdir, mesh, warnings):
    for step in "123":
        _flip(_largest(workdir / "checkpoints" / step / "params"))
    with pytest.raises(checkpoint.CheckpointError, match=r"none of the checkpoints .*: steps \[1, 2, 3\].*Nothing was changed"):
        _resume(workdir, mesh)
    assert len(warnings) == 3 and {"1", "2", "3"} <= {path.name for path in (workdir / "checkpoints").iterdir()}


def test_weights_for_another_run_are_checked_too(workdir, mesh):
    _flip(_largest(workdir / "checkpoints" / "3" / "target_params"))
    store, step = checkpoint.open_checkpoint(workdir)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _state(0, mesh))
    with pytest.raises(checkpoint.DamagedCheckpoint, match="1 arrays changed on disk, first 'target_params/layer/kernel'"):
        store.restore_weights(step, abstract)
    store.close()


def test_fingerprint_sees_every_bit_and_no_division(mesh):
    wide = sharding.make_mesh(4, jax.devices()[:4])
    values = {"a": np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32), "b": jnp.ones(3, jnp.bfloat16), "n": np.int32(7)}
    whole = jax.device_put(values, NamedSharding(mesh, PartitionSpec()))
    split = dict(whole, a=jax.device_put(values["a"], NamedSharding(wide, PartitionSpec(None, "fsdp"))))
    numbers = fingerprint.fingerprints(whole)
    assert sorted(numbers) == ["a", "b", "n"] and fingerprint.fingerprints(split) == numbers
    assert fingerprint.changed(split, numbers) == [] == fingerprint.changed(whole, {})
    for bit in (0, 31):
        changed = values["a"].copy()
        changed.view(np.uint32)[3, 4] ^= 1 << bit
        assert fingerprint.changed(dict(whole, a=jnp.asarray(changed)), numbers) == ["a"]
