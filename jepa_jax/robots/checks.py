"""Whether a trajectory is one of the robot that it is taken for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jepa_jax.data.errors import DataError
from jepa_jax.data.trajectories import TrajectoryRecord
from jepa_jax.robots.rotations import NO_ROTATION, ROTATIONS
from jepa_jax.robots.spec import RobotSpec, is_made_up

_EULER = "xyz euler"
# A record that states an orientation holds its angles here.
_EULER_AT = 3
# Radians within one turn, with some room for noise.
_MAX_ANGLE = 2 * math.pi + 0.1
# Part of the gripper's range by which a measurement may be outside of it.
_GRIPPER_SLACK = 0.25
_LENGTH_TOLERANCE = 0.1
_DEGREES = ("deg", "degree", "degrees")
_REMEDY = (
    "`prepare --gripper-range OPEN,CLOSED` stores 0 for open and 1 for closed, --config.robot.gripper_range=\"(LOW,HIGH)\" takes "
    "grippers as they were recorded; all data must be alike"
)
# What a planner may do says nothing about what numbers mean.
_FOR_PLANNING = ("action_low", "action_high", "planned")


def check_record(spec: RobotSpec, record: TrajectoryRecord, views: Sequence[str] | None = None) -> None:
    """Refuse a trajectory that is not of a robot.

    Args:
        spec: the robot.
        record: the trajectory.
        views: names of the views that will be used; all of the record's if None.

    Raises:
        DataError: 'wrong robot', 'wrong units', 'angles in degrees', 'not unit quaternions',
            'other gripper range', 'gripper out of range', 'no recorded actions', 'missing view', 'no extrinsics'.
    """
    _check_numbers(spec, record, "state", record.states)
    if spec.source == "recorded":
        if record.actions is None:
            raise _refusal(
                "no recorded actions", spec, record, "actions", "none recorded", "those of the record (source)"
            )
        _check_numbers(spec, record, "action", record.actions)
    _check_rotation(spec, record)
    _check_gripper(spec, record)
    if doubt := _doubt(spec, record.states):
        reason, field, found, needed = doubt
        needed += f"; {_REMEDY}" if field == "gripper" else ""
        raise _refusal(reason, spec, record, field, found, needed)
    if spec.frame == "camera":
        _check_cameras(spec, record, views)


def check_states(spec: RobotSpec, states: np.ndarray, name: str) -> None:
    """Refuse states whose numbers cannot be a robot's, such as angles in degrees.

    Args:
        spec: the robot.
        states: `[..., S]`, as recorded.
        name: whose they are, for the message.

    Raises:
        ValueError: angles beyond a turn, quaternions not of length 1, or a gripper out of range.
    """
    if doubt := _doubt(spec, states.reshape(-1, spec.state_dim)):
        _, field, found, needed = doubt
        raise ValueError(f"{name}: {field}: found {found}; robot {spec.name!r} needs {needed}")


def check_same(first: RobotSpec, second: RobotSpec, what: str) -> None:
    """Refuse to go on with two descriptions that ought to be one; bounds and what is planned may differ.

    Args:
        first, second: the robots.
        what: whose they are, for the message, as 'checkpoint and config'.

    Raises:
        ValueError: fields differ; the message lists them with both values.
    """
    names = [field.name for field in dataclasses.fields(RobotSpec) if field.name not in _FOR_PLANNING]
    pairs = [(name, getattr(first, name), getattr(second, name)) for name in names]
    if different := [f"{name}: {one!r}, {other!r}" for name, one, other in pairs if one != other]:
        raise ValueError(f"{what} describe different robots; " + "; ".join(different))


def _check_numbers(spec: RobotSpec, record: TrajectoryRecord, kind: str, array: np.ndarray) -> None:
    """Compare the number, names and units of a record's states or actions."""
    needed, found = getattr(spec, f"{kind}_names"), getattr(record, f"{kind}_names")
    if array.shape[1] != len(needed):
        stated = f"{array.shape[1]} numbers ({', '.join(found)})"
        raise _refusal("wrong robot", spec, record, f"{kind}s", stated, f"{len(needed)} numbers ({', '.join(needed)})")
    for place, (have, want) in enumerate(zip(found, needed, strict=True)):
        if have != want and not is_made_up(have):
            raise _refusal("wrong robot", spec, record, f"{kind}_names[{place}]", repr(have), repr(want))
    units = zip(found, getattr(record, f"{kind}_units"), getattr(spec, f"{kind}_units"), strict=True)
    for place, (name, have, want) in enumerate(units):
        if have and want and have != want:
            reason = "angles in degrees" if have.lower() in _DEGREES and want == "rad" else "wrong units"
            raise _refusal(reason, spec, record, f"{kind}_units[{place}] of {name!r}", repr(have), repr(want))


