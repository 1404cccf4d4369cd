"""Pictures of the Panda and its table: the cameras and scenes of the table-top, drawn by MuJoCo."""

import numpy as np

from jepa_jax.data import poses
from jepa_jax.sim import bodies, cameras
from jepa_jax.sim.nuisance import NUM_DISTRACTOR_BOXES, NUM_DISTRACTORS
from jepa_jax.sim.panda.installed import load_mujoco
from jepa_jax.sim.panda.model import MAX_PIXELS, build_model
from jepa_jax.sim.rendering import table_pattern

_MAX_GEOMS = 400
# Light that comes from everywhere, from the lamp that casts shadows, and from the other one.
_AMBIENT, _SHADOWED, _UNSHADOWED = 0.42, 0.30, 0.32
_SPECULAR = 0.15
_MIDDLE = np.float32([0.45, 0.0, 0.1])
_NEAR, _FAR = 0.02, 12.0
# Pictures are drawn so many times larger, and averaged: edges would be stairs.
_OVERSAMPLING = 2


class Pictures:
    """Draw pictures with one OpenGL context; close it when done, or use it in a `with` statement.

    One thread may draw, that which made it.

    Args:
        size: side of a picture, pixels.
        shadows: draw the shadows that the lamp casts.

    Raises:
        ValueError: the size is none that can be drawn.
        MissingSimulatorError: something is not installed.
    """

    def __init__(self, size, shadows=True):
        if not 1 <= size <= MAX_PIXELS // _OVERSAMPLING:
            raise ValueError(f"pictures of {size} pixels cannot be drawn; allowed: 1 to {MAX_PIXELS // _OVERSAMPLING}")
        mujoco = load_mujoco()
        self._model, self._size, self._pixels = build_model(), size, size * _OVERSAMPLING
        self._gl = mujoco.GLContext(self._pixels, self._pixels)
        self._gl.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(self._model, _MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = int(shadows)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        self._texture = None

    def draw(self, data, camera, scene):
        """Draw what a camera sees.

        Args:
            data: `mujoco.MjData`.
            camera: float32 `[6]`, extrinsics.
            scene: `nuisance.Scene` of NumPy arrays.

        Returns:
            uint8 `[H, W, 3]`, RGB.
        """
        mujoco = load_mujoco()
        self._gl.make_current()
        self._paint(scene)
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        self._light(scene)
        self._add_distractors(scene)
        self._look_from(camera)
        pixels = np.empty((self._pixels, self._pixels, 3), np.uint8)
        view = mujoco.MjrRect(0, 0, self._pixels, self._pixels)
        mujoco.mjr_render(view, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, view, self._context)
        parts = pixels[::-1].reshape(self._size, _OVERSAMPLING, self._size, _OVERSAMPLING, 3)
        return np.round(parts.mean((1, 3), dtype=np.float32)).astype(np.uint8)

    def close(self):
        """Give the OpenGL context back; calling it again does nothing."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def __enter__(self):
        """Hand itself out."""
        return self

    def __exit__(self, *_):
        """Close."""
        self.close()

    def _paint(self, scene):
        """Bring the colors of an episode into the model; the table's texture only where it changed."""
        model = self._model
        parts = (scene.table_color, scene.pattern_color, scene.pattern_waves, scene.pattern_strength)
        key = tuple(np.asarray(part).tobytes() for part in parts)
        model.geom_rgba[model.geom("floor").id, :3] = scene.floor_color
        model.geom_rgba[model.geom("table").id, :3] = scene.table_color
        if key == self._texture:
            return
        texture = model.texture("top")
        colors = _table_colors(int(texture.height[0]), int(texture.width[0]), scene)
        first = int(texture.adr[0])
        model.tex_data[first : first + colors.size] = colors.reshape(-1)
        load_mujoco().mjr_uploadTexture(model, self._context, texture.id)
        self._texture = key

    def _light(self, scene):
        # The first goes with the camera and gives light from everywhere, to which shadows do nothing; the second one casts
        # shadows, as steep as those of the table-top, and the third lights the sides of things.
        slope = scene.shadow_slope
        steep = np.float32([-slope[0], -slope[1], 1.0])
        lights = (None, _AMBIENT, 0), (steep / np.linalg.norm(steep), 0, _SHADOWED), (scene.light, 0, _UNSHADOWED)
        for light, (toward, ambient, diffuse) in zip(self._scene.lights[: len(lights)], lights):
            if toward is not None:
                light.dir[:], light.pos[:] = -toward, _MIDDLE + 2 * toward
            light.ambient[:], light.diffuse[:] = (part * scene.light_color for part in (ambient, diffuse))
            light.specular[:] = _SPECULAR * light.diffuse

    def _add_distractors(self, scene):
        mujoco = load_mujoco()
        kinds = mujoco.mjtGeom
        for number in range(NUM_DISTRACTORS):
            (x, y, yaw, there), size = scene.distractors[number], scene.distractor_sizes[number]
            if not there:
                continue
            box = number < NUM_DISTRACTOR_BOXES
            turn = poses.euler_to_matrix(np.array([0.0, 0.0, yaw]))
            geom = self._scene.geoms[self._scene.ngeom]
            mujoco.mjv_initGeom(
                geom, kinds.mjGEOM_BOX if box else kinds.mjGEOM_CYLINDER, np.float64(size if box else [size[0], size[0], size[2]]),
                np.float64([x, y, size[2]]), turn.reshape(-1), np.float32([*scene.distractor_colors[number], 1]),
            )  # fmt: skip
            self._scene.ngeom += 1

    def _look_from(self, camera):
        axes = poses.euler_to_matrix(np.float64(camera[3:]))
        half = _NEAR * np.tan(np.radians(cameras.FIELD_OF_VIEW) / 2)
        # Two cameras are the two eyes of a stereo picture; the mean of both is used.
        for eye in self._scene.camera:
            eye.pos[:], eye.forward[:], eye.up[:] = camera[:3], axes[:, 2], -axes[:, 1]
            eye.frustum_bottom, eye.frustum_top, eye.frustum_center, eye.frustum_width = -half, half, 0.0, half
            eye.frustum_near, eye.frustum_far = _NEAR, _FAR


def _table_colors(height, width, scene):
    """Return the colors of a table, as the table-top has them: uint8 `[height, width, 3]`, rows along y."""
    low, high = bodies.TABLE_LOW, bodies.TABLE_HIGH
    x = low[0] + (np.arange(width, dtype=np.float32) + 0.5) / width * (high[0] - low[0])
    y = low[1] + (np.arange(height, dtype=np.float32) + 0.5) / height * (high[1] - low[1])
    share = table_pattern((*np.meshgrid(x, y), None), scene, np)[..., None]
    return np.round(255 * (scene.table_color + share * (scene.pattern_color - scene.table_color))).astype(np.uint8)
