"""Robots with a name, and robots put together from a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jepa_jax.data.poses import GRIPPER_RANGE
from jepa_jax.data.sources.robots import POSE_NAMES, POSE_UNITS
from jepa_jax.data.trajectories import TrajectoryRecord
from jepa_jax.robots.spec import RobotSpec

# Source: app/vjepa_droid/droid.py; bounds and planned dimensions: notebooks/utils/mpc_utils.py, paper section 4.
_REACH, _GRIPPER_REACH = 0.075, 0.75
_POSE_BOUNDS = (_REACH, _REACH, _REACH, 0.0, 0.0, 0.0, _GRIPPER_REACH)

DROID = RobotSpec(
    name="droid",
    state_names=POSE_NAMES, state_units=POSE_UNITS, action_names=POSE_NAMES, action_units=POSE_UNITS,
    # Parity: numbers enter the network in metres and radians, as they are.
    state_scale=(1.0,) * 7, action_scale=(1.0,) * 7,
    action_low=tuple(0.0 - bound for bound in _POSE_BOUNDS), action_high=_POSE_BOUNDS,
    planned=("x", "y", "z", "gripper"),
    frame="base", mode="delta", source="states",
    position=0, rotation="xyz euler", rotation_at=3, gripper=6, gripper_range=GRIPPER_RANGE,
)  # fmt: skip

# A robot that drives: what it does next is told as seen from where it stands.
SE2 = RobotSpec(
    name="se2",
    state_names=("x", "y", "heading"), state_units=("m", "m", "rad"),
    action_names=("forward", "left", "turn"), action_units=("m", "m", "rad"),
    state_scale=(1.0,) * 3, action_scale=(1.0,) * 3, action_low=(), action_high=(), planned=(),
    frame="tool", mode="delta", source="states",
    position=0, rotation="yaw", rotation_at=2, gripper=None, gripper_range=GRIPPER_RANGE,
)  # fmt: skip

_GENERIC = "generic"
_NAMED = {"droid": DROID, "se2": SE2}
PRESETS = (*_NAMED, _GENERIC)


def generic(state_names: Sequence[str], action_names: Sequence[str] = (), **fields) -> RobotSpec:
    """Describe a robot by little more than the names of its numbers, as for joints.

    Args:
        state_names: one for each number of a state.
        action_names: one for each number of an action; those of the states if empty.
        **fields: other fields of `RobotSpec`; without them units are not stated, scales 1,
            bounds unknown, and actions plain differences of states.

    Returns:
        The robot.

    Raises:
        ValueError: the fields do not fit together.
    """
    action_names = action_names or state_names
    units = fields.get("state_units", ("",) * len(state_names))
    shared = action_names == state_names
    defaults = {
        "name": _GENERIC, "state_units": units, "action_units": units if shared else ("",) * len(action_names),
        "state_scale": (1.0,) * len(state_names), "action_scale": (1.0,) * len(action_names),
        "action_low": (), "action_high": (), "planned": (), "frame": "base", "mode": "delta", "source": "states",
        "position": None, "rotation": "none", "rotation_at": None, "gripper": None, "gripper_range": GRIPPER_RANGE,
    }  # fmt: skip
    return RobotSpec(state_names=state_names, action_names=action_names, **(defaults | fields))


def from_record(record: TrajectoryRecord, **fields) -> RobotSpec:
    """Describe a robot as far as one of its trajectories does.

    Args:
        record: the trajectory.
        **fields: fields of `RobotSpec` that take the place of what it says. With
            source='recorded', actions are those of the record.

    Returns:
        The robot: names, units, where the pose is, and its gripper, if a name says so, whose range is known only where
        the trajectory states it.

    Raises:
        ValueError: recorded actions are wanted, but there are none, or fields do not fit.
    """
    said: dict = {"state_names": record.state_names, "state_units": record.state_units}
    if fields.get("source") == "recorded":
        if record.actions is None:
            raise ValueError(f"{record.source_id}: holds no recorded actions; source 'states' derives them from states")
        said |= {"action_names": record.action_names, "action_units": record.action_units}
    if record.rotation != "none":
        # Where a record that states an orientation holds its pose.
        said |= {"position": 0, "rotation": record.rotation, "rotation_at": 3}
    grippers = [place for place, name in enumerate(record.state_names) if "gripper" in name.lower()]
    if len(grippers) == 1:
        said["gripper"] = grippers[0]
    if (said | fields).get("gripper") is not None:
        stated = sorted(set(record.gripper_range or ()))
        said["gripper_range"] = tuple(stated) if len(stated) == 2 else ()
    return generic(**(said | fields))


def make_spec(section: Mapping, record: TrajectoryRecord | None = None) -> RobotSpec:
    """Build a robot from a section of a config.

    Args:
        section: `preset`, one of `PRESETS`, and any fields of `RobotSpec`; (), "" and None
            leave a field to the preset.
        record: a trajectory of the robot, which tells preset 'generic' what the section
            does not. Others do not look at it.

    Returns:
        The robot.

    Raises:
        ValueError: unknown preset or field, 'generic' without names or record, or fields
            that do not fit together.
    """
    given = dict(section)
    preset = given.pop("preset", None)
    if preset not in PRESETS:
        raise ValueError(f"robot preset is {preset!r}; it must be one of {', '.join(PRESETS)}")
    known = [field.name for field in dataclasses.fields(RobotSpec)]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"a robot has no field {', '.join(unknown)}; it has preset, {', '.join(known)}")
    fields = {name: value for name, value in given.items() if not _is_unset(value)}
    if preset in _NAMED:
        return dataclasses.replace(_NAMED[preset], **fields)
    if "state_names" in fields:
        return generic(**fields)
    if record is None:
        raise ValueError(f"robot preset {_GENERIC!r} needs state_names, or a trajectory to read them from")
    return from_record(record, **fields)


def _is_unset(value) -> bool:
    return value is None or (isinstance(value, (str, tuple, list)) and not value)
