"""Soft shadows: the outline of every body, thrown down onto whatever is below it.

A shadow stays strong at every height, because where it lies says where the gripper is above the table.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.sim import bodies
from jepa_jax.sim.nuisance import NUM_DISTRACTORS

# Part of the light that a shadow takes.
_STRENGTH = 0.6
# Width of a shadow's edge: m, and m per m of height.
_EDGE, _EDGE_GROWTH = 0.012, 0.05
# A body casts its full shadow on what lies this far below it, m.
_CONTACT = 0.02
_FINGER_X, _FINGER_Y, _ = (float(half) for half in bodies.FINGER_HALF)
_PALM_X, _PALM_Y, _PALM_Z = (float(half) for half in bodies.PALM_HALF)


class Casters(NamedTuple):
    """Hold the outlines of bodies: rectangles with rounded corners; float32.

    Args:
        places: `[n, 3]`, m; the height is that of the lower side.
        yaws: `[n]`, rad.
        halves: `[n, 2]`, half the sides without the corners, m.
        radii: `[n]`, of the corners, m.
        strengths: `[n]`, 1 where there is a body, else 0.
        slope: `[2]`, how far shadows move along x and y per m of height.
    """

    places: jax.Array
    yaws: jax.Array
    halves: jax.Array
    radii: jax.Array
    strengths: jax.Array
    slope: jax.Array


def casters(state, scene):
    """Find the outlines of palm, fingers, objects and distractors.

    Args:
        state: `world.State`.
        scene: `nuisance.Scene`.

    Returns:
        `Casters`.
    """
    yaw = state.pose[5]
    spread = bodies.FINGER_STROKE * (1 - state.pose[6]) + _FINGER_Y
    sideways = jnp.stack([-jnp.sin(yaw), jnp.cos(yaw), 0.0 * yaw]) * spread
    tip = state.pose[:3] - np.float32([0, 0, bodies.FINGER_BELOW])
    palm = state.pose[:3] + np.float32([0, 0, bodies.PALM_HEIGHT - _PALM_Z])
    # Objects from their middle down, so that a standing one darkens the table around it.
    things = jnp.concatenate([scene.distractors[:, :2], scene.distractor_sizes[:, 2:]], 1)
    halves = np.float32([[_PALM_X, _PALM_Y], [_FINGER_X, _FINGER_Y], [_FINGER_X, _FINGER_Y], [bodies.BOX_HALF] * 2, [0, 0]])
    radii = np.float32([0, 0, 0, 0, bodies.CUP_RADIUS] + [0] * NUM_DISTRACTORS)
    return Casters(
        jnp.concatenate([jnp.stack([palm, tip - sideways, tip + sideways]), state.objects[:, :3], things]),
        jnp.concatenate([jnp.stack([yaw] * 3), state.objects[:, 5], scene.distractors[:, 2]]),
        jnp.concatenate([halves, scene.distractor_sizes[:, :2]]),
        jnp.asarray(radii),
        jnp.concatenate([jnp.ones(3 + bodies.NUM_OBJECTS), scene.distractors[:, 3]]),
        scene.shadow_slope,
    )


def shade(places, found):
    """Return how much light reaches places.

    Args:
        places: three float32 arrays `[...]`, x y z, m.
        found: `Casters`.

    Returns:
        float32 `[...]`, 1 in full light.
    """
    shadows = Casters(*found[:-1], jnp.broadcast_to(found.slope, (*found.yaws.shape, 2)))

    def darken(light, caster):
        return light * (1 - _STRENGTH * caster.strengths * _cover(places, caster)), None

    return jax.lax.scan(darken, jnp.ones_like(places[0]), shadows)[0]


def _cover(places, caster):
    """Return how much of a place's light one body covers, in [0, 1]."""
    above = caster.places[2] - places[2]
    x = places[0] - caster.places[0] - caster.slope[0] * above
    y = places[1] - caster.places[1] - caster.slope[1] * above
    cos, sin = jnp.cos(caster.yaws), jnp.sin(caster.yaws)
    along = jnp.abs(cos * x + sin * y) - caster.halves[0]
    across = jnp.abs(cos * y - sin * x) - caster.halves[1]
    corner = jnp.sqrt(jnp.maximum(along, 0.0) ** 2 + jnp.maximum(across, 0.0) ** 2)
    distance = corner + jnp.minimum(jnp.maximum(along, across), 0.0) - caster.radii
    edge = _EDGE + _EDGE_GROWTH * jnp.maximum(above, 0.0)
    cover = jnp.clip(0.5 - distance / (2 * edge), 0.0, 1.0)
    return cover * jnp.clip(above / _CONTACT, 0.0, 1.0)
