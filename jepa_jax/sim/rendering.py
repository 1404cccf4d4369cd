"""Pictures of the table-top, by casting rays.

Bodies are met one after the other in a loop whose only result is one number per ray: XLA would
otherwise compute each body again for everything that depends on it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.sim import bodies, cameras, shadows, shapes
from jepa_jax.sim.drawing import (
    COLORS,
    FIRST_DISTRACTOR,
    FIRST_OBJECT,
    FLOOR,
    TABLE,
    all_bodies,
)
from jepa_jax.sim.fragments import MAX_DEPTH, pack, unpack
from jepa_jax.sim.nuisance import NUM_DISTRACTORS

# Places within a pixel that are averaged, x and y in pixels: no two in one row or column.
_SAMPLES = np.float32([[-0.125, -0.375], [0.375, -0.125], [0.125, 0.375], [-0.375, 0.125]])
# Part of the light that comes from everywhere.
_AMBIENT = 0.5


def render(state, scene, camera="front", size=64):
    """Draw what a camera sees.

    Args:
        state: `world.State`.
        scene: `nuisance.Scene`.
        camera: one of `cameras.CAMERAS`.
        size: side of a square picture, or (height, width), pixels.

    Returns:
        uint8 `[H, W, 3]`, RGB.

    Raises:
        ValueError: there is no such camera, or the size is not at least 1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"pictures of {height} x {width} pixels cannot be drawn; give at least 1 x 1")
    place = cameras.extrinsics(camera, state.pose, scene.camera)
    rays = cameras.pixel_rays(place, height, width, _SAMPLES)
    found = all_bodies(state, scene)
    front = _ground(rays, scene)
    for meet, several in ((shapes.meet_box, found.boxes), (shapes.meet_can, found.cans), (shapes.meet_rod, found.rods)):
        front = _nearest(front, meet, several, rays, scene.light)
    depth, facing, material = unpack(front)
    places = tuple(rays.origin[i] + depth * rays.direction[i] for i in range(3))
    # The palm's shadow on the fingers would hide them.
    shade = jnp.where(material < FIRST_OBJECT, 1.0, shadows.shade(places, shadows.casters(state, scene)))
    light = (_AMBIENT + (1 - _AMBIENT) * facing) * shade
    color = _color(material, places, scene)
    color = jnp.stack([jnp.clip(channel * light, 0.0, 1.0).mean(0) for channel in color], -1)
    return jnp.round(255 * color).astype(jnp.uint8)


def render_batch(states, scenes, camera="front", size=64):
    """Draw several pictures one after the other, which on a CPU is faster than `vmap`: a picture fits its cache.

    Args:
        states, scenes: as in `render`, with a leading axis B.
        camera, size: as in `render`.

    Returns:
        uint8 `[B, H, W, 3]`.
    """
    return jax.lax.map(lambda pair: render(*pair, camera, size), (states, scenes))


def _nearest(front, meet, several, rays, light):
    """Put bodies of one shape before what is behind them."""

    def add(front, body):
        return jnp.minimum(front, pack(*meet(rays, body, light))), None

    return jax.lax.scan(add, front, several)[0]


def _ground(rays, scene):
    """Meet the table and the floor around it, which are one plane."""
    depth = -rays.origin[2] / rays.direction[2]
    depth = jnp.where(depth > 0, depth, MAX_DEPTH)
    x, y = (rays.origin[i] + depth * rays.direction[i] for i in range(2))
    (low_x, low_y), (high_x, high_y) = bodies.TABLE_LOW, bodies.TABLE_HIGH
    on_table = (x > low_x) & (x < high_x) & (y > low_y) & (y < high_y)
    return pack(depth, scene.light[2], jnp.where(on_table, TABLE, FLOOR))


def _color(material, places, scene):
    """Return the color of each place in full light: three arrays."""
    pattern = table_pattern(places, scene)
    own = {number: color for number, color in enumerate(COLORS.values())} | {FLOOR: scene.floor_color}
    own |= {FIRST_DISTRACTOR + i: scene.distractor_colors[i] for i in range(NUM_DISTRACTORS)}
    for i in range(3):
        color = scene.table_color[i] + pattern * (scene.pattern_color[i] - scene.table_color[i])
        for number, other in own.items():
            color = jnp.where(material == number, other[i], color)
        yield color * scene.light_color[i]


def table_pattern(places, scene, xp=jnp):
    """Return how much of the pattern's color the table has at places, in [0, 1]."""
    x, y, _ = places
    waves = []
    for i in range(2):
        cycles = scene.pattern_waves[i, 0] * x + scene.pattern_waves[i, 1] * y + scene.pattern_waves[i, 2]
        # Smoothed triangles: as good as sines here, and cheaper.
        triangle = 2 * xp.abs(cycles - xp.floor(cycles) - 0.5)
        waves.append(triangle * triangle * (3 - 2 * triangle))
    return scene.pattern_strength * waves[0] * (1 - 0.5 * waves[1])
