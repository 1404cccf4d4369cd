"""The bodies that make up a picture: what a state and a scene look like, as boxes, cans and rods."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.data import poses
from jepa_jax.sim import bodies
from jepa_jax.sim.nuisance import NUM_DISTRACTOR_BOXES, NUM_DISTRACTORS
from jepa_jax.sim.shapes import Box, Can, Rod

# What has a color of its own, RGB; the place in this list is the number of the material.
COLORS = {
    "arm": (0.86, 0.87, 0.90),
    "hand": (0.16, 0.17, 0.21),
    "finger": (0.10, 0.34, 0.98),
    "tip": (0.40, 0.70, 1.0),
    "box": (0.90, 0.13, 0.10),
    "tape": (1.0, 0.82, 0.64),
    "cup": (0.08, 0.74, 0.42),
    "cup inside": (0.05, 0.46, 0.27),
    "plate": (0.96, 0.96, 0.98),
    "rim": (0.42, 0.50, 0.74),
}
TABLE = len(COLORS)
FLOOR = TABLE + 1
FIRST_DISTRACTOR = FLOOR + 1
# Materials below this are the robot.
FIRST_OBJECT = 4
_NUMBERS = {name: number for number, name in enumerate(COLORS)}
# A tape around the box shows how it is turned; it lies on the box by this much, m.
_TAPE_HALF, _ON_TOP = 0.009, 0.0006
_TIP_HALF = 0.014
_HANDLE = (bodies.CUP_RADIUS + 0.010, 0.0, 0.0), (0.017, 0.006, 0.024)
_PLATE_INNER = 0.8 * bodies.PLATE_RADIUS


class Bodies(NamedTuple):
    """Hold all bodies of a picture, each kind with a leading axis."""

    boxes: Box
    cans: Can
    rods: Rod


def all_bodies(state, scene):
    """Find the bodies of a picture.

    Args:
        state: `world.State`.
        scene: `nuisance.Scene`.

    Returns:
        `Bodies`.
    """
    tool = state.pose[:3], poses.euler_to_matrix(state.pose[3:6], jnp)
    turns = poses.euler_to_matrix(state.objects[:, 3:], jnp)
    box, cup = ((state.objects[i, :3], turns[i]) for i in range(bodies.NUM_OBJECTS))
    tape = bodies.BOX_HALF + _ON_TOP
    boxes = [
        *_gripper(tool, state.pose[6]),
        _box(box, (0, 0, 0), (bodies.BOX_HALF,) * 3, "box"),
        _box(box, (0, 0, 0), (_TAPE_HALF, tape, tape), "tape"),
        _box(cup, *_HANDLE, "cup"),
    ]
    plate = jnp.append(state.plate, bodies.PLATE_HEIGHT / 2), jnp.eye(3)
    cans = [
        _can(cup, bodies.CUP_RADIUS, bodies.CUP_HALF_HEIGHT, bodies.CUP_RADIUS - bodies.CUP_WALL, "cup"),
        _can(plate, bodies.PLATE_RADIUS, bodies.PLATE_HEIGHT / 2, 0.0, "rim"),
        _can(plate, _PLATE_INNER, bodies.PLATE_HEIGHT / 2 + _ON_TOP, 0.0, "plate"),
    ]
    more_boxes, more_cans = _distractors(scene)
    return Bodies(_stack(boxes + more_boxes), _stack(cans + more_cans), _stack(_arm(state.pose)))


def arm_joints(pose):
    """Find the elbow and the end of the forearm, two float32 `[3]`, m; the elbow points up.

    Args:
        pose: float32 `[7]`, of the tool.
    """
    turn = poses.euler_to_matrix(pose[3:6], jnp)
    end = pose[:3] + turn[:, 2] * bodies.WRIST_END
    reach = end - bodies.SHOULDER
    distance = jnp.linalg.norm(reach)
    along = (bodies.UPPER_ARM**2 - bodies.FOREARM**2 + distance**2) / (2 * distance)
    above = jnp.sqrt(jnp.maximum(bodies.UPPER_ARM**2 - along**2, 1e-4))
    ahead = reach / distance
    up = jnp.array([0.0, 0.0, 1.0]) - ahead[2] * ahead
    return bodies.SHOULDER + along * ahead + above * up / jnp.linalg.norm(up), end


def _gripper(tool, closedness):
    """List wrist, palm and fingers; light tips make it plain where the fingers end."""
    spread = bodies.FINGER_STROKE * (1 - closedness) + float(bodies.FINGER_HALF[1])
    half_x, half_y, half_z = (float(half) for half in bodies.FINGER_HALF)
    middle, tip = half_z - bodies.FINGER_BELOW, _TIP_HALF - bodies.FINGER_BELOW
    yield _box(tool, (0, 0, bodies.WRIST_HEIGHT), bodies.WRIST_HALF, "arm")
    yield _box(tool, (0, 0, bodies.PALM_HEIGHT), bodies.PALM_HALF, "hand")
    for side in (-spread, spread):
        yield _box(tool, (0, side, middle), (half_x, half_y, half_z), "finger")
        yield _box(tool, (0, side, tip), (half_x + _ON_TOP, half_y + _ON_TOP, _TIP_HALF + _ON_TOP), "tip")


def _arm(pose):
    elbow, end = arm_joints(pose)
    foot = np.float32([bodies.SHOULDER[0], bodies.SHOULDER[1], 0.0])
    joints = [jnp.asarray(joint) for joint in (foot, bodies.SHOULDER, elbow, end)]
    widths = (1.4, 1.15, 1.0)
    return [
        Rod(start, stop, jnp.float32(width * bodies.ARM_RADIUS), jnp.int32(_NUMBERS["arm"]))
        for start, stop, width in zip(joints, joints[1:], widths)
    ]


def _distractors(scene):
    """List the boxes and cans that have nothing to do with the task."""
    sizes = scene.distractor_sizes
    places = jnp.concatenate([scene.distractors[:, :2], sizes[:, 2:]], 1)
    turns = poses.euler_to_matrix(jnp.pad(scene.distractors[:, 2:3], ((0, 0), (2, 0))), jnp)
    boxes, cans = [], []
    for i in range(NUM_DISTRACTORS):
        material = jnp.int32(FIRST_DISTRACTOR + i)
        if i < NUM_DISTRACTOR_BOXES:
            boxes.append(Box(places[i], turns[i], jnp.zeros(3), sizes[i], material))
        else:
            cans.append(Can(places[i], turns[i], sizes[i, 0], sizes[i, 2], jnp.float32(0), material))
    return boxes, cans


def _box(frame, center, half, name):
    center = jnp.stack([jnp.asarray(part, jnp.float32) for part in center])
    return Box(*frame, center, jnp.asarray(half, jnp.float32), jnp.int32(_NUMBERS[name]))


def _can(frame, radius, half, hole, name):
    return Can(*frame, *map(jnp.float32, (radius, half, hole)), jnp.int32(_NUMBERS[name]))


def _stack(items):
    return jax.tree.map(lambda *parts: jnp.stack(parts), *items)
