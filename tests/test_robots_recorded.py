"""Recorded actions that are not what a robot takes them for: targets among changes, and grippers told in another way."""

import dataclasses

import numpy as np
import pytest
from robots import smooth_states

from jepa_jax.data.errors import DataError
from jepa_jax.data.sources.robots import POSE_NAMES, POSE_UNITS
from jepa_jax.data.trajectories import TrajectoryRecord, View
from jepa_jax.robots.algebra import derive_actions
from jepa_jax.robots.presets import DROID, from_record, generic
from jepa_jax.robots.recorded import check_recorded

JOINTS = ("shoulder_pan.pos", "elbow_flex.pos", "gripper.pos")
ROWS = 40


def _record(states, actions, names, action_names, **changes):
    units = ("",) * len(names)
    fields = {
        "views": (View("top", b"video", 64, 96),), "states": np.float32(states), "actions": np.float32(actions), "control_rate": 30.0,
        "header_fps": 30.0, "rate": "true", "state_names": names, "state_units": units, "action_names": action_names,
        "action_units": ("",) * len(action_names), "frame": "unknown", "rotation": "none", "gripper_range": None, "instruction": None,
        "source_id": "mine#0", "extras": {},
    }  # fmt: skip
    return TrajectoryRecord(**(fields | changes))


def _arms(targets, names=JOINTS, action_names=JOINTS, count=3):
    """Trajectories of two joints in degrees and a gripper from 1 to 45; `targets` makes actions of states."""
    records = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        phase = np.linspace(0, 5, ROWS)[:, None] + rng.uniform(0, 6, 3)
        states = np.sin(phase) * [40, 60, 22] + [10, -20, 23] + rng.normal(size=(ROWS, 3)) * 0.3
        records.append(_record(states, targets(states, rng), names, action_names))
    return records


def _lead(states, rng):
    """What a leader arm says: where the follower will be, up to some degrees."""
    return np.concatenate([states[3:], states[-1:].repeat(3, 0)]) + rng.normal(size=states.shape)


def _changes(states, rng):
    steps = np.concatenate([np.diff(states, axis=0), np.zeros_like(states[:1])])
    return steps + rng.normal(size=states.shape) * 0.5


def _refusal(spec, records):
    with pytest.raises(DataError) as error:
        check_recorded(spec, records, "shards/mine")
    assert str(error.value).startswith("shards/mine: recorded actions ")
    return error.value.reason, str(error.value)


def test_targets_are_not_added_up():
    records = _arms(_lead)
    spec = from_record(records[0], source="recorded")
    reason, said = _refusal(spec, records)
    assert reason == "absolute actions" and "shoulder_pan.pos, elbow_flex.pos, gripper.pos follow the state itself" in said
    assert said.endswith("Set --config.robot.mode=absolute")
    check_recorded(dataclasses.replace(spec, mode="absolute"), records, "shards/mine")
    # Changes are what they are taken for, in the state's unit or another.
    for scale in (1, 0.01, 5):
        check_recorded(spec, _arms(lambda states, rng: scale * _changes(states, rng)), "shards/mine")
    check_recorded(spec, _arms(lambda states, rng: rng.uniform(-50, 50, states.shape)), "shards/mine")


def test_an_absolute_gripper_beside_changes_is_named():
    def mixed(states, rng):
        return np.concatenate([_changes(states, rng)[:, :2], _lead(states, rng)[:, 2:]], 1)

    records = _arms(mixed)
    spec = from_record(records[0], source="recorded")
    _, said = _refusal(spec, records)
    assert "Set --config.robot.absolute=\"('gripper.pos',)\", or --config.robot.mode=absolute if the others" in said
    check_recorded(dataclasses.replace(spec, absolute=("gripper.pos",)), records, "shards/mine")


