"""From states to actions and back, for any robot that a `RobotSpec` describes.

Every function takes `xp`, the array library to compute with, keeps the dtype of the
arrays, and is jittable and differentiable with `xp=jax.numpy`. For the preset 'droid' the
results are those of `data.poses`, bit for bit.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from jepa_jax.data.poses import euler_to_matrix, product
from jepa_jax.robots.rotations import ROTATIONS
from jepa_jax.robots.spec import Part, RobotSpec


def to_frame(spec: RobotSpec, states, extrinsics=None, xp=np):
    """Express states as recorded, in the robot's base frame, in the frame that a network sees.

    Args:
        spec: the robot.
        states: `[..., S]`.
        extrinsics: `[..., 6]`, poses of the camera in the base frame: x y z (m), extrinsic
            xyz angles (rad). Needed by frame 'camera', not looked at by others.
        xp: array library.

    Returns:
        `[..., S]`: relative to the camera with frame 'camera', else unchanged.

    Raises:
        ValueError: states of another width, or no extrinsics.
    """
    _check_width("states", states, spec.state_dim, spec)
    if spec.frame != "camera":
        return states
    if extrinsics is None:
        raise ValueError(f"robot {spec.name!r}: states relative to the camera need extrinsics; got none")
    _check_width("extrinsics", extrinsics, 6, spec)
    back = xp.swapaxes(euler_to_matrix(extrinsics[..., 3:6], xp), -1, -2)
    seen = []
    for part in spec.parts:
        numbers = states[..., part.where]
        if part.kind == "position":
            numbers = _turn(back, numbers - extrinsics[..., :3])
        elif part.kind == "rotation":
            rotation = ROTATIONS[spec.rotation]
            numbers = rotation.from_matrix(product(back, rotation.to_matrix(numbers, xp)), xp)
        seen.append(numbers)
    return xp.concatenate(seen, -1)


def derive_actions(spec: RobotSpec, states, recorded=None, extrinsics=None, xp=np):
    """Say which actions lead from each state to the next.

    Args:
        spec: the robot.
        states: `[..., n, S]`, as recorded, in the robot's base frame.
        recorded: `[..., (n - 1) * m, A]`, the record's own actions from the row of the first
            state up to the row before the last, where states are m rows apart. Needed by
            source 'recorded', not looked at by 'states'.
        extrinsics: `[..., n, 6]`, as in `to_frame`.
        xp: array library.

    Returns:
        `[..., n - 1, A]`.

    Raises:
        ValueError: arrays of other sizes, or an array that is needed is None.
    """
    if spec.source == "recorded":
        _check_width("states", states, spec.state_dim, spec)
        return _compose(spec, recorded, states.shape[-2] - 1, xp)
    seen = to_frame(spec, states, extrinsics, xp)
    return _between(spec, seen[..., :-1, :], seen[..., 1:, :], xp)


def apply_action(spec: RobotSpec, states, actions, xp=np):
    """Move states by actions; the inverse of `derive_actions`.

    Args:
        spec: the robot.
        states: `[..., S]`, as `to_frame` returns them.
        actions: `[..., A]`.
        xp: array library.

    Returns:
        `[..., S]`, the gripper clipped to its range, if that is known.

    Raises:
        ValueError: arrays of other sizes, or actions that are not laid out like states.
    """
    if not spec.integrable:
        raise ValueError(
            f"robot {spec.name!r}: actions ({', '.join(spec.action_names)}) are not laid out like states "
            f"({', '.join(spec.state_names)}), so states cannot be computed from them; they must be as many, of the "
            "same names and units (or action_layout 'states' says that they are)"
        )
    _check_width("states", states, spec.state_dim, spec)
    _check_width("actions", actions, spec.action_dim, spec)
    moved, limited = _move(spec, states, actions, xp), "gripper" if spec.gripper_range else ""
    return xp.concatenate(
        [
            xp.clip(moved[..., part.where], *spec.gripper_range) if part.kind == limited else moved[..., part.where]
            for part in spec.parts
        ],
        -1,
    )


def network_inputs(spec: RobotSpec, states, actions, xp=np):
    """Divide states `[..., S]` and actions `[..., A]` by their scales, as networks take them."""
    state_scale, action_scale = (
        xp.asarray(scale, array.dtype) for scale, array in ((spec.state_scale, states), (spec.action_scale, actions))
    )
    return states / state_scale, actions / action_scale


def _between(spec: RobotSpec, now, then, xp):
    """Return the actions from states to states, both `[..., S]`."""
    relative, tool = _is_relative(spec), spec.frame == "tool"
    old, new = (_matrices(spec, states, xp) if relative else None for states in (now, then))
    actions = []
    for part, absolute in _spans(spec):
        start, goal = now[..., part.where], then[..., part.where]
        if part.kind == "rotation" and relative:
            back = xp.swapaxes(old, -1, -2)
            turn = product(back, new) if tool else product(new, back)
            actions.append(ROTATIONS[spec.rotation].from_matrix(turn, xp))
        elif part.kind == "position" and tool:
            actions.append(_turn(xp.swapaxes(old, -1, -2), goal - start))
        else:
            actions.append(goal if absolute else goal - start)
    return xp.concatenate(actions, -1)


def _move(spec: RobotSpec, states, actions, xp):
    """Return states `[..., S]` moved by actions; with an action in place of the state, both in one action."""
    relative, tool = _is_relative(spec), spec.frame == "tool"
    old, turn = (_matrices(spec, numbers, xp) if relative else None for numbers in (states, actions))
    moved = []
    for part, absolute in _spans(spec):
        start, change = states[..., part.where], actions[..., part.where]
        if part.kind == "rotation" and relative:
            new = product(old, turn) if tool else product(turn, old)
            moved.append(ROTATIONS[spec.rotation].from_matrix(new, xp))
        elif part.kind == "position" and tool:
            moved.append(start + _turn(old, change))
        else:
            moved.append(change if absolute else start + change)
    return xp.concatenate(moved, -1)


def _compose(spec: RobotSpec, recorded, steps: int, xp):
    """Join recorded actions `[..., steps * m, A]` to `[..., steps, A]`."""
    if recorded is None:
        raise ValueError(f"robot {spec.name!r}: source is 'recorded', but no recorded actions are given")
    _check_width("recorded actions", recorded, spec.action_dim, spec)
    rows = recorded.shape[-2]
    if steps < 1 or rows < steps or rows % steps:
        raise ValueError(
            f"robot {spec.name!r}: {rows} rows of recorded actions do not divide over {steps + 1} states; "
            "give the same number of rows from each state to the next"
        )
    split = recorded.reshape(*recorded.shape[:-2], steps, rows // steps, spec.action_dim)
    if spec.integrable:
        each = (split[..., row, :] for row in range(split.shape[-2]))
        return functools.reduce(lambda joined, action: _move(spec, joined, action, xp), each)
    columns = [
        split[..., -1, at] if at in spec.absolute_dims else split[..., at].sum(-1) for at in range(spec.action_dim)
    ]
    return xp.stack(columns, -1)


def _spans(spec: RobotSpec) -> Iterator[tuple[Part, bool]]:
    """Yield the parts of an action laid out like a state, and whether they are absolute; 'other' ones divided by that."""
    absolute = set(spec.absolute_dims)
    for part in spec.parts:
        for said, places in itertools.groupby(range(part.start, part.stop), absolute.__contains__):
            start, *rest = places
            yield Part(part.kind, start, start + 1 + len(rest)), said


def _is_relative(spec: RobotSpec) -> bool:
    """Say whether rotations of actions are relative to those of states."""
    rotation = spec.part("rotation")
    return rotation is not None and (spec.frame == "tool" or rotation.start not in spec.absolute_dims)


def _matrices(spec: RobotSpec, states, xp):
    return ROTATIONS[spec.rotation].to_matrix(states[..., spec.part("rotation").where], xp)


def _turn(matrices, vectors):
    return product(matrices, vectors[..., None])[..., 0]


def _check_width(what: str, array, width: int, spec: RobotSpec) -> None:
    if not array.ndim or array.shape[-1] != width:
        raise ValueError(f"robot {spec.name!r}: {what} have shape {list(array.shape)}; the last axis must be {width}")
