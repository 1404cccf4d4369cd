"""Whether recorded actions are what a robot takes them for: changes of its state, or values that it is to arrive at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jepa_jax.data.errors import DataError
from jepa_jax.data.trajectories import TrajectoryRecord
from jepa_jax.robots.spec import RobotSpec

# An action follows what it is nearer to by this part than to anything else that it could be.
_CLEARLY = 0.5
# Part of the gripper's range by which a command may be outside of it.
_GRIPPER_SLACK = 0.25


class _Rows(NamedTuple):
    """Hold rows of several trajectories: float64 `[n, S]` before and after an action, and the actions `[n, A]`."""

    before: np.ndarray
    after: np.ndarray
    actions: np.ndarray


def check_recorded(spec: RobotSpec, records: Iterable[TrajectoryRecord], name: str) -> None:
    """Refuse recorded actions that clearly are not what a robot takes them for.

    Args:
        spec: the robot, whose source is 'recorded'.
        records: a few of its trajectories; those of another size are passed over.
        name: what they are from, for messages.

    Raises:
        DataError: 'absolute actions' where numbers that would be added up follow the state itself; 'other gripper range'
            where those of the gripper are told otherwise than the states, which `prepare` has rescaled.
    """
    fitting = [
        record
        for record in records
        if record.actions is not None
        and (record.states.shape[1], record.actions.shape[1]) == (spec.state_dim, spec.action_dim)
        and record.num_frames > 1
    ]
    if not fitting:
        return
    _check_changes(spec, _rows(fitting), name)
    if spec.gripper is not None and spec.integrable:
        # Elsewhere states are as recorded, as actions are.
        if known := [record for record in fitting if record.gripper_range is not None]:
            _check_gripper(spec, _rows(known), name)


def _rows(records: Sequence[TrajectoryRecord]) -> _Rows:
    join = lambda arrays: np.concatenate(list(arrays)).astype(np.float64)
    return _Rows(
        join(record.states[:-1] for record in records), join(record.states[1:] for record in records),
        join(record.actions[:-1] for record in records),
    )  # fmt: skip


def _check_changes(spec: RobotSpec, rows: _Rows, name: str) -> None:
    pairs = _pairs(spec)
    if not pairs:
        return
    actions, (before, after) = rows.actions[:, list(pairs)], (part[:, list(pairs.values())] for part in rows[:2])
    to_state, to_change = _distance(actions, after), _distance(actions, after - before)
    spread = _distance(after, after.mean(axis=0))
    follows = to_state < _CLEARLY * np.minimum(to_change, spread)
    if not follows.any():
        return
    found = [at for at, does in zip(pairs, follows, strict=True) if does]
    first = int(follows.argmax())
    every = (follows | (spread == 0)).all() and len(pairs) + len(spec.absolute_dims) >= spec.action_dim
    raise DataError(
        "absolute actions",
        f"{name}: recorded actions {_named(spec, found)} follow the state itself, not its changes: {spec.action_names[found[0]]} "
        f"is {to_state[first]:.3g} off the state of the next row and {to_change[first]:.3g} off its change, in the mean of "
        f"{len(actions)} rows; but robot {spec.name!r} takes them for changes, which are added up. Set {_remedy(spec, found, every)}",
    )


def _pairs(spec: RobotSpec) -> dict[int, int]:
    """Return the places of actions that are taken for changes, each with that of the state of the same name, or else place."""
    known = {name: at for at, name in enumerate(spec.state_names)}
    same = len(known) == spec.action_dim
    pairs = {at: known.get(name, at if same else None) for at, name in enumerate(spec.action_names)}
    units = lambda at, place: {spec.action_units[at], spec.state_units[place]} - {""}
    posed = _pose(spec) if spec.frame == "tool" else ()
    return {
        at: place
        for at, place in pairs.items()
        if place is not None and len(units(at, place)) < 2 and (at not in spec.absolute_dims or at in posed)
    }


def _pose(spec: RobotSpec) -> set[int]:
    parts = [part for kind in ("position", "rotation") if (part := spec.part(kind)) and spec.integrable]
    return {at for part in parts for at in range(part.start, part.stop)}


def _remedy(spec: RobotSpec, found: Sequence[int], every: bool) -> str:
    """Name the settings that take actions at these places as they are."""
    base = '--config.robot.frame=base, as poses are relative in frame "tool", and ' if spec.frame == "tool" else ""
    if every:
        return f"{base}--config.robot.mode=absolute"
    wanted = set(found) | {spec.action_names.index(name) for name in spec.absolute}
    for part in spec.parts if spec.integrable else ():
        # A position or rotation is absolute as a whole.
        if part.kind in ("position", "rotation") and wanted & set(range(part.start, part.stop)):
            wanted |= set(range(part.start, part.stop))
    names = ",".join(f"'{spec.action_names[at]}'" for at in sorted(wanted))
    return f'{base}--config.robot.absolute="({names},)", or --config.robot.mode=absolute if the others are values to arrive at too'


def _check_gripper(spec: RobotSpec, rows: _Rows, name: str) -> None:
    """Compare the commands of the gripper with its state, which is in the range of the robot."""
    if not spec.gripper_range:
        return
    at, (low, high) = spec.gripper, spec.gripper_range
    command, after, absolute = rows.actions[:, at], rows.after[:, at], at in spec.absolute_dims
    reached, middle = (after, low + high) if absolute else (after - rows.before[:, at], 0.0)
    least, most = (low, high) if absolute else (low - high, high - low)
    slack = _GRIPPER_SLACK * (high - low)
    if command.min() < least - slack or command.max() > most + slack:
        found = f"run from {command.min():.4g} to {command.max():.4g}, where {least:g} to {most:g} is possible"
    elif _distance(command, middle - reached) < _CLEARLY * _distance(command, reached):
        found = "say open where the state says closed, and closed where it says open"
    else:
        return
    raise DataError(
        "other gripper range",
        f"{name}: recorded actions of the gripper, {spec.action_names[at]}, {found}: `prepare` rescales grippers in states, to {low:g} "
        f"for open and {high:g} for closed, and leaves actions as recorded. Derive actions from the states "
        "(--config.robot.source=states), or prepare the data so that states too stay as recorded: without --gripper-range, or "
        "with --gripper-range 0,1 where a --preset knows another",
    )


def _distance(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.abs(values - others).mean(axis=0)


def _named(spec: RobotSpec, places: Sequence[int]) -> str:
    return ", ".join(spec.action_names[at] for at in places)
