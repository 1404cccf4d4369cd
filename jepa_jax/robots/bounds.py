"""How far recorded actions of one step go: bounds for a planner where a description states none."""

from __future__ import annotations

import dataclasses

import numpy as np

from jepa_jax.data.trajectories import TrajectoryRecord, View
from jepa_jax.robots.algebra import derive_actions
from jepa_jax.robots.spec import RobotSpec

# Shares of the recorded actions that lie below the bounds, so that single jumps do not count.
LOW, HIGH = 0.01, 0.99
# More would only be written out.
_DIGITS = 4


def step_actions(spec: RobotSpec, record: TrajectoryRecord, view: View, step: int) -> np.ndarray:
    """Return all actions of a trajectory that lead some rows on.

    Args:
        spec: the robot; the record must be of it, as `checks.check_record` finds out.
        record: the trajectory.
        view: whose camera poses count, in frame 'camera'.
        step: rows, at least 1.

    Returns:
        float64 `[n, A]`, from every row on that is followed by so many; n may be 0.
    """
    found = [np.zeros((0, spec.action_dim))]
    for first in range(min(step, record.num_frames - step)):
        states = record.states[first::step].astype(np.float64)
        between = slice(first, first + (len(states) - 1) * step)
        recorded = None if record.actions is None else record.actions[between].astype(np.float64)
        cameras = None if view.extrinsics is None else view.extrinsics[first::step].astype(np.float64)
        found.append(derive_actions(spec, states, recorded, cameras))
    return np.concatenate(found)


def find_bounds(spec: RobotSpec, actions: np.ndarray) -> RobotSpec:
    """State bounds for a planner by recorded actions.

    An action number goes from the `LOW` to the `HIGH` quantile of the recorded ones. Those of a gripper, and others that
    hardly ever change, go from the smallest to the largest, as what counts of them is rare. A robot may stand still:
    bounds of changes include 0. One that is always the same has equal bounds.

    Args:
        spec: the robot.
        actions: `[n, A]` of single steps; those with a number that is not finite are left out.

    Returns:
        The robot with bounds. As it was where it has bounds, where there are no actions, or where a number that is named
        in `planned` is always the same.
    """
    actions = actions[np.isfinite(actions).all(1)]
    if spec.action_low or not len(actions):
        return spec
    low, high = np.quantile(actions, (LOW, HIGH), axis=0)
    rare = (low == high) | [_is_gripper(spec, at) for at in range(spec.action_dim)]
    low, high = np.where(rare, actions.min(0), low), np.where(rare, actions.max(0), high)
    changes = ~np.isin(np.arange(spec.action_dim), spec.absolute_dims)
    low, high = np.where(changes, np.minimum(low, 0), low), np.where(changes, np.maximum(high, 0), high)
    low, high = (tuple(float(f"{bound:.{_DIGITS}g}") for bound in bounds) for bounds in (low, high))
    if any(low[at] == high[at] and spec.action_names[at] in spec.planned for at in range(spec.action_dim)):
        return spec
    return dataclasses.replace(spec, action_low=low, action_high=high)


def describe_bounds(spec: RobotSpec) -> str:
    """Write the bounds of a robot out, with names and units."""
    rows = zip(spec.action_names, spec.action_low, spec.action_high, spec.action_units, strict=True)
    return ", ".join(f"{name} {low:g} to {high:g} {unit}".rstrip() for name, low, high, unit in rows)


def _is_gripper(spec: RobotSpec, at: int) -> bool:
    return "gripper" in spec.action_names[at].lower() or (spec.integrable and at == spec.gripper)
