"""What features must learn to ignore: the table's look, the light, things lying about, a camera not quite in place.

All of it is drawn once per episode. At strength 0 a scene is CLEAN_SCENE; strengths between 0 and 1
lead there on a straight line, except that distractors appear one by one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NUM_DISTRACTORS = 4
# The last of them is a can, the others are boxes.
NUM_DISTRACTOR_BOXES = 3
_TABLE_COLOR, _FLOOR_COLOR = np.float32([0.80, 0.69, 0.53]), np.float32([0.42, 0.45, 0.50])
# Direction to the light, and how much light comes from everywhere else.
_LIGHT_DIRECTION = np.float32([0.35, 0.25, 0.9])
_AMBIENT = 0.45
_DARK, _BRIGHT = 0.12, 0.95
# Pattern of the table, cycles per meter.
_MIN_CYCLES, _MAX_CYCLES = 3.0, 12.0
# Degrees from the vertical; a shadow is cast by a steeper light, so that it stays near the gripper.
_MAX_LIGHT_TILT = 55.0
_MAX_SHADOW_SLOPE = 0.22
_LIGHT_STRENGTHS, _LIGHT_TINTS = (0.55, 1.2), (0.82, 1.12)
# Of a camera at full strength: m and rad.
_CAMERA_SHIFT, _CAMERA_TURN = 0.03, 0.03
# Distractors stand around what the gripper reaches and never in it: m.
_RING_LOW, _RING_HIGH = np.float32([0.12, -0.52]), np.float32([0.72, 0.52])
_RING_WIDTH = 0.13
_SIZES_LOW, _SIZES_HIGH = np.float32([0.02, 0.02, 0.02]), np.float32([0.05, 0.06, 0.06])


class Nuisance(NamedTuple):
    """Say how strong each kind of nuisance is, from 0 (none) to 1.

    Args:
        table: color and pattern of the table, color of the floor.
        light: direction, strength and color of the light.
        distractors: boxes and a can beside the workspace.
        camera: shift and turn of the camera.
    """

    table: float = 0.0
    light: float = 0.0
    distractors: float = 0.0
    camera: float = 0.0

    @classmethod
    def all(cls, strength):
        """Set every kind to one strength.

        Raises:
            ValueError: the strength is not within 0 and 1.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength of nuisance is {strength}; it must be from 0 to 1")
        return cls(*[float(strength)] * len(cls._fields))


class Scene(NamedTuple):
    """Hold the look of an episode; all float32, colors are RGB in [0, 1].

    Args:
        table_color, floor_color: `[3]`.
        pattern_color: `[3]`, of the table's pattern.
        pattern_waves: `[2, 3]`, cycles per m along x and y, and phase in cycles, of its two waves.
        pattern_strength: from 0, a plain table, to 1.
        light: `[3]`, direction to the light, of length 1.
        light_color: `[3]`, 1 for clean light.
        shadow_slope: `[2]`, how far shadows move along x and y per m of height.
        distractors: `[n, 4]`, x y (m), yaw (rad) and 1 where there is one, else 0.
        distractor_sizes: `[n, 3]`, half the sizes, m; zeros where there is none.
        distractor_colors: `[n, 3]`.
        camera: `[6]`, what is added to the extrinsics, m and rad.
    """

    table_color: jax.Array
    floor_color: jax.Array
    pattern_color: jax.Array
    pattern_waves: jax.Array
    pattern_strength: jax.Array
    light: jax.Array
    light_color: jax.Array
    shadow_slope: jax.Array
    distractors: jax.Array
    distractor_sizes: jax.Array
    distractor_colors: jax.Array
    camera: jax.Array


def clean_scene():
    """Return the `Scene` without any nuisance."""
    return sample_scene(jax.random.key(0), Nuisance())


