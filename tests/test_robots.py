"""Rotations, and the arithmetic of states and actions for any robot, against SciPy and the official arrays."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from parity.files import load
from scipy.spatial.transform import Rotation

from jepa_jax.data import poses
from jepa_jax.robots.algebra import apply_action, derive_actions, network_inputs, to_frame
from jepa_jax.robots.presets import DROID, SE2, generic
from jepa_jax.robots.rotations import ROTATIONS

_SETS = ("general", "smooth", "wrap", "gimbal", "gimbaldiff")
_SPATIAL = ("xyz euler", "axis angle", "quaternion")
_SCIPY = {"xyz euler": ("from_euler", "xyz"), "axis angle": ("from_rotvec",), "quaternion": ("from_quat",)}


def _reference(rotation, numbers):
    """Turn numbers into matrices as SciPy does."""
    name, *arguments = _SCIPY[rotation]
    return getattr(Rotation, name)(*arguments, numbers).as_matrix()


def _hard_matrices(rotation):
    """Matrices `[n, m, m]`: random ones, and others near the identity, near half turns and near gimbal lock."""
    rng = np.random.default_rng(0)
    tiny = np.array([0, 1e-12, 1e-8, 1e-5, 1e-3, 9.99e-3, 1.01e-2])
    if rotation == "yaw":
        angles = np.concatenate([rng.uniform(-np.pi, np.pi, 50), tiny, np.pi - tiny, tiny - np.pi])
        return Rotation.from_euler("z", angles[:, None]).as_matrix()[:, :2, :2]
    axes = np.concatenate([rng.normal(size=(20, 3)), np.eye(3), -np.eye(3), [[1, 1, 0], [0, -1, 1]]])
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.concatenate([tiny, np.pi - tiny])
    vectors = (axes[:, None] * angles[:, None]).reshape(-1, 3)
    free = rng.uniform(-np.pi, np.pi, (len(tiny), 2))
    locked = [(a, sign * (np.pi / 2 - off), c) for (a, c), off in zip(free, tiny, strict=True) for sign in (1, -1)]
    return np.concatenate(
        [Rotation.random(50, rng=rng).as_matrix(), _reference("axis angle", vectors), _reference("xyz euler", locked)]
    )


def _distance(matrices, others):
    return np.abs(np.asarray(matrices, np.float64) - others).max()


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize(
    ("xp", "dtype", "tolerance"), [(np, np.float64, 1e-14), (np, np.float32, 1e-6), (jnp, np.float32, 1e-6)]
)
def test_rotations_come_back(rotation, xp, dtype, tolerance):
    way, matrices = ROTATIONS[rotation], _hard_matrices(rotation)
    numbers = way.from_matrix(xp.asarray(matrices, dtype), xp)
    assert numbers.shape == (len(matrices), way.width) and numbers.dtype == dtype
    back = way.to_matrix(numbers, xp)
    assert back.dtype == dtype and _distance(back, matrices) < tolerance
    if rotation == "quaternion":
        assert (numbers[:, 3] >= 0).all() and _distance((numbers**2).sum(-1), 1) < tolerance
    elif rotation == "axis angle":
        assert np.linalg.norm(numbers, axis=1).max() <= np.pi * (1 + tolerance)
    else:
        assert np.abs(numbers).max() <= np.float32(np.pi) * (1 + tolerance)


@pytest.mark.parametrize("rotation", _SPATIAL)
def test_rotations_are_those_of_scipy(rotation):
    width = ROTATIONS[rotation].width
    numbers = np.random.default_rng(1).normal(size=(100, width)) * 2
    matrices = ROTATIONS[rotation].to_matrix(numbers)
    assert _distance(matrices, _reference(rotation, numbers)) < 1e-14
    small = numbers[:50] * np.geomspace(1e-12, 1e-1, 50)[:, None]
    assert _distance(ROTATIONS[rotation].to_matrix(small), _reference(rotation, small)) < 1e-15
    if rotation == "axis angle":
        # An angle much smaller than the matrix's last digit keeps its own digits.
        np.testing.assert_allclose(ROTATIONS[rotation].from_matrix(_reference(rotation, small)), small, atol=1e-15)


def test_heading_turns_left():
    np.testing.assert_allclose(ROTATIONS["yaw"].to_matrix(np.array([np.pi / 2])) @ [1, 0], [0, 1], atol=1e-15)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_gradients_are_finite_and_right(rotation):
    way = ROTATIONS[rotation]
    plane, width = rotation == "yaw", way.width
    rng = np.random.default_rng(2)
    identity = [0, 0, 0, 1] if rotation == "quaternion" else [0] * width
    half = way.from_matrix(np.diag([-1.0, -1.0] if plane else [-1.0, -1.0, 1.0]))
    points = np.concatenate([[identity, half], rng.normal(size=(4, width)) * np.geomspace(1e-6, 1, 4)[:, None]])
    points[2:, -1] += rotation == "quaternion"
    turn = way.to_matrix(rng.normal(size=(1, width)))[0]
    weights = rng.normal(size=width)

    def turned(numbers, xp):
        return (
            way.from_matrix(poses.product(way.to_matrix(numbers, xp), xp.asarray(turn, numbers.dtype)), xp) * weights
        ).sum(-1)

    with jax.enable_x64(True):
        found = fast_jit(jax.grad(lambda x: turned(x, jnp).sum()))(jnp.asarray(points))
        same = fast_jit(jax.grad(lambda x: (way.from_matrix(way.to_matrix(x, jnp), jnp) * weights).sum()))(
            jnp.asarray(points[:1])
        )
    step = 1e-6 * np.eye(width)
    expected = (turned(points[:, None] + step, np) - turned(points[:, None] - step, np)) / 2e-6
    np.testing.assert_allclose(found, expected, atol=1e-7)
    # Through a rotation of zero and back, nothing changes but the length of a quaternion.
    np.testing.assert_allclose(same[0], weights * (np.array(identity) != 1), atol=1e-12)
    single = fast_jit(jax.grad(lambda x: (way.from_matrix(way.to_matrix(x, jnp), jnp) * weights).sum()))
    assert np.isfinite(single(jnp.asarray(points, jnp.float32))).all()


def test_gradients_are_finite_at_gimbal_lock():
    locked = np.float32([[[0, 0, sign], [0, 1, 0], [-sign, 0, 0]] for sign in (1, -1)])
    angles, pull = jax.vjp(lambda matrices: poses.matrix_to_euler(matrices, jnp), jnp.asarray(locked))
    np.testing.assert_allclose(poses.euler_to_matrix(angles, jnp), locked, atol=1e-7)
    assert np.isfinite(pull(jnp.ones_like(angles))[0]).all()


def _spec(rotation, frame, mode, **fields):
    """A robot whose pose lies between other numbers: u, x y (z), v, the rotation, gripper, w."""
    way = ROTATIONS.get(rotation)
    coordinates = ["x", "y"] if rotation == "yaw" else ["x", "y", "z"]
    turns = [f"r{place}" for place in range(way.width)] if way else []
    names = ["u", *coordinates, "v", *turns, "gripper", "w"]
    at = names.index("v") + 1
    return generic(
        names, frame=frame, mode=mode, position=1, rotation=rotation, rotation_at=at if way else None,
        gripper=names.index("gripper"), gripper_range=(-1, 2), **fields,
    )  # fmt: skip


def _states(spec, count=60, seed=3):
    """Random states `[count, S]` in their canonical writing."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(count, spec.state_dim))
    states[:, spec.gripper] = rng.uniform(*spec.gripper_range, count)
    if part := spec.part("rotation"):
        matrices = _hard_matrices(spec.rotation)
        states[:, part.where] = ROTATIONS[spec.rotation].from_matrix(matrices[rng.permutation(len(matrices))[:count]])
    return states


