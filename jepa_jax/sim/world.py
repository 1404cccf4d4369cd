"""The table-top's state and how an action changes it: pure functions of arrays, for jit, vmap and scan.

States and actions have the layout of DROID (`jepa_jax.data.poses`): x y z (m), three angles (extrinsic
xyz, rad) and closedness of the gripper (0 open, 1 closed); an action is the change of each in one step
of 1 / CONTROL_RATE seconds. Free motion is exactly `poses.apply_action` within the workspace.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.data import poses
from jepa_jax.sim import bodies, cameras, contacts

# Steps per second.
CONTROL_RATE = 4.0
NOTHING = -1
# The tool stays within: m and rad.
LOW = np.float32([0.30, -0.25, 0.02, -0.5, -0.5, -1.4, 0.0])
HIGH = np.float32([0.65, 0.25, 0.35, 0.5, 0.5, 1.4, 1.0])
# Largest change per step that policies and planners ask for.
MAX_ACTION = np.float32([0.05, 0.05, 0.05, 0.12, 0.12, 0.25, 0.5])
# Fingers that close on an object nearer than this, sideways and up or down, hold it, m.
GRASP_WINDOW = 0.05
# A held object falls when the fingers open by more than this, in closedness.
RELEASE = 0.1
# What a new episode has between two things on the table, center to center, m.
_CLEARANCE = 0.14
_PLACE_LOW, _PLACE_HIGH = np.float32([0.33, -0.22]), np.float32([0.62, 0.22])
_DRAWS = 128
_START_LOW = np.float32([0.33, -0.22, 0.13, 0.0, 0.0, -0.7, 0.0])
_START_HIGH = np.float32([0.62, 0.22, 0.33, 0.0, 0.0, 0.7, 0.3])
_MAX_OBJECT_YAW = 0.75


class State(NamedTuple):
    """Hold everything that the future depends on.

    Args:
        pose: float32 `[7]`, of the tool: what a robot would report.
        objects: float32 `[2, 6]`, centers (m) and angles (rad) of box and cup.
        held: int32, number of the held object, or NOTHING.
        grip: float32 `[6]`, pose of the held object in the tool's frame; zeros when nothing is held.
        plate: float32 `[2]`, x y of the plate, m.
    """

    pose: jax.Array
    objects: jax.Array
    held: jax.Array
    grip: jax.Array
    plate: jax.Array


def reset(key):
    """Draw the start of an episode: the gripper open above the table, objects and plate apart from each other.

    Args:
        key: PRNG key.

    Returns:
        `State`.
    """
    place_key, turn_key, pose_key = jax.random.split(key, 3)
    draws = jax.random.uniform(
        place_key, (_DRAWS, bodies.NUM_OBJECTS + 1, 2), minval=_PLACE_LOW, maxval=_PLACE_HIGH
    )
    # The first draw with room between all things; the chance that there is none is below one in a million.
    gaps = jnp.stack([jnp.linalg.norm(draws[:, a] - draws[:, b], axis=-1) for a, b in ((0, 1), (0, 2), (1, 2))])
    places = draws[jnp.argmax((gaps > _CLEARANCE).all(0))]
    yaws = jax.random.uniform(turn_key, (bodies.NUM_OBJECTS, 1), minval=-_MAX_OBJECT_YAW, maxval=_MAX_OBJECT_YAW)
    pose = jax.random.uniform(pose_key, (7,), minval=_START_LOW, maxval=_START_HIGH)
    flat = jnp.zeros((bodies.NUM_OBJECTS, 2))
    objects = jnp.concatenate([places[:-1], bodies.OBJECT_HALF_HEIGHTS[:, None], flat, yaws], 1)
    state = State(pose, objects, jnp.int32(NOTHING), jnp.zeros(6), places[-1])
    # Near the plate, an object may stand on its rim.
    return state._replace(objects=contacts.settle(objects, objects, state.held, state.plate))


def holding(state, number):
    """Put an object into the closed gripper, wherever the gripper is.

    Args:
        state: `State`.
        number: int32, of the object.

    Returns:
        `State`; the gripper is raised where the object would be in the table.
    """
    pose = state.pose.at[6].set(jnp.asarray(bodies.CONTACT_CLOSEDNESS)[number])
    lowest = jnp.asarray(bodies.OBJECT_HALF_HEIGHTS)[number] + bodies.PLATE_HEIGHT
    pose = pose.at[2].set(jnp.maximum(pose[2], lowest + bodies.FINGER_BELOW))
    grip = jnp.zeros(6)
    objects = state.objects.at[number].set(cameras.attached(pose, grip))
    held = jnp.asarray(number, jnp.int32)
    return State(pose, contacts.settle(objects, objects, held, state.plate), held, grip, state.plate)


def step(state, action):
    """Move by one step.

    Args:
        state: `State`.
        action: float32 `[7]`, change of the tool's pose that is commanded, in meters, radians and closedness.
            The tool does less at the edge of its workspace, and where something is below it or between its fingers.

    Returns:
        The next `State`.
    """
    pose = jnp.clip(poses.apply_action(state.pose, action, jnp), LOW, HIGH)
    held, pose, grip = _close(state, pose)
    body = cameras.attached(pose, grip)
    before = contacts.pushers(state.pose, held, state.objects[held])
    lift = contacts.needed_lift(before, contacts.pushers(pose, held, body), state.objects, held, state.plate)
    pose, body = pose.at[2].add(lift), body.at[2].add(lift)
    objects = jnp.where((jnp.arange(bodies.NUM_OBJECTS) == held)[:, None], body, state.objects)
    objects = contacts.push(objects, held, contacts.pushers(pose, held, body))
    objects = contacts.settle(state.objects, objects, held, state.plate)
    return State(pose, objects, held, jnp.where(held == NOTHING, 0.0, grip), state.plate)


def _close(state, pose):
    """Decide what is held after the fingers moved; returns its number, the pose, and the grip."""
    contact = jnp.asarray(bodies.CONTACT_CLOSEDNESS)
    in_tool = poses.to_camera_frame(_as_poses(state.objects), pose[:6], jnp)[:, :6]
    aside, above = jnp.linalg.norm(in_tool[:, :2], axis=-1), jnp.abs(in_tool[:, 2])
    closes = (state.pose[6] < contact) & (pose[6] >= contact)
    possible = closes & (aside < GRASP_WINDOW) & (above < GRASP_WINDOW)
    nearest = jnp.where(possible.any(), jnp.argmin(jnp.where(possible, aside, jnp.inf)), NOTHING)
    keeps = pose[6] > contact[state.held] - RELEASE
    held = jnp.where(state.held == NOTHING, nearest, jnp.where(keeps, state.held, NOTHING)).astype(jnp.int32)
    grip = jnp.where(state.held == NOTHING, _aligned(in_tool[held], held), state.grip)
    # Fingers stop where they touch.
    closedness = jnp.where(held == NOTHING, pose[6], jnp.minimum(pose[6], contact[held]))
    return held, pose.at[6].set(closedness), grip


def _aligned(body, number):
    """Center an object `[6]` between the fingers and turn it until its faces meet them."""
    symmetry = jnp.asarray(bodies.OBJECT_SYMMETRIES)[number]
    return body.at[1].set(0.0).at[5].set(jnp.round(body[5] / symmetry) * symmetry)


def _as_poses(objects):
    return jnp.pad(objects, ((0, 0), (0, 1)))