def sample_scene(key, nuisance):
    """Draw the look of an episode.

    Args:
        key: PRNG key; one key gives scenes that differ only in strength.
        nuisance: `Nuisance`, numbers or float32 arrays.

    Returns:
        `Scene`.
    """
    table_key, light_key, thing_key, camera_key = jax.random.split(key, 4)
    table, floor, pattern, waves, strength = _sample_table(table_key)
    light, light_color, slope = _sample_light(light_key)
    things, sizes, colors = _sample_distractors(thing_key, nuisance.distractors)
    limits = np.float32([_CAMERA_SHIFT] * 3 + [_CAMERA_TURN] * 3)
    shift = jax.random.uniform(camera_key, (6,), minval=-limits, maxval=limits)
    direction = _mix(_LIGHT_DIRECTION / np.linalg.norm(_LIGHT_DIRECTION), light, nuisance.light)
    return Scene(
        table_color=_mix(_TABLE_COLOR, table, nuisance.table),
        floor_color=_mix(_FLOOR_COLOR, floor, nuisance.table),
        pattern_color=pattern,
        pattern_waves=waves,
        pattern_strength=strength * nuisance.table,
        light=direction / jnp.linalg.norm(direction),
        light_color=_mix(1.0, light_color, nuisance.light),
        shadow_slope=slope * nuisance.light,
        distractors=things,
        distractor_sizes=sizes,
        distractor_colors=colors,
        camera=shift * nuisance.camera,
    )


def _mix(clean, drawn, strength):
    return clean + strength * (drawn - clean)


def _color(key, shape=()):
    return jax.random.uniform(key, (*shape, 3), minval=_DARK, maxval=_BRIGHT)


def _sample_table(key):
    keys = jax.random.split(key, 6)
    turn = jax.random.uniform(keys[3], (2, 1), maxval=2 * np.pi)
    cycles = jax.random.uniform(keys[4], (2, 1), minval=_MIN_CYCLES, maxval=_MAX_CYCLES)
    phase = jax.random.uniform(keys[5], (2, 1))
    waves = jnp.concatenate([cycles * jnp.cos(turn), cycles * jnp.sin(turn), phase], 1)
    strength = jax.random.uniform(jax.random.fold_in(key, 0), (), minval=0.3, maxval=0.9)
    return _color(keys[0]), _color(keys[1]), _color(keys[2]), waves, strength


def _sample_light(key):
    turn_key, tilt_key, strength_key, tint_key, slope_key = jax.random.split(key, 5)
    turn = jax.random.uniform(turn_key, maxval=2 * np.pi)
    tilt = jax.random.uniform(tilt_key, maxval=np.radians(_MAX_LIGHT_TILT))
    around = jnp.stack([jnp.cos(turn), jnp.sin(turn)])
    light = jnp.concatenate([jnp.sin(tilt) * around, jnp.cos(tilt)[None]])
    strength = jax.random.uniform(strength_key, minval=_LIGHT_STRENGTHS[0], maxval=_LIGHT_STRENGTHS[1])
    tint = jax.random.uniform(tint_key, (3,), minval=_LIGHT_TINTS[0], maxval=_LIGHT_TINTS[1])
    slope = -around * jax.random.uniform(slope_key, maxval=_MAX_SHADOW_SLOPE)
    return light, strength * tint, slope


def _sample_distractors(key, strength):
    """Draw things on three sides of the workspace, the far one and both flanks."""
    keys = jax.random.split(key, 6)
    count = (NUM_DISTRACTORS,)
    # A walk along the three sides, from one near corner to the other.
    depth, width = _RING_HIGH - _RING_LOW
    walk = jax.random.uniform(keys[0], count, maxval=2 * depth + width)
    x = _RING_HIGH[0] - jnp.minimum(walk, depth) + jnp.maximum(walk - depth - width, 0.0)
    y = _RING_LOW[1] + jnp.clip(walk - depth, 0.0, width)
    inward = jax.random.uniform(keys[1], count, maxval=_RING_WIDTH)
    y = jnp.where(jnp.abs(y) < _RING_HIGH[1], y, y - jnp.sign(y) * inward)
    yaw = jax.random.uniform(keys[2], count, maxval=np.pi)
    there = (jax.random.uniform(keys[3], count) < strength).astype(jnp.float32)
    sizes = jax.random.uniform(keys[4], (*count, 3), minval=_SIZES_LOW, maxval=_SIZES_HIGH) * there[:, None]
    return jnp.stack([x, y, yaw, there], 1), sizes, _color(keys[5], count)
