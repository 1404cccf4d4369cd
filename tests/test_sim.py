"""The simulated table-top: how it moves, what touches what, and what its scripted expert gets done."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from jepa_jax import sim
from jepa_jax.data import poses
from jepa_jax.sim import bodies, contacts

BOX, CUP = 0, 1
_step, _reset = fast_jit(sim.step), fast_jit(sim.reset)
_run = fast_jit(jax.vmap(functools.partial(sim.run_episode, steps=32)))


@fast_jit
def _expert_episode(state, intent):
    def one(state, _):
        action, phase = sim.expert(state, intent)
        return sim.step(state, action), (state, phase)

    return jax.lax.scan(one, state, length=48)


def _state(pose, box=(0.45, -0.1), cup=(0.45, 0.12), plate=(0.6, 0.2), **changes):
    """Make a state with the gripper at a pose and things at places."""
    heights = bodies.OBJECT_HALF_HEIGHTS
    objects = np.float32([[*box, heights[BOX], 0, 0, 0], [*cup, heights[CUP], 0, 0, 0]])
    held, grip = jnp.int32(sim.NOTHING), jnp.zeros(6)
    return sim.State(jnp.float32(pose), jnp.asarray(objects), held, grip, jnp.float32(plate))._replace(**changes)


def _move(state, **changes):
    """Step once by the named parts of an action."""
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    return _step(state, jnp.float32([changes.get(name, 0) for name in names]))


def test_starts_have_room_between_things():
    states = jax.vmap(sim.reset)(jax.random.split(jax.random.key(0), 2000))
    places = np.concatenate([states.objects[:, :, :2], states.plate[:, None]], 1)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(places[:, one] - places[:, other], axis=-1).min() > 0.139
    assert (states.held == sim.NOTHING).all() and (states.pose[:, 2] > 0.12).all()
    assert (states.objects[:, :, 2] >= bodies.OBJECT_HALF_HEIGHTS - 1e-6).all()
    assert np.ptp(np.asarray(states.objects), axis=0)[:, [0, 1, 5]].min() > 0.2


def test_free_motion_is_the_algebra_of_poses():
    state = _state([0.45, 0, 0.25, 0.1, -0.1, 0.4, 0.3])
    for number in range(4):
        action = jax.random.normal(jax.random.key(number), (7,)) * sim.MAX_ACTION * 0.4
        after = _step(state, action)
        np.testing.assert_allclose(after.pose, poses.apply_action(state.pose, action, np), atol=2e-6)
        np.testing.assert_array_equal(after.objects, state.objects)
        state = after


def test_the_same_key_gives_the_same_episode_alone_or_in_a_batch():
    keys = jax.random.split(jax.random.key(3), 4)
    batch, again = _run(keys), _run(keys)
    jax.tree.map(np.testing.assert_array_equal, batch, again)
    one = jax.tree.map(lambda part: part[2], batch)
    rows = [jax.tree.unflatten(jax.tree.structure(one.states), parts) for parts in zip(*jax.tree.leaves(one.states))]
    for before, action, after in zip(rows, one.actions, rows[1:]):
        state = _step(before, action)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), state, after)
    assert state.pose.dtype == jnp.float32


def test_the_tool_stays_in_its_workspace_and_above_the_table():
    states = _run(jax.random.split(jax.random.key(4), 64)).states
    poses_ = np.asarray(states.pose)
    assert (poses_ >= sim.LOW - 1e-5).all() and (poses_ <= sim.HIGH + 1e-5).all()
    corner = _state([0.45, 0, 0.02, 0, 0, 0, 0])
    for change in ({"x": 9}, {"y": -9}, {"z": 9}, {"z": -9}, {"yaw": 1.5}, {"gripper": -3}):
        after = np.asarray(_move(_move(corner, **change), **change).pose)
        assert (after >= sim.LOW - 1e-5).all() and (after <= sim.HIGH + 1e-5).all()
    # Tilted, the same height would put a finger into the table.
    tilted = _move(corner, roll=0.5)
    spread = bodies.FINGER_STROKE + bodies.FINGER_HALF[1] * 2
    assert tilted.pose[2] - 0.479 * spread - 0.877 * bodies.FINGER_BELOW > -2e-3


def test_whatever_is_commanded_things_stay_apart_and_above_the_table():
    def episode(key):
        # The same random action for some steps, mostly downward, from a start with or without an object.
        start = sim.reset(key)
        number = jax.random.randint(key, (), 0, 4)
        held = sim.holding(start, jnp.minimum(number, CUP))
        start = jax.tree.map(lambda one, other: jnp.where(number < 2, one, other), held, start)
        actions = jax.random.uniform(jax.random.fold_in(key, 1), (6, 7), minval=-1, maxval=1) * sim.MAX_ACTION
        actions = jnp.repeat(actions.at[:, 2].add(-0.02).at[:, 6].mul(0.3), 6, axis=0)
        return jax.lax.scan(lambda state, action: (sim.step(state, action), state), start, actions)[1]

    states = fast_jit(jax.vmap(episode))(jax.random.split(jax.random.key(9), 150))
    gripped = jnp.take_along_axis(states.objects, jnp.maximum(states.held, 0)[..., None, None], 2)[:, :, 0]
    discs = fast_jit(jax.vmap(jax.vmap(contacts.pushers)))(states.pose, states.held, gripped)
    discs, objects, held = jax.tree.map(np.asarray, (discs, states.objects, states.held))
    assert (held >= 0).mean() > 0.1 and (held < 0).mean() > 0.3
    exists = discs.radii > 0
    assert discs.bottoms[exists].min() > -1e-5
    for number in (BOX, CUP):
        places, middle = objects[:, :, None, number, :2], objects[:, :, None, number, 2]
        aside = discs.radii + bodies.OBJECT_RADII[number] - np.linalg.norm(discs.places - places, axis=-1)
        half = bodies.OBJECT_HALF_HEIGHTS[number]
        inside = np.minimum(aside, np.minimum(middle + half - discs.bottoms, discs.tops - middle + half))
        inside = inside[exists & (held != number)[..., None]]
        # A finger may sink a little into a top before it counts as pushing the side.
        assert inside.max() < 0.015 and (inside > 0.005).mean() < 2e-3
        # Nothing jumps: what is pushed goes no farther than a step and the width of what pushes.
        assert np.linalg.norm(np.diff(objects[:, :, number, :2], axis=1), axis=-1).max() < 0.12


@pytest.mark.parametrize("number", [BOX, CUP])
def test_fingers_that_close_within_the_window_hold(number):
    place = np.float32([0.45, [-0.1, 0.12][number], bodies.OBJECT_HALF_HEIGHTS[number]])
    contact = bodies.CONTACT_CLOSEDNESS[number]
    for offset, holds in (([0.04, 0.02, 0], True), ([0, 0.045, 0.02], True), ([0.065, 0, 0], False)):
        state = _state([*(place + offset), 0, 0, 0, 0])
        half = _move(state, gripper=contact - 0.1)
        assert half.held == sim.NOTHING
        closed = _move(half, gripper=0.5)
        assert closed.held == (number if holds else sim.NOTHING)
    closed = _move(_move(_state([*place, 0, 0, 0.3, 0]), gripper=0.5), gripper=0.5)
    assert closed.pose[6] == pytest.approx(contact), "fingers stop where they touch"
    # Opening a little does not let go; opening more does.
    assert _move(closed, gripper=-0.05).held == number and _move(closed, gripper=-0.2).held == sim.NOTHING
    # What is closed already grasps nothing.
    assert _move(_state([*place, 0, 0, 0, 0.9]), gripper=0.1).held == sim.NOTHING


def test_a_held_object_moves_and_turns_with_the_tool_and_falls_when_let_go():
    state = sim.holding(_state([0.5, 0.0, 0.2, 0, 0, 0, 0]), BOX)
    grip = state.objects[BOX, :3] - state.pose[:3]
    for _ in range(3):
        state = _move(state, x=-0.03, z=0.02, yaw=0.2)
    np.testing.assert_allclose(state.objects[BOX, :3] - state.pose[:3], grip, atol=1e-5)
    assert state.objects[BOX, 5] == pytest.approx(0.6, abs=1e-5)
    dropped = _move(_move(state, roll=0.3), gripper=-0.3)
    assert dropped.objects[BOX, 2] == pytest.approx(bodies.BOX_HALF)
    np.testing.assert_allclose(dropped.objects[BOX, 3:5], 0)
    # Onto the plate, and onto the cup.
    plate = _move(state._replace(plate=state.objects[BOX, :2]), gripper=-0.3)
    assert plate.objects[BOX, 2] == pytest.approx(bodies.BOX_HALF + bodies.PLATE_HEIGHT)
    cup = state.objects.at[CUP, :2].set(state.objects[BOX, :2] + 0.01)
    stacked = _move(state._replace(objects=cup), gripper=-0.3)
    assert stacked.objects[BOX, 2] == pytest.approx(2 * bodies.CUP_HALF_HEIGHT + bodies.BOX_HALF, abs=1e-5)


def test_fingers_stop_on_tops_and_push_sides():
    top = 2 * bodies.BOX_HALF
    pressed = _move(_state([0.45, -0.1, 0.12, 0, 0, 0, 1]), z=-0.1)
    assert pressed.pose[2] - bodies.FINGER_BELOW == pytest.approx(top, abs=1e-5)
    pushed = _move(_state([0.45, -0.16, 0.03, 0, 0, 0, 1]), y=0.04)
    assert pushed.objects[BOX, 1] > -0.1 + 0.01
    carried = sim.holding(_state([0.45, -0.1, 0.05, 0, 0, 0, 0], box=(0.6, 0.2), cup=(0.45, -0.01)), BOX)
    carried = _move(carried, y=0.05)
    gap = np.linalg.norm(carried.objects[BOX, :2] - carried.objects[CUP, :2])
    assert gap == pytest.approx(bodies.OBJECT_RADII.sum(), abs=1e-3)


@pytest.mark.parametrize("number", [BOX, CUP])
def test_the_expert_puts_each_object_onto_the_plate(number):
    def episode(key):
        state = sim.reset(key)
        intent = sim.new_intent(key, state)._replace(target=jnp.int32(number), put=state.plate)
        last, (states, phases) = _expert_episode(state, intent)
        return sim.is_placed(last, intent), (states.held == number).any(), phases

    placed, grasped, phases = jax.vmap(episode)(jax.random.split(jax.random.key(number), 64))
    assert grasped.mean() > 0.95 and placed.mean() > 0.9
    assert set(np.unique(phases)) == {0, 1, 2, 3}


def test_collected_steps_are_balanced_and_excite_every_dimension():
    episodes = _run(jax.random.split(jax.random.key(5), 200))
    shares = np.bincount(np.asarray(episodes.phases).ravel(), minlength=len(sim.PHASES)) / episodes.phases.size
    assert shares.min() > 0.1 and shares.max() < 0.35
    assert (np.asarray(episodes.actions).std((0, 1)) > 0.2 * sim.MAX_ACTION).all()
    assert (np.abs(episodes.actions) <= sim.MAX_ACTION + 1e-6).all()
    objects = np.asarray(episodes.states.objects)
    side_by_side = np.abs(objects[:, :, 0, 2] - objects[:, :, 1, 2]) < 0.05
    gaps = np.linalg.norm(objects[:, :, 0, :2] - objects[:, :, 1, :2], axis=-1)
    assert gaps[side_by_side].min() > bodies.OBJECT_RADII.sum() - 2e-3
    assert np.isfinite(objects).all()