def test_numbers_are_compared_by_name_or_else_by_place():
    # States hold velocities too, so that nothing is integrated; targets would be added up all the same.
    def widened(record):
        return record._replace(states=np.concatenate([np.zeros_like(record.states), record.states], 1),
                               state_names=("u", "v", "w", *JOINTS), state_units=("",) * 6)  # fmt: skip

    records = [widened(record) for record in _arms(_lead)]
    spec = from_record(records[0], source="recorded")
    assert not spec.integrable and _refusal(spec, records)[0] == "absolute actions"
    numbered = _arms(_lead, action_names=("action.0", "action.1", "action.2"))
    assert _refusal(from_record(numbered[0], source="recorded"), numbered)[0] == "absolute actions"
    # Nothing to compare: other units, other numbers, no actions.
    degrees = generic(JOINTS, JOINTS, state_units=("deg",) * 3, action_units=("m",) * 3, source="recorded")
    check_recorded(degrees, _arms(_lead), "shards/mine")
    check_recorded(generic(("a", "b"), ("u", "v"), source="recorded"), _arms(_lead), "shards/mine")
    check_recorded(spec, [record._replace(actions=None) for record in records], "shards/mine")


def _poses(act, **changes):
    """Trajectories of an end effector, of which `act` makes actions."""
    posed = {"rotation": "xyz euler", "state_units": POSE_UNITS, "frame": "robot base", "gripper_range": (0.0, 1.0)}
    records = []
    for seed in range(3):
        states = smooth_states(ROWS, seed)
        states[:, 6] = np.linspace(0, 6, ROWS) % 2 > 1
        records.append(_record(states, act(states), POSE_NAMES, POSE_NAMES, **(posed | changes)))
    return records


def _deltas(states, gripper):
    actions = np.concatenate([derive_actions(DROID, states), np.zeros((1, 7))])
    return np.concatenate([actions[:, :6], gripper(states[:, 6:])], 1)


def _next(gripper):
    return np.concatenate([gripper[1:], gripper[-1:]])


def test_a_position_is_absolute_as_a_whole():
    def act(states):
        actions = _deltas(states, lambda gripper: 0 * gripper)
        actions[:, 0] = _next(states[:, 0])
        return actions

    _, said = _refusal(dataclasses.replace(DROID, source="recorded"), _poses(act))
    assert "recorded actions x follow" in said and "--config.robot.absolute=\"('x','y','z',)\"" in said


def test_poses_to_arrive_at_are_not_relative_to_the_tool():
    records = _poses(_next)
    for spec in (dataclasses.replace(DROID, source="recorded", frame="tool", mode=mode) for mode in ("delta", "absolute")):
        assert "Set --config.robot.frame=base, as poses are relative" in _refusal(spec, records)[1]
    check_recorded(dataclasses.replace(DROID, source="recorded", mode="absolute"), records, "shards/mine")


@pytest.mark.parametrize(
    ("absolute", "gripper", "message"),
    [
        # A command of 1 opens, as in Bridge, beside states where 1 is closed.
        (True, lambda state: 1 - _next(state), "gripper, gripper, say open where the state says closed"),
        (True, lambda state: 2 * _next(state) - 1, "run from -1 to 1, where 0 to 1 is possible"),
        (True, lambda state: 45 * _next(state), "run from 0 to 45, where 0 to 1 is possible"),
        (False, lambda state: -np.concatenate([np.diff(state, axis=0), [[0.0]]]), "say open where the state says closed"),
        (False, lambda state: 45 * np.concatenate([np.diff(state, axis=0), [[0.0]]]), "run from -45 to 45, where -1 to 1"),
    ],
)
def test_grippers_told_otherwise_than_their_states(absolute, gripper, message):
    spec = dataclasses.replace(DROID, source="recorded", absolute=("gripper",) if absolute else ())
    act = lambda states: _deltas(states, gripper)
    reason, said = _refusal(spec, _poses(act))
    assert reason == "other gripper range" and message in said and "--config.robot.source=states" in said
    # As recorded in both, they agree.
    check_recorded(spec, _poses(act, gripper_range=None), "shards/mine")


def test_grippers_that_agree_with_their_states():
    absolute, delta = (dataclasses.replace(DROID, source="recorded", absolute=names) for names in (("gripper",), ()))
    check_recorded(absolute, _poses(lambda states: _deltas(states, _next)), "shards/mine")
    # Something between the fingers, and fingers that are slow.
    halved = lambda state: np.where(_next(state) > 0, 1.2, 0)
    check_recorded(absolute, [record._replace(states=record.states * np.float32([1] * 6 + [0.5]))
                              for record in _poses(lambda states: _deltas(states, halved))], "shards/mine")  # fmt: skip
    change = lambda state: np.concatenate([np.diff(state, axis=0), [[0.0]]])
    check_recorded(delta, _poses(lambda states: _deltas(states, change)), "shards/mine")