def _comparable(spec, states):
    """States with matrices for the rotation, which can be written in several ways."""
    part = spec.part("rotation")
    if part is None:
        return states
    rest = np.delete(states, np.r_[part.where], axis=-1)
    matrices = ROTATIONS[spec.rotation].to_matrix(np.asarray(states, np.float64)[..., part.where])
    return np.concatenate([rest, matrices.reshape(*matrices.shape[:-2], -1)], -1)


_KINDS = [
    (rotation, frame, mode)
    for rotation, frame, mode in itertools.product(
        ("none", *ROTATIONS), ("base", "camera", "tool"), ("delta", "absolute")
    )
    if not (rotation == "none" and frame == "tool") and not (rotation == "yaw" and frame == "camera")
]


@pytest.mark.parametrize(("rotation", "frame", "mode"), _KINDS)
def test_actions_lead_from_state_to_state(rotation, frame, mode):
    spec = _spec(rotation, frame, mode)
    states = _states(spec).reshape(4, 15, -1)
    extrinsics = np.random.default_rng(4).normal(size=(4, 15, 6))
    seen = to_frame(spec, states, extrinsics)
    actions = derive_actions(spec, states, extrinsics=extrinsics)
    assert actions.shape == (4, 14, spec.action_dim)
    reached = apply_action(spec, seen[:, :-1], actions)
    np.testing.assert_allclose(_comparable(spec, reached), _comparable(spec, seen[:, 1:]), atol=1e-13)
    if mode == "absolute":
        kept = [part.where for part in spec.parts if frame != "tool" or part.kind in ("gripper", "other")]
        for where in kept:
            np.testing.assert_array_equal(actions[..., where], seen[:, 1:, where])


