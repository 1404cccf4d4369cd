"""Where rays meet bodies of three shapes, in closed form, and how much each place faces the light."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa_jax.sim.cameras import in_frame

# Depth of what is not there, m.
MISSED = 1e3
# Nothing is seen nearer than this, m.
_NEAREST = 0.02


class Box(NamedTuple):
    """Hold a box; float32, or all with a leading axis for several.

    Args:
        place: `[3]`, of its frame, m.
        turn: `[3, 3]`, axes of its frame, as columns.
        center: `[3]`, in its frame, m.
        half: `[3]`, half the sides, m; zeros for no box.
        material: int32.
    """

    place: jax.Array
    turn: jax.Array
    center: jax.Array
    half: jax.Array
    material: jax.Array


class Can(NamedTuple):
    """Hold an upright cylinder, which may be hollow.

    Args:
        place: `[3]`, its center, m.
        turn: `[3, 3]`, axes of its frame, as columns; it stands along the third.
        radius: m; 0 for no cylinder.
        half: half the height, m.
        hole: radius of the hollow, m; 0 for none.
        material: int32; the hollow has the next one.
    """

    place: jax.Array
    turn: jax.Array
    radius: jax.Array
    half: jax.Array
    hole: jax.Array
    material: jax.Array


class Rod(NamedTuple):
    """Hold a rod with round ends: start and end of its axis `[3]`, radius (m) and material."""

    start: jax.Array
    end: jax.Array
    radius: jax.Array
    material: jax.Array


def meet_box(rays, box, light):
    """Meet a box.

    Args:
        rays: `Rays` `[...]` in the base frame.
        box: `Box`.
        light: float32 `[3]`, direction to the light.

    Returns:
        depth `[...]` (m, MISSED where rays miss), cosine between the surface and the light, material.
    """
    local, light = in_frame(rays, box.place, box.turn), light @ box.turn
    offset = [local.origin[i] - box.center[i] for i in range(3)]
    inverse = [1 / local.direction[i] for i in range(3)]
    middle = [-offset[i] * inverse[i] for i in range(3)]
    width = [box.half[i] * jnp.abs(inverse[i]) for i in range(3)]
    enters = [middle[i] - width[i] for i in range(3)]
    enter = jnp.maximum(jnp.maximum(enters[0], enters[1]), enters[2])
    leave = jnp.minimum(jnp.minimum(middle[0] + width[0], middle[1] + width[1]), middle[2] + width[2])
    depth = jnp.where((enter < leave) & (enter > _NEAREST), enter, MISSED)
    toward = [jnp.where(local.direction[i] > 0, -light[i], light[i]) for i in range(3)]
    facing = jnp.where(enters[0] >= enter, toward[0], jnp.where(enters[1] >= enter, toward[1], toward[2]))
    return depth, facing, box.material


def meet_can(rays, can, light):
    """Meet an upright cylinder; as `meet_box`.

    In its hollow, what is deeper is darker.
    """
    ((ox, oy, oz), (dx, dy, dz)), light = in_frame(rays, can.place, can.turn), light @ can.turn
    a, b, square = dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy
    inner = b * b - a * (square - can.radius * can.radius)
    side = (-b - jnp.sqrt(jnp.maximum(inner, 0.0))) / a
    on_side = (inner > 0) & (side > _NEAREST) & (jnp.abs(oz + side * dz) < can.half)
    lid = (can.half - oz) / dz
    x, y = ox + lid * dx, oy + lid * dy
    out = x * x + y * y
    on_lid = (lid > _NEAREST) & (out < can.radius * can.radius) & (dz < 0)
    inside = on_lid & (out < can.hole * can.hole)
    wall = (-b + jnp.sqrt(jnp.maximum(b * b - a * (square - can.hole * can.hole), 0.0))) / a
    height = jnp.maximum(oz + wall * dz + can.half, 0.0) / (2 * can.half + _NEAREST)
    outward = ((ox + side * dx) * light[0] + (oy + side * dy) * light[1]) / (can.radius + 1e-6)
    depth = jnp.where(on_lid, lid, jnp.where(on_side, side, MISSED))
    facing = jnp.where(inside, height, jnp.where(on_lid, light[2], outward))
    return depth, facing, can.material + inside.astype(jnp.int32)


def meet_rod(rays, rod, light):
    """Meet a rod with round ends; as `meet_box`."""
    axis = rod.end - rod.start
    offset = [rays.origin[i] - rod.start[i] for i in range(3)]
    direction = rays.direction
    length = _dot(axis, axis)
    along, begin = _dot(axis, direction), _dot(axis, offset)
    square, cross, size = _dot(direction, direction), _dot(direction, offset), _dot(offset, offset)
    a = length * square - along * along
    b = length * cross - begin * along
    inner = b * b - a * (length * size - begin * begin - rod.radius * rod.radius * length)
    straight = (-b - jnp.sqrt(jnp.maximum(inner, 0.0))) / a
    place = begin + straight * along
    on_rod = (inner > 0) & (place > 0) & (place < length)
    # Beyond an end, the ball around that end.
    last = place >= length
    b = cross - jnp.where(last, along, 0.0)
    inner_ball = b * b - square * (size - rod.radius * rod.radius + jnp.where(last, length - 2 * begin, 0.0))
    ball = (-b - jnp.sqrt(jnp.maximum(inner_ball, 0.0))) / square
    depth = jnp.where(on_rod, straight, jnp.where(inner_ball > 0, ball, MISSED))
    depth = jnp.where(depth > _NEAREST, depth, MISSED)
    share = jnp.where(on_rod, place / length, jnp.where(last, 1.0, 0.0))
    normal = [offset[i] + depth * direction[i] - share * axis[i] for i in range(3)]
    return depth, _dot(normal, light) / rod.radius, rod.material


def _dot(one, other):
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]
