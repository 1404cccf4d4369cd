"""What touches what: fingers and a held object stop on tops and push sides; objects fall and keep apart.

Bodies are upright discs with a bottom and a top, which is enough for a parallel gripper over a table.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa_jax.data import poses
from jepa_jax.sim import bodies

# Bodies that overlap by less than this are side by side, m.
_SLACK = 0.012
# An object whose middle is this near to another's stands on it, m.
_STACKING = 0.045
_TINY = 1e-6


class Pushers(NamedTuple):
    """Hold the discs that move by command: two fingers and what they hold.

    Args:
        places: float32 `[3, 2]`, x y, m.
        radii: float32 `[3]`, m; below every reach where there is no such disc.
        bottoms: float32 `[3]`, m.
        tops: float32 `[3]`, m.
    """

    places: jax.Array
    radii: jax.Array
    bottoms: jax.Array
    tops: jax.Array


def pushers(pose, held, body):
    """Find the discs of a gripper.

    Args:
        pose: float32 `[7]`, of the tool.
        held: int32, number of the held object, below 0 for none.
        body: float32 `[6]`, center and angles of that object.

    Returns:
        `Pushers`.
    """
    turn = poses.euler_to_matrix(pose[3:6], jnp)
    half_x, half_y, half_z = (float(half) for half in bodies.FINGER_HALF)
    spread = bodies.FINGER_STROKE * (1 - pose[6]) + half_y
    tips = jnp.array([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]) * spread + jnp.array([0.0, 0.0, -bodies.FINGER_BELOW])
    tips = pose[:3] + poses.product(tips, turn.T)
    # A tilted finger ends in a corner.
    lowest = tips[:, 2] - jnp.abs(turn[2, 0]) * half_x - jnp.abs(turn[2, 1]) * half_y
    half = jnp.asarray(bodies.OBJECT_HALF_HEIGHTS)[held]
    return Pushers(
        jnp.concatenate([tips[:, :2], body[None, :2]]),
        jnp.array([half_y, half_y, 0.0]).at[2].set(jnp.where(held < 0, -1.0, jnp.asarray(bodies.OBJECT_RADII)[held])),
        jnp.concatenate([lowest, (body[2] - _reach(body[3:], held, half))[None]]),
        jnp.concatenate([tips[:, 2] + 2 * half_z, (body[2] + half)[None]]),
    )


def _reach(angles, number, half):
    """Measure how far a tilted object reaches below its center, m."""
    turn = poses.euler_to_matrix(angles, jnp)
    return jnp.hypot(turn[2, 0], turn[2, 1]) * jnp.asarray(bodies.OBJECT_RADII)[number] + turn[2, 2] * half


def needed_lift(before, after, objects, held, plate):
    """Measure how far a gripper must be raised so that it is in nothing from above.

    Args:
        before, after: `Pushers` at the start of a step, and where the command leads.
        objects: float32 `[2, 6]`.
        held: int32, number of the held object.
        plate: float32 `[2]`, x y, m.

    Returns:
        float32, m, at least 0.
    """
    exists = after.radii > 0
    needs = jnp.where(exists, ground_height(after.places, plate) - after.bottoms, 0.0)
    tops = objects[:, 2] + bodies.OBJECT_HALF_HEIGHTS
    gap = _gaps(after, objects)
    was_above = before.bottoms[:, None] >= tops - _SLACK
    on_top = exists[:, None] & was_above & (gap < 0) & (jnp.arange(bodies.NUM_OBJECTS) != held)
    blocks = jnp.where(on_top, tops - after.bottoms[:, None], 0.0)
    return jnp.maximum(0.0, jnp.maximum(needs.max(), blocks.max()))


def ground_height(places, plate):
    """Return the height of what lies under places `[..., 2]`: the table or the plate, m."""
    return jnp.where(_norm(places - plate) < bodies.PLATE_RADIUS, bodies.PLATE_HEIGHT, 0.0)


def push(objects, held, discs):
    """Push free objects out of fingers and of the held object, sideways.

    Args:
        objects: float32 `[2, 6]`.
        held: int32, number of the held object.
        discs: `Pushers`.

    Returns:
        float32 `[2, 6]`.
    """
    free = jnp.arange(bodies.NUM_OBJECTS) != held
    for parts in zip(*discs):
        disc = Pushers(*[part[None] for part in parts])
        side_by_side = (disc.bottoms < objects[:, 2] + bodies.OBJECT_HALF_HEIGHTS - _SLACK) & (
            disc.tops > objects[:, 2] - bodies.OBJECT_HALF_HEIGHTS + _SLACK
        )
        depth = jnp.maximum(0.0, -_gaps(disc, objects)[0])
        moves = free & side_by_side & (disc.radii[0] > 0)
        away = _direction(objects[:, :2] - disc.places)
        objects = objects.at[:, :2].add(jnp.where(moves[:, None], away * depth[:, None], 0.0))
    return objects.at[:, :2].set(
        jnp.where(free[:, None], jnp.clip(objects[:, :2], bodies.OBJECTS_LOW, bodies.OBJECTS_HIGH), objects[:, :2])
    )


def settle(before, objects, held, plate):
    """Let free objects stand upright on the table, the plate or each other, side by side.

    Args:
        before: float32 `[2, 6]`, objects at the start of the step; what was above another falls onto it.
        objects: float32 `[2, 6]`, after pushes.
        held: int32, number of the held object.
        plate: float32 `[2]`, x y, m.

    Returns:
        float32 `[2, 6]`.
    """
    half = jnp.asarray(bodies.OBJECT_HALF_HEIGHTS)
    free = jnp.arange(bodies.NUM_OBJECTS) != held
    ground = jnp.where(free, ground_height(objects[:, :2], plate) + half, objects[:, 2])
    # Of two objects, the other one is the one before or after.
    bottoms, tops = before[:, 2] - half, (before[:, 2] + half)[::-1]
    near = _norm(objects[0, :2] - objects[1, :2]) < _STACKING
    stacked = free & near & (bottoms >= tops - _SLACK)
    heights = jnp.where(stacked, (ground + half)[::-1] + half, ground)
    upright = jnp.where(free[:, None], jnp.array([0.0, 0.0, 1.0]), 1.0) * objects[:, 3:]
    objects = jnp.concatenate([objects[:, :2], heights[:, None], upright], 1)
    return _separate(objects, free & ~stacked.any())


def _separate(objects, moves):
    """Move objects apart that would stand in each other."""
    overlap = bodies.OBJECT_RADII.sum() - _norm(objects[0, :2] - objects[1, :2])
    meet = jnp.abs(objects[0, 2] - objects[1, 2]) < bodies.OBJECT_HALF_HEIGHTS.sum() - _SLACK
    apart = _direction(objects[0, :2] - objects[1, :2]) * jnp.maximum(0.0, overlap)
    share = moves / jnp.maximum(1, moves.sum()) * meet
    return objects.at[:, :2].add(share[:, None] * jnp.stack([apart, -apart]))


def _gaps(discs, objects):
    """Return the distances `[n, 2]` between discs and objects, below 0 where they overlap, m."""
    between = _norm(discs.places[:, None] - objects[None, :, :2])
    return between - discs.radii[:, None] - bodies.OBJECT_RADII


def _norm(vectors):
    return jnp.sqrt((vectors**2).sum(-1) + _TINY**2)


def _direction(vectors):
    # Exactly above each other, any direction will do, but there must be one.
    vectors = vectors + jnp.array([_TINY, 0.0])
    return vectors / _norm(vectors)[..., None]