@pytest.mark.parametrize(("rotation", "frame", "mode"), _KINDS[::3])
def test_jax_agrees_with_numpy(rotation, frame, mode):
    spec = _spec(rotation, frame, mode)
    states, extrinsics = _states(spec).astype(np.float32), np.float32(np.random.default_rng(5).normal(size=(60, 6)))

    def both(xp):
        def compute(states, extrinsics):
            seen = to_frame(spec, states, extrinsics, xp)
            actions = derive_actions(spec, states, extrinsics=extrinsics, xp=xp)
            return actions, apply_action(spec, seen[:-1], actions, xp), seen[1:]

        return compute

    found, expected = fast_jit(both(jnp))(states, extrinsics), both(np)(states, extrinsics)
    assert all(array.dtype == np.float32 for array in (*found, *expected))
    for array, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(_comparable(spec, array), _comparable(spec, other), atol=1e-5)
    np.testing.assert_allclose(_comparable(spec, found[1]), _comparable(spec, found[2]), atol=1e-5)


@pytest.mark.parametrize("name", _SETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_droid_is_the_official_algebra(golden, name, dtype):
    arrays, _ = load(golden, "poses")
    states, extrinsics, actions = (
        arrays[f"in/{what}_{name}"].astype(dtype) for what in ("poses", "extrinsics", "actions")
    )
    camera = _droid(frame="camera")
    deltas, moved, seen = (
        derive_actions(DROID, states),
        apply_action(DROID, states, actions),
        to_frame(camera, states, extrinsics),
    )
    np.testing.assert_array_equal(deltas, poses.pose_deltas(states))
    np.testing.assert_array_equal(moved, poses.apply_action(states, actions))
    np.testing.assert_array_equal(seen, poses.to_camera_frame(states, extrinsics))
    np.testing.assert_array_equal(derive_actions(camera, states, extrinsics=extrinsics), poses.pose_deltas(seen))
    np.testing.assert_allclose(poses.euler_to_matrix(deltas[:, 3:6]), arrays[f"out/diffs_rotmat_{name}"], atol=2e-6)
    np.testing.assert_allclose(
        _comparable(DROID, moved), _comparable(DROID, arrays[f"out/new_pose_{name}"][:, 0]), atol=2e-6
    )
    assert all(array.dtype == dtype for array in (deltas, moved, seen))


def _droid(**fields):
    return DROID.from_json(DROID.to_json() | fields)


def test_tool_frame_looks_from_the_tool():
    # At (1, 2), looking along y: one metre ahead is +y, one to the left is -x.
    state = np.array([1.0, 2.0, np.pi / 2])
    np.testing.assert_allclose(apply_action(SE2, state, np.array([1.0, 0, 0.5])), [1, 3, np.pi / 2 + 0.5])
    np.testing.assert_allclose(apply_action(SE2, state, np.array([0, 1.0, 0])), [0, 2, np.pi / 2])
    # A heading that passes pi goes on at -pi, and the turn between them is the short one.
    around = np.array([[0, 0, 3.0], [0, 0, -3.0]])
    np.testing.assert_allclose(derive_actions(SE2, around), [[0, 0, 2 * np.pi - 6]])
    # In space: a tool that looks down has its own x where the base has it, and y and z reversed.
    down = np.array([[0, 0, 0.5, np.pi, 0, 0, 0], [0.1, 0.2, 0.2, np.pi, 0, 0, 1.0]])
    np.testing.assert_allclose(derive_actions(_droid(frame="tool"), down), [[0.1, -0.2, 0.3, 0, 0, 0, 1]], atol=1e-15)


@pytest.mark.parametrize("mode", ["delta", "absolute"])
def test_gripper_stays_in_its_range(mode):
    spec = _spec("none", "base", mode)
    state, action = np.zeros(spec.state_dim), np.full(spec.action_dim, 5.0)
    moved = apply_action(spec, state, action)
    assert moved[spec.gripper] == 2 and (np.delete(moved, spec.gripper) == 5).all()
    assert apply_action(spec, state, -action)[spec.gripper] == -1


@pytest.mark.parametrize(("rotation", "frame", "mode"), [kind for kind in _KINDS if kind[1] != "camera"])
def test_recorded_actions_are_composed(rotation, frame, mode):
    """Recorded actions of each row, joined over 5 rows, are those between every fifth state."""
    spec = _spec(rotation, frame, mode)
    states = _states(spec, 16)
    recorded = derive_actions(spec, states)
    joined = derive_actions(_spec(rotation, frame, mode, source="recorded"), states[::5], recorded)
    expected = derive_actions(spec, states[::5])
    np.testing.assert_allclose(_comparable(spec, joined), _comparable(spec, expected), atol=1e-13)
    # The gripper is not clipped on the way: what two actions undo leaves nothing.
    spec = generic(("gripper",), gripper=0, source="recorded")
    np.testing.assert_array_equal(derive_actions(spec, np.zeros((2, 1)), np.array([[3.0], [-3.0]])), [[0.0]])


def test_recorded_actions_of_another_layout():
    states, recorded = np.zeros((3, 4)), np.arange(12.0).reshape(6, 2)
    names = ("a", "b", "c", "d"), ("throttle", "steering")
    delta, absolute = (generic(*names, source="recorded", mode=mode) for mode in ("delta", "absolute"))
    np.testing.assert_array_equal(derive_actions(delta, states, recorded), [[6, 9], [24, 27]])
    np.testing.assert_array_equal(derive_actions(absolute, states, recorded), [[4, 5], [10, 11]])
    with pytest.raises(ValueError, match=r"actions \(throttle, steering\) are not laid out like states \(a, b, c, d\)"):
        apply_action(delta, states[0], recorded[0])
    # As many numbers in other units are another layout too: speeds of joints do not move a pose.
    speeds = _droid(source="recorded", action_units=["rad/s"] * 7)
    assert not speeds.integrable and DROID.integrable
    np.testing.assert_array_equal(derive_actions(speeds, np.zeros((2, 7)), np.ones((4, 7))), np.full((1, 7), 4))


@pytest.mark.parametrize("frame", ["base", "tool"])
def test_changes_of_pose_beside_an_absolute_gripper(frame):
    """As recorded data often have it: the pose by changes, the gripper by where it shall be."""
    spec, delta = _droid(frame=frame, absolute=["gripper"]), _droid(frame=frame)
    states = _states(spec, 11)
    actions = derive_actions(spec, states)
    np.testing.assert_array_equal(actions[:, :6], derive_actions(delta, states)[:, :6])
    np.testing.assert_array_equal(actions[:, 6], states[1:, 6])
    np.testing.assert_allclose(
        _comparable(spec, apply_action(spec, states[:-1], actions)), _comparable(spec, states[1:]), atol=1e-12
    )
    # Of five rows the changes are joined, and the last gripper counts.
    joined = derive_actions(_droid(frame=frame, absolute=["gripper"], source="recorded"), states[::5], actions)
    np.testing.assert_allclose(
        _comparable(spec, joined), _comparable(spec, derive_actions(spec, states[::5])), atol=1e-12
    )
    # Nothing else changes where actions are no changes of states.
    other = generic(("a", "b", "c"), ("turn", "grip"), source="recorded", absolute=("grip",))
    np.testing.assert_array_equal(derive_actions(other, np.zeros((2, 3)), np.arange(6.0).reshape(3, 2)), [[6, 5]])
    assert (DROID.absolute_dims, spec.absolute_dims, _droid(mode="absolute").absolute_dims) == ((), (6,), tuple(range(7)))


def test_wrong_arrays_are_named():
    recorded = generic(("a", "b"), source="recorded")
    camera = _droid(frame="camera")
    states = np.zeros((3, 7))
    for call, message in (
        (lambda: derive_actions(DROID, states[:, :6]), r"'droid': states have shape \[3, 6\]; the last axis must be 7"),
        (lambda: apply_action(DROID, states, states[:, :4]), r"actions have shape \[3, 4\]; the last axis must be 7"),
        (lambda: derive_actions(camera, states), "relative to the camera need extrinsics"),
        (lambda: to_frame(camera, states, np.zeros(7)), r"extrinsics have shape \[7\]; the last axis must be 6"),
        (lambda: derive_actions(recorded, states[:, :2]), "no recorded actions are given"),
        (lambda: derive_actions(recorded, states[:, :2], np.zeros((4, 3))), r"recorded actions have shape \[4, 3\]"),
        (lambda: derive_actions(recorded, states[:, :2], np.zeros((5, 2))), "5 rows of recorded actions do not divide"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_scales_are_applied():
    spec = _droid(state_scale=[2.0] * 7, action_scale=[0.5] * 7)
    states, actions = np.ones((2, 7), np.float32), np.ones((1, 7), np.float32)
    for xp in (np, jnp):
        scaled = network_inputs(spec, xp.asarray(states), xp.asarray(actions), xp)
        assert [array.dtype for array in scaled] == [np.float32] * 2
        np.testing.assert_array_equal(scaled[0], states / 2)
        np.testing.assert_array_equal(scaled[1], actions * 2)
    np.testing.assert_array_equal(network_inputs(DROID, states / 3, actions)[0], states / 3)
