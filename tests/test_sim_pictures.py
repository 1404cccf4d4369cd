"""Pictures of the simulated table-top: what changes in them, by how much, and where things are drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from jepa_jax import sim
from jepa_jax.viz.trajectories import project

_SIZE = 64


@functools.cache
def _drawer(camera, size=_SIZE):
    return fast_jit(functools.partial(sim.render, camera=camera, size=size))


def _draw(state, scene, camera="front", size=_SIZE):
    return np.asarray(_drawer(camera, size)(state, scene)).astype(int)


@pytest.fixture(scope="module")
def clean():
    return sim.clean_scene()


def _states(count):
    states = jax.vmap(sim.reset)(jax.random.split(jax.random.key(0), count))
    return [jax.tree.map(lambda part, i=i: part[i], states) for i in range(count)]


def _changed(one, other):
    """Count the pixels that plainly differ."""
    return (np.abs(one - other).max(-1) > 25).sum()


def test_pictures_are_what_was_asked_for(clean):
    state = _states(1)[0]
    wide = np.asarray(_drawer("front", (32, 48))(state, clean))
    assert wide.dtype == np.uint8 and wide.shape == (32, 48, 3) and wide.std() > 20
    np.testing.assert_array_equal(_draw(state, clean), _draw(state, clean))
    batch = jax.tree.map(lambda *parts: jnp.stack(parts), *_states(3))
    scenes = jax.tree.map(lambda part: jnp.stack([part] * 3), clean)
    drawn = np.asarray(fast_jit(sim.render_batch)(batch, scenes)).astype(int)
    assert np.abs(drawn[1] - _draw(_states(3)[1], clean)).max() <= 2
    with pytest.raises(ValueError, match="no camera 'back'; allowed: front, left, right, top, wrist"):
        sim.render(state, clean, "back")
    with pytest.raises(ValueError, match="0 x 0 pixels"):
        sim.render(state, clean, size=0)


@pytest.mark.parametrize("camera", ["front", "left"])
def test_opening_and_small_motions_are_plainly_visible(clean, camera):
    for state in _states(3):
        state = state._replace(pose=jnp.float32([0.45, 0.0, 0.2, 0, 0, 0.2, 0]))
        before = _draw(state, clean, camera)
        changes = {
            name: _changed(before, _draw(state._replace(pose=state.pose.at[place].add(change)), clean, camera))
            for name, place, change in (("x", 0, 0.05), ("y", 1, 0.05), ("z", 2, 0.05), ("gripper", 6, 1), ("yaw", 5, 0.5))
        }
        assert min(changes.values()) > 60, changes
        turned = _draw(state._replace(objects=state.objects.at[0, 5].add(0.6)), clean, camera)
        assert _changed(before, turned) > 5


@pytest.mark.parametrize("camera", sim.CAMERAS)
def test_things_are_drawn_where_the_extrinsics_say(camera, clean):
    # A shifted camera, so that the extrinsics must include the shift.
    scene = clean._replace(camera=jnp.float32([0.02, -0.03, 0.01, 0.02, -0.03, 0.02]))
    state = _states(1)[0]._replace(pose=jnp.float32([0.42, 0.0, 0.25, 0, 0, 0.4, 0]))
    below = jnp.float32([0.38, 0.03, 0.036, 0, 0, 0])
    away = jnp.float32([9.0, 9.0, -1.0, 0, 0, 0])
    drawn, empty = (
        _draw(state._replace(objects=state.objects.at[:].set(jnp.stack([box, away]))), scene, camera)
        for box in (below, away)
    )
    weights = np.abs(drawn - empty).sum(-1) * (np.abs(drawn - empty).max(-1) > 60)
    rows, columns = np.mgrid[:_SIZE, :_SIZE]
    seen = np.float64([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()
    place = np.asarray(sim.extrinsics(camera, state.pose, scene.camera))
    expected = project(np.float64(below[None, :3]), place, (_SIZE, _SIZE), sim.FIELD_OF_VIEW)[0]
    assert np.abs(seen - expected).max() < (6 if camera == sim.CAMERAS[-1] else 2), (seen, expected)


def test_nuisance_grows_from_nothing_to_more_than_the_gripper_moves(clean):
    states = _states(6)
    keys = jax.random.split(jax.random.key(1), len(states))
    sample = fast_jit(sim.sample_scene)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other),
        sample(keys[0], sim.Nuisance())._replace(**_unseen(clean)), clean,
    )  # fmt: skip
    change = {}
    for kind in (*sim.Nuisance._fields, "all"):
        means = []
        for strength in (0.0, 0.5, 1.0):
            nuisance = sim.Nuisance.all(strength) if kind == "all" else sim.Nuisance(**{kind: strength})
            nuisance = sim.Nuisance(*map(jnp.float32, nuisance))
            pairs = [
                (_draw(state, sample(key, nuisance)), _draw(state, clean)) for key, state in zip(keys, states)
            ]
            means.append(np.mean([np.abs(one - other).mean() for one, other in pairs]))
        assert means[0] == 0 and 0 < means[1] < means[2], (kind, means)
        change[kind] = means[2]
    moved = [state._replace(pose=state.pose.at[:3].add(jnp.float32([-0.05, 0.05, 0.05]))) for state in states]
    motion = np.mean([np.abs(_draw(one, clean) - _draw(other, clean)).mean() for one, other in zip(states, moved)])
    assert change["all"] > 2 * motion, (change, motion)
    with pytest.raises(ValueError, match="strength of nuisance is 1.5"):
        sim.Nuisance.all(1.5)


def _unseen(scene):
    """Return what a scene draws even where its strength makes it invisible."""
    names = ("pattern_color", "pattern_waves", "distractors", "distractor_colors")
    return {name: getattr(scene, name) for name in names}