def _check_rotation(spec: RobotSpec, record: TrajectoryRecord) -> None:
    # Records know one way to write orientations: others are stored without a name.
    says = spec.rotation == _EULER and spec.rotation_at == _EULER_AT
    if says != (record.rotation == _EULER):
        needed = f"{spec.rotation!r}" + ("" if spec.rotation == NO_ROTATION else f" at {spec.rotation_at}")
        found = f"{record.rotation!r}" + (f" at {_EULER_AT}" if record.rotation == _EULER else "")
        remedy = "; if the numbers are that, prepare the data with --rotation xyz-euler" if says else ""
        raise _refusal("wrong robot", spec, record, "rotation", found, needed + remedy)


def _check_gripper(spec: RobotSpec, record: TrajectoryRecord) -> None:
    stated = record.gripper_range
    if spec.gripper is None or stated is None or tuple(stated) == spec.gripper_range:
        return
    found, needed = (
        f"{limits[0]:g} for open and {limits[1]:g} for closed" if limits else "a range that is not stated"
        for limits in (stated, spec.gripper_range)
    )
    raise _refusal("other gripper range", spec, record, "gripper_range", found, f"{needed}; {_REMEDY}")


def _doubt(spec: RobotSpec, states: np.ndarray) -> tuple[str, str, str, str] | None:
    """Say why states `[n, S]` cannot be a robot's: reason, field, what was found, what is needed; None if they can."""
    part = spec.part("rotation")
    if part is not None and ROTATIONS[spec.rotation].angles:
        largest = float(np.abs(states[:, part.where]).max())
        if not largest <= _MAX_ANGLE:
            needed = f"radians within {_MAX_ANGLE:.2f}; these look like degrees (or count turns: wrap them)"
            return "angles in degrees", "rotation", f"an angle of {largest:.4g}", needed
    elif part is not None:
        lengths = np.linalg.norm(states[:, part.where].astype(np.float64), axis=1)
        worst = int(np.abs(lengths - 1).argmax())
        if not abs(lengths[worst] - 1) <= _LENGTH_TOLERANCE:
            found = f"a quaternion of length {lengths[worst]:.4g} in row {worst}"
            return "not unit quaternions", "rotation", found, "lengths of 1 (x y z w)"
    if spec.gripper is not None and spec.gripper_range:
        low, high = spec.gripper_range
        slack, numbers = _GRIPPER_SLACK * (high - low), states[:, spec.gripper]
        least, most = float(numbers.min()), float(numbers.max())
        if not (least >= low - slack and most <= high + slack):
            return "gripper out of range", "gripper", f"{least:.4g} to {most:.4g}", f"gripper_range {low:g} to {high:g}"
    return None


def _check_cameras(spec: RobotSpec, record: TrajectoryRecord, views: Sequence[str] | None) -> None:
    known = {view.name: view for view in record.views}
    for name in known if views is None else views:
        if name not in known:
            raise _refusal("missing view", spec, record, "views", ", ".join(known), repr(name))
        if known[name].extrinsics is None:
            needed = "the camera's pose, as frame is 'camera'"
            raise _refusal("no extrinsics", spec, record, f"extrinsics of view {name!r}", "none", needed)


def _refusal(reason: str, spec: RobotSpec, record: TrajectoryRecord, field: str, found: str, needed: str) -> DataError:
    return DataError(reason, f"{record.source_id}: {field}: found {found}; robot {spec.name!r} needs {needed}")
