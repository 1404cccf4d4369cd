"""What stands on the Panda's table: sizes in meters, and the bodies that MuJoCo makes of them.

Objects stand as tall as those of the table-top, and the plate is the same, so that one scripted expert handles both
worlds. They are narrower: the gripper opens by 85 mm.
"""

import itertools

import numpy as np

from jepa_jax.sim import bodies
from jepa_jax.sim.drawing import COLORS
from jepa_jax.sim.panda.installed import load_mujoco

BOX_HALF_WIDTH = 0.025
CUP_RADIUS, CUP_WALL = 0.031, 0.004
TABLE_THICKNESS = 0.04
_BOX_MASS, _CUP_MASS = 0.08, 0.09
_SLIDING = (1.2, 0.02, 0.001)
# A cup's wall is so many boxes, and its picture so many faces around.
_WALL_BOXES, _AROUND = 12, 24
_HIDDEN_GROUP = 3
_HANDLE_RADIUS, _HANDLE_REACH = 0.005, 0.022
_TAPE_HALF, _ON_TOP = 0.007, 0.0006


def add_box(spec):
    """Add the box, with a tape around it that shows how it is turned."""
    mujoco = load_mujoco()
    body = spec.worldbody.add_body(name="box", pos=[0.5, 0.1, bodies.BOX_HALF])
    body.add_freejoint()
    half = np.array([BOX_HALF_WIDTH, BOX_HALF_WIDTH, bodies.BOX_HALF])
    body.add_geom(
        name="box", type=mujoco.mjtGeom.mjGEOM_BOX, size=half, rgba=[*COLORS["box"], 1], mass=_BOX_MASS, friction=_SLIDING, condim=4
    )
    tape = np.array([_TAPE_HALF, half[1] + _ON_TOP, half[2] + _ON_TOP])
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=tape, rgba=[*COLORS["tape"], 1], contype=0, conaffinity=0, mass=0)


def add_cup(spec):
    """Add the cup: what is seen is one turned mesh and a handle, what is touched are boxes around a disc."""
    mujoco = load_mujoco()
    kinds = mujoco.mjtGeom
    height, color = bodies.CUP_HALF_HEIGHT, [*COLORS["cup"], 1]
    body = spec.worldbody.add_body(name="cup", pos=[0.5, -0.1, height])
    body.add_freejoint()
    inner, floor = CUP_RADIUS - CUP_WALL, CUP_WALL - height
    outline = [(0, -height), (0.9 * CUP_RADIUS, -height), (CUP_RADIUS, 0.004 - height), (CUP_RADIUS, height), (inner, height), (inner, floor), (0, floor)]
    _add_turned(spec, body, "cup", outline, color)
    touched = {"group": _HIDDEN_GROUP, "condim": 4, "friction": _SLIDING}
    body.add_geom(
        type=kinds.mjGEOM_CYLINDER, size=[0.97 * CUP_RADIUS, CUP_WALL / 2, 0], pos=[0, 0, CUP_WALL / 2 - height], mass=_CUP_MASS / 3, **touched
    )
    middle, width = CUP_RADIUS - CUP_WALL / 2, (CUP_RADIUS - CUP_WALL) * np.tan(np.pi / _WALL_BOXES)
    for turn in 2 * np.pi * np.arange(_WALL_BOXES) / _WALL_BOXES:
        body.add_geom(
            type=kinds.mjGEOM_BOX, size=[CUP_WALL / 2, width, height], pos=[middle * np.cos(turn), middle * np.sin(turn), 0],
            quat=[np.cos(turn / 2), 0, 0, np.sin(turn / 2)], mass=2 / 3 * _CUP_MASS / _WALL_BOXES, **touched,
        )  # fmt: skip
    # In the plane between the fingers, so that it is in nobody's way.
    far, low, high = CUP_RADIUS + _HANDLE_REACH, -0.4 * height, 0.4 * height
    corners = [(CUP_RADIUS - 0.002, high), (far, high * 0.8), (far, low * 0.8), (CUP_RADIUS - 0.002, low)]
    for (x, z), (next_x, next_z) in itertools.pairwise(corners):
        body.add_geom(
            type=kinds.mjGEOM_CAPSULE, size=[_HANDLE_RADIUS, 0, 0], fromto=[x, 0, z, next_x, 0, next_z], rgba=color, mass=0.001,
        )  # fmt: skip


def add_plate(spec):
    """Add the plate, which stays where an episode puts it: it moves as a 'mocap' body, by nothing but a reset."""
    mujoco = load_mujoco()
    body = spec.worldbody.add_body(name="plate", pos=[0.6, 0.25, 0], mocap=True)
    radius, height = bodies.PLATE_RADIUS, bodies.PLATE_HEIGHT
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[radius, height / 2, 0], pos=[0, 0, height / 2], group=_HIDDEN_GROUP)
    rim = [(0, 0), (0.7 * radius, 0), (radius, 0.75 * height), (radius, height), (0.72 * radius, height)]
    _add_turned(spec, body, "rim", rim, [*COLORS["rim"], 1])
    well = [(0, 0.9 * height), (0.8 * radius, 0.9 * height), (0.8 * radius, height + _ON_TOP), (0, height + _ON_TOP)]
    _add_turned(spec, body, "plate", well, [*COLORS["plate"], 1])


def add_table(spec, texture):
    """Add the table, with the named texture on it, and the floor below."""
    mujoco = load_mujoco()
    kinds = mujoco.mjtGeom
    (low, high), thick = (bodies.TABLE_LOW, bodies.TABLE_HIGH), TABLE_THICKNESS
    middle, half = (low + high) / 2, (high - low) / 2
    spec.worldbody.add_geom(
        name="table", type=kinds.mjGEOM_BOX, size=[*half, thick / 2], pos=[*middle, -thick / 2], friction=[1, 0.005, 0.0001],
    )  # fmt: skip
    spec.worldbody.add_geom(
        name="top", type=kinds.mjGEOM_PLANE, size=[*half, 0.1], pos=[*middle, _ON_TOP / 4], material=texture, contype=0, conaffinity=0,
    )  # fmt: skip
    spec.worldbody.add_geom(name="floor", type=kinds.mjGEOM_PLANE, size=[4, 4, 0.1], pos=[0, 0, -0.75], contype=0, conaffinity=0)


def _add_turned(spec, body, name, outline, color):
    """Add what is seen of an outline of (radius, height) that is turned about the vertical."""
    mujoco = load_mujoco()
    turns = 2 * np.pi * np.arange(_AROUND) / _AROUND
    rings = np.array([[[radius * np.cos(turn), radius * np.sin(turn), z] for turn in turns] for radius, z in outline])
    here, following = np.arange(_AROUND), (np.arange(_AROUND) + 1) % _AROUND
    faces = []
    for ring in range(len(outline) - 1):
        first, second = ring * _AROUND, (ring + 1) * _AROUND
        faces += [np.stack([first + here, first + following, second + following], 1), np.stack([first + here, second + following, second + here], 1)]
    # Points in the middle coincide; faces that they make flat are left out.
    vertices, joined = np.unique(rings.reshape(-1, 3).round(7), axis=0, return_inverse=True)
    faces = joined.reshape(-1)[np.concatenate(faces)]
    faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])]
    spec.add_mesh(name=name, uservert=vertices.ravel(), userface=faces.ravel().astype(np.int32), inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, rgba=color, contype=0, conaffinity=0, mass=0)
