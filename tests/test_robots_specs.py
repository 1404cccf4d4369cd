"""Descriptions of robots: their fields, presets, configs, and trajectories that do or do not fit them."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict
from robots import smooth_states

from jepa_jax.data.errors import DataError
from jepa_jax.data.sources.robots import POSE_NAMES, POSE_UNITS
from jepa_jax.data.trajectories import TrajectoryRecord, View
from jepa_jax.robots.algebra import apply_action
from jepa_jax.robots.checks import check_record, check_same
from jepa_jax.robots.presets import DROID, PRESETS, SE2, from_record, generic, make_spec
from jepa_jax.robots.spec import RobotSpec


def _record(**changes):
    """A trajectory as the raw DROID release gives it; `changes` replace fields."""
    fields = {
        "views": (View("left", b"video", 64, 96, np.zeros((20, 6), np.float32)), View("wrist", b"video", 64, 96)),
        "states": smooth_states(20).astype(np.float32), "actions": None, "control_rate": 15.0, "header_fps": 15.0,
        "rate": "true", "state_names": POSE_NAMES, "state_units": POSE_UNITS, "action_names": (), "action_units": (),
        "frame": "robot base", "rotation": "xyz euler", "gripper_range": (0.0, 1.0), "instruction": None,
        "source_id": "lab/7",
    }  # fmt: skip
    # Fields that say nothing about the robot may join.
    others = {name: {} for name in TrajectoryRecord._fields if name not in fields}
    return TrajectoryRecord(**(others | TrajectoryRecord._field_defaults | fields | changes))


def _joints(**changes):
    """A trajectory of three joints and a gripper with two recorded actions."""
    fields = {
        "states": np.ones((20, 4), np.float32), "state_names": ("a", "b", "c", "left_gripper"),
        "state_units": ("rad", "rad", "rad", ""), "actions": np.zeros((20, 2), np.float32), "action_names": ("u", "v"),
        "action_units": ("", "m"), "rotation": "none", "frame": "unknown", "gripper_range": (0.5, 2.0),
    }  # fmt: skip
    return _record(**(fields | changes))


@pytest.mark.parametrize(
    "spec", [DROID, SE2, generic(("a", "b"), ("u",), source="recorded")], ids=lambda spec: spec.name
)
def test_a_description_survives_json(spec):
    text = json.dumps(spec.to_json(), allow_nan=False)
    assert RobotSpec.from_json(json.loads(text)) == spec
    assert hash(pickle.loads(pickle.dumps(spec))) == hash(spec)


def test_descriptions_in_another_form_are_refused():
    fields = DROID.to_json()
    with pytest.raises(ValueError, match="'droid' has unknown colour; it must have the fields absolute, action_high, "):
        RobotSpec.from_json(fields | {"colour": 1})
    # One from before a field was added is what it was.
    assert RobotSpec.from_json({name: value for name, value in fields.items() if name != "absolute"}) == DROID
    del fields["mode"], fields["frame"]
    with pytest.raises(ValueError, match="'droid' lacks frame, mode and has unknown colour"):
        RobotSpec.from_json(fields | {"colour": 1})


def test_parts_cover_a_state():
    assert [tuple(part) for part in DROID.parts] == [("position", 0, 3), ("rotation", 3, 6), ("gripper", 6, 7)]
    assert [tuple(part) for part in SE2.parts] == [("position", 0, 2), ("rotation", 2, 3)]
    spec = generic(tuple("abcdefgh"), rotation="quaternion", rotation_at=3, gripper=1)
    assert [tuple(part) for part in spec.parts] == [
        ("other", 0, 1), ("gripper", 1, 2), ("other", 2, 3), ("rotation", 3, 7), ("other", 7, 8)
    ]  # fmt: skip
    assert [tuple(part) for part in generic(("a", "b")).parts] == [("other", 0, 2)]


def test_droid_plans_as_officially():
    assert DROID.planned_dims == (0, 1, 2, 6)
    assert [DROID.action_low[at] for at in DROID.planned_dims] == [-0.075] * 3 + [-0.75]
    assert [DROID.action_high[at] for at in DROID.planned_dims] == [0.075] * 3 + [0.75]
    assert set(DROID.state_scale + DROID.action_scale) == {1.0}
    assert SE2.planned_dims == (0, 1, 2)


_WRONG = {
    "name is ''; it must be a text": {"name": ""},
    "state_names is 'xyz'; it must be a list of texts": {"state_names": "xyz"},
    "state_names is .*all different": {"state_names": ["x"] * 7},
    r"state_units is \('m',\); it must be 7 long, as state_names is": {"state_units": ["m"]},
    "action_scale is .*above 0": {"action_scale": [1] * 6 + [0]},
    "state_scale is .*finite numbers": {"state_scale": [1] * 6 + [float("nan")]},
    r"action_low is \(0.0,\); it must be \(\) or 7 long": {"action_low": [0]},
    r"action_low is \(\); it must be .* and action_high likewise": {"action_low": []},
    "of 'x' is 1 to 0.075; low must be below high": {"action_low": [1] + [0] * 6},
    "of 'roll' is 0 to 0; low must be below high": {"planned": ["x", "roll"]},
    r"planned is \('w',\); it must be of x, y, z, roll": {"planned": ["w"]},
    "planned is .*without repetition": {"planned": ["x", "x"]},
    "frame is 'world'; it must be one of 'base', 'camera', 'tool'": {"frame": "world"},
    "mode is 'velocity'; it must be one of 'delta', 'absolute'": {"mode": "velocity"},
    r"absolute is \('grip',\); it must be of x, y, z": {"absolute": ["grip"]},
    r"absolute is \('gripper',\); it must be \(\), as mode is 'absolute'": {"absolute": ["gripper"], "mode": "absolute"},
    r"absolute is \('x',\); it must be with all of x, y, z, the position, or none": {"absolute": ["x"]},
    "absolute is .* without x, y, z: in frame 'tool' poses are relative": {"absolute": ["x", "y", "z"], "frame": "tool"},
    "action_layout is 'mine'; it must be one of 'auto', 'states', 'own'": {"action_layout": "mine"},
    "action_layout is 'own'; it must be 'auto' or 'states', as source is 'states'": {"action_layout": "own"},
    "action_layout is 'states'; it must be another: of 7 actions and 7 states": {
        "action_layout": "states", "source": "recorded", "action_units": ["rad/s"] * 7
    },
    "source is 'log'; it must be one of 'states', 'recorded'": {"source": "log"},
    "rotation is 'zyx'; it must be one of 'none', 'yaw', 'xyz euler', 'axis angle', 'quaternion'": {"rotation": "zyx"},
    "rotation_at is 3; it must be None, as rotation is 'none'": {"rotation": "none"},
    "rotation_at is None; it must be a place, as rotation is 'xyz euler'": {"rotation_at": None},
    "rotation_at is 2; it must be at least 3: the position ends there": {"rotation_at": 2},
    "gripper is 6; it must be at least 7: the rotation ends there": {"rotation": "quaternion"},
    "gripper is 7; it must be at most 6: there are 7 numbers": {"gripper": 7},
    "position is True; it must be a place": {"position": True},
    "position is -1; it must be a place": {"position": -1},
    r"gripper_range is \(1.0, 0.0\); it must be two numbers, the lower one first": {"gripper_range": [1, 0]},
    "rotation is 'none'; it must be stated, as frame is 'tool'": {"rotation": "none", "rotation_at": None, "frame": "tool"},
    "position is None; it must be a place, as frame is 'camera'": {"position": None, "frame": "camera"},
    "rotation is 'yaw'; it must be another": {"rotation": "yaw", "frame": "camera"},
    "source is 'recorded'; it must be 'states', as frame is 'camera'": {"source": "recorded", "frame": "camera"},
    "action_units of 'yaw' is 'deg', but it changes 'yaw' in 'rad'": {"action_units": ["m"] * 3 + ["rad"] * 2 + ["deg", ""]},
    "action_names is .* 7 names": {
        "action_names": ["u"], "action_units": [""], "action_scale": [1], "action_low": [], "action_high": [], "planned": []
    },
}  # fmt: skip


@pytest.mark.parametrize("message", _WRONG)
def test_wrong_fields_are_named(message):
    with pytest.raises(ValueError, match=f"^robot '(droid)?': .*{message}"):
        RobotSpec.from_json(DROID.to_json() | _WRONG[message])


def test_configs_change_presets():
    unset = {field.name: () for field in dataclasses.fields(RobotSpec)} | {"name": "", "gripper": None, "frame": None}
    for preset, spec in (("droid", DROID), ("se2", SE2)):
        assert make_spec(unset | {"preset": preset}) == spec
    section = ConfigDict({"preset": "droid", "frame": "tool", "action_scale": (0.05,) * 7, "position": None})
    assert make_spec(section) == dataclasses.replace(DROID, frame="tool", action_scale=(0.05,) * 7)
    # The first place is not an unset one.
    assert make_spec({"preset": "generic", "state_names": ["g", "h"], "gripper": 0}).gripper == 0
    with pytest.raises(ValueError, match="preset is 'panda'; it must be one of droid, se2, generic"):
        make_spec({"preset": "panda"})
    with pytest.raises(ValueError, match="has no field color; it has preset, name, state_names"):
        make_spec({"preset": "droid", "color": 1})
    with pytest.raises(ValueError, match="'generic' needs state_names, or a trajectory"):
        make_spec({"preset": "generic"})
    assert PRESETS == ("droid", "se2", "generic")


def test_generic_fills_in_what_it_can():
    spec = generic(("a", "b"), state_units=("rad", "m"))
    assert spec.action_names == ("a", "b") and spec.action_units == ("rad", "m") and spec.integrable
    assert spec.state_scale == spec.action_scale == (1.0, 1.0) and spec.action_low == ()
    other = make_spec({"preset": "generic", "state_names": ("a", "b"), "action_names": ("u",), "source": "recorded"})
    assert (other.action_units, other.action_scale, other.integrable) == (("",), (1.0,), False)


def test_records_tell_their_robot():
    pose = from_record(_record())
    assert dataclasses.replace(
        pose, name="droid", action_low=DROID.action_low, action_high=DROID.action_high, planned=DROID.planned
    ) == DROID  # fmt: skip
    joints = make_spec({"preset": "generic", "name": "", "mode": "absolute"}, _joints())
    assert joints.state_names == joints.action_names == ("a", "b", "c", "left_gripper")
    assert (joints.gripper, joints.gripper_range, joints.mode) == (3, (0.5, 2.0), "absolute")
    # The gripper of an SO-100 goes from 1 to 45: where nobody says so, nothing is clipped and nothing refused.
    unknown = _joints(gripper_range=None, states=np.full((20, 4), 45, np.float32))
    spec = from_record(unknown)
    assert (spec.gripper, spec.gripper_range) == (3, ()) and RobotSpec.from_json(spec.to_json()) == spec
    check_record(spec, unknown)
    np.testing.assert_array_equal(apply_action(spec, np.full(4, 45.0), np.ones(4)), np.full(4, 46.0))
    assert from_record(unknown, gripper_range=(0, 50)).gripper_range == (0, 50)
    assert from_record(_joints(), gripper=0).gripper_range == (0.5, 2.0)
    recorded = from_record(_joints(), source="recorded")
    assert (recorded.action_names, recorded.action_units) == (("u", "v"), ("", "m"))
    with pytest.raises(ValueError, match="lab/7: holds no recorded actions; source 'states'"):
        from_record(_record(), source="recorded")
    for spec, record in ((pose, _record()), (joints, _joints()), (recorded, _joints())):
        check_record(spec, record)


def _states(column, value):
    states = smooth_states(20).astype(np.float32)
    states[:, column] = value
    return {"states": states}


_TOOL, _CAMERA = (dataclasses.replace(DROID, frame=frame) for frame in ("tool", "camera"))
_QUATERNION = generic(
    ("x", "y", "z", "qx", "qy", "qz", "qw"), position=0, rotation="quaternion", rotation_at=3, name="arm"
)
_STORED = {"state_names": _QUATERNION.state_names, "rotation": "none", "state_units": ("m",) * 3 + ("",) * 4}
_SMALL = {"states": np.zeros((20, 2), np.float32), "state_names": ("a", "b"), "state_units": ("", "")}
_DRIVE = {
    "states": np.full((20, 3), 90, np.float32), "state_names": SE2.state_names, "state_units": ("m", "m", ""),
    "rotation": "none",
}  # fmt: skip
_UNFIT = [
    (DROID, _SMALL, "wrong robot", r"states: found 2 numbers \(a, b\); robot 'droid' needs 7 numbers \(x, y, z"),
    (DROID, {"state_names": tuple("xyzabcg")}, "wrong robot", r"state_names\[3\]: found 'a'; robot 'droid' needs 'roll'"),
    (DROID, {"state_units": ("mm",) + POSE_UNITS[1:]}, "wrong units", r"state_units\[0\] of 'x': found 'mm'; .*'m'"),
    (DROID, {"state_units": POSE_UNITS[:3] + ("deg",) * 3 + ("",)}, "angles in degrees", r"\[3\] of 'roll': found 'deg'"),
    (DROID, _states(3, 179), "angles in degrees", "rotation: found an angle of 179; .*look like degrees"),
    (DROID, _states(4, np.nan), "angles in degrees", "an angle of nan"),
    (DROID, _states(6, 255), "gripper out of range", "gripper: found 255 to 255; .* gripper_range 0 to 1"),
    (DROID, _states(6, -0.3), "gripper out of range", "found -0.3 to -0.3"),
    (DROID, {"gripper_range": (1.0, 0.0)}, "other gripper range", "found 1 for open and 0 for closed; .* 0 for open and 1"),
    (DROID, _states(6, 45), "gripper out of range", "`prepare --gripper-range OPEN,CLOSED` .* --config.robot.gripper_range="),
    (DROID, {"gripper_range": (1.0, 0.0)}, "other gripper range", "`prepare --gripper-range OPEN,CLOSED` .* --config.robot.gripper_range="),
    (from_record(_record(gripper_range=None)), {}, "other gripper range", "found 0 for open and 1 for closed; .* a range that is not stated"),
    (DROID, {"rotation": "none"}, "wrong robot", "found 'none'; .* 'xyz euler' at 3; .* with --rotation xyz-euler"),
    (generic(POSE_NAMES), {}, "wrong robot", "rotation: found 'xyz euler' at 3; robot 'generic' needs 'none'"),
    (SE2, _DRIVE, "angles in degrees", "an angle of 90; .*count turns: wrap them"),
    (_QUATERNION, _STORED, "not unit quaternions", "found a quaternion of length .* needs lengths of 1"),
    (_CAMERA, {}, "no extrinsics", "extrinsics of view 'wrist': found none"),
    (from_record(_joints(), source="recorded"), {}, "wrong robot", "states: found 7"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "changes", "reason", "message"), _UNFIT)
def test_trajectories_of_another_robot_are_refused(spec, changes, reason, message):
    with pytest.raises(DataError, match=f"^lab/7: .*{message}") as error:
        check_record(spec, _record(**changes))
    assert error.value.reason == reason


def test_recorded_actions_are_laid_out_like_states_where_names_say_so():
    joints = ("a", "b")
    for actions, fields, expected in (
        (joints, {}, True),
        (("action.0", "action.1"), {}, True),
        # Steps of an end effector beside as many joints.
        (("dx", "dy"), {}, False),
        (("b", "a"), {}, False),
        (("dx", "dy"), {"action_layout": "states"}, True),
        (("dx", "dy"), {"state_units": ("m", "m"), "action_units": ("m", "m")}, True),
        (("dx", "dy"), {"state_units": ("rad", "rad"), "action_units": ("m", "m")}, False),
        (joints, {"action_layout": "own"}, False),
    ):
        assert generic(joints, actions, source="recorded", **fields).integrable == expected
    assert generic(joints, ("dx", "dy")).integrable and dataclasses.replace(SE2, source="recorded").integrable


def test_recorded_actions_are_checked():
    spec = from_record(_joints(), source="recorded")
    for changes, reason, message in (
        ({"actions": None}, "no recorded actions", "actions: found none recorded"),
        (
            {"actions": np.zeros((20, 1)), "action_names": ("u",), "action_units": ("",)},
            "wrong robot",
            "actions: found 1",
        ),
        ({"action_names": ("u", "w")}, "wrong robot", r"action_names\[1\]: found 'w'; robot 'generic' needs 'v'"),
        ({"action_units": ("", "cm")}, "wrong units", r"action_units\[1\] of 'v': found 'cm'"),
    ):
        with pytest.raises(DataError, match=message) as error:
            check_record(spec, _joints(**changes))
        assert error.value.reason == reason
    # Actions that are derived need no recorded ones.
    check_record(from_record(_joints()), _joints(actions=None))


def test_trajectories_that_fit_are_let_through():
    check_record(DROID, _record())
    check_record(_TOOL, _record())
    check_record(_CAMERA, _record(), ["left"])
    with pytest.raises(DataError, match=r"views: found left, wrist; .* needs 'top'"):
        check_record(_CAMERA, _record(), ["top"])
    # Names that a source made up and units that it does not know say nothing.
    made_up = tuple(f"state.{place}" for place in range(7))
    check_record(DROID, _record(state_names=made_up, state_units=("",) * 7))
    # A measurement a little outside of the range is one.
    check_record(DROID, _record(**_states(6, 1.2)))
    quaternions = np.tile(np.float32([1, 2, 3, 0, 0.6, 0, 0.8]), (20, 1))
    check_record(_QUATERNION, _record(**_STORED, states=quaternions))


def test_two_robots_are_told_apart():
    check_same(DROID, RobotSpec.from_json(DROID.to_json()), "checkpoint and config")
    # What a planner may do is no part of what the numbers mean.
    check_same(DROID, dataclasses.replace(DROID, action_low=(), action_high=(), planned=("x",)), "checkpoint and config")
    other = dataclasses.replace(DROID, mode="absolute", gripper_range=(0, 2))
    with pytest.raises(
        ValueError,
        match=r"^checkpoint and config describe different robots; mode: 'delta', 'absolute'; "
        r"gripper_range: \(0.0, 1.0\), \(0.0, 2.0\)$",
    ):
        check_same(DROID, other, "checkpoint and config")
