"""The MuJoCo model of arm, gripper and table: what the simulator is told once."""

import functools
import pathlib

import numpy as np

from jepa_jax.sim.panda import shapes
from jepa_jax.sim.panda.installed import load_mujoco, load_simplify, robot_file

# Length of a step of the simulator, s.
TIMESTEP = 0.002
# The tool's frame: between the fingers, above their ends by as much as in the table-top, its z axis up when they point down.
TOOL = "tool"
_ABOVE_PINCH = -0.010
PADS = (("left_pad1", "left_pad2"), ("right_pad1", "right_pad2"))
_SEEN_GROUP = 2
# Faces of all meshes are so many times fewer, down to so many: 190 thousand would be drawn at 2 frames per second.
_KEPT_FACES, _MIN_FACES = 0.08, 40
_TEXTURE_PIXELS = 192
_MOUNT_MASS = 0.1
# Of the gripper, which is darker in truth: pictures of a few pixels shall show its parts.
_DARK = (0.24, 0.25, 0.29)
MAX_PIXELS = 1024


@functools.cache
def build_model():
    """Build the model; it takes seconds, and is done once per process.

    Returns:
        `mujoco.MjModel`. Pictures write colors of an episode into it, simulation never does.

    Raises:
        MissingSimulatorError: something is not installed.
    """
    mujoco = load_mujoco()
    spec = mujoco.MjSpec.from_file(str(robot_file()))
    _keep_what_matters(spec)
    _simplify(spec)
    option, kinds = spec.option, mujoco
    option.timestep, option.noslip_iterations, option.impratio = TIMESTEP, 0, 10
    option.integrator, option.cone = kinds.mjtIntegrator.mjINT_IMPLICITFAST, kinds.mjtCone.mjCONE_ELLIPTIC
    for geom in spec.geoms:
        if geom.parent.name == "base_mount":
            # A disc full of screws that nobody sees: MuJoCo fits a cylinder to the mesh.
            geom.type, geom.mass = kinds.mjtGeom.mjGEOM_CYLINDER, _MOUNT_MASS / 2
    spec.material("black").rgba[:3] = _DARK
    base = spec.body("base")
    base.add_site(name=TOOL, pos=[0, 0, spec.site("pinch").pos[2] + _ABOVE_PINCH], quat=[0, 1, 0, 0])
    _add_scenery(spec)
    return spec.compile()


def _keep_what_matters(spec):
    """Leave out what nothing can touch: the workspace keeps the arm's links away from the table."""
    mujoco = load_mujoco()
    gripper = {body.name for body in spec.body("base_mount").find_all(mujoco.mjtObj.mjOBJ_BODY)} | {"base_mount"}
    for geom in list(spec.geoms):
        if geom.type == mujoco.mjtGeom.mjGEOM_MESH and geom.group != _SEEN_GROUP and geom.parent.name not in gripper:
            spec.delete(geom)
    used = {geom.meshname for geom in spec.geoms}
    for mesh in list(spec.meshes):
        if _name(mesh) not in used:
            spec.delete(mesh)


def _simplify(spec):
    """Give meshes fewer faces."""
    mujoco, simplify = load_mujoco(), load_simplify()
    files = mujoco.MjSpec.from_file(str(robot_file()))
    for geom in list(files.geoms):
        if geom.type == mujoco.mjtGeom.mjGEOM_MESH:
            files.delete(geom)
    wanted = {_name(mesh): mesh for mesh in spec.meshes}
    for mesh in list(files.meshes):
        if _name(mesh) not in wanted:
            files.delete(mesh)
    read = files.compile()
    for name, mesh in wanted.items():
        number = read.mesh(name).id
        first, count = read.mesh_vertadr[number], read.mesh_vertnum[number]
        first_face, num_faces = read.mesh_faceadr[number], read.mesh_facenum[number]
        turn = np.zeros(9)
        mujoco.mju_quat2Mat(turn, read.mesh_quat[number])
        vertices = (read.mesh_vert[first : first + count] @ turn.reshape(3, 3).T + read.mesh_pos[number]).astype(np.float32)
        faces = read.mesh_face[first_face : first_face + num_faces]
        # Faces with corners of their own, as files have them, would be torn apart.
        vertices, joined = np.unique(vertices.round(6), axis=0, return_inverse=True)
        faces = joined.reshape(-1)[faces].astype(np.int32)
        if (target := max(_MIN_FACES, int(_KEPT_FACES * num_faces))) < num_faces:
            vertices, faces = simplify(vertices, np.ascontiguousarray(faces), target_count=target)
        mesh.name, mesh.file, mesh.scale, mesh.inertia = name, "", [1, 1, 1], mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
        mesh.uservert, mesh.userface = vertices.astype(float).ravel(), faces.astype(np.int32).ravel()


def _name(mesh):
    return mesh.name or pathlib.Path(mesh.file).stem


def _add_scenery(spec):
    """Add table, objects, light and textures; colors are those of an episode, set when it is drawn."""
    mujoco = load_mujoco()
    visual = spec.visual
    visual.quality.offsamples, visual.quality.shadowsize = 0, 1024
    visual.global_.offwidth = visual.global_.offheight = MAX_PIXELS
    spec.stat.center, spec.stat.extent = [0.45, 0, 0.2], 1.0
    visual.map.znear, visual.map.zfar = 0.02, 12.0
    size = _TEXTURE_PIXELS
    spec.add_texture(
        name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.75, 0.78, 0.8], rgb2=[0.55, 0.57, 0.6], width=32, height=192,
    )  # fmt: skip
    spec.add_texture(
        name="top", type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
        rgb1=[0.5, 0.5, 0.5], rgb2=[0.5, 0.5, 0.5], width=size, height=size,
    )  # fmt: skip
    textures = [""] * int(mujoco.mjtTextureRole.mjNTEXROLE)
    textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "top"
    spec.add_material(name="top", textures=textures, texrepeat=[1, 1], texuniform=False, specular=0.05, shininess=0.1)
    shapes.add_table(spec, "top")
    shapes.add_plate(spec)
    shapes.add_box(spec)
    shapes.add_cup(spec)
    for casts_shadow in (True, False):
        spec.worldbody.add_light(type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, dir=[0, 0, -1], castshadow=casts_shadow)
