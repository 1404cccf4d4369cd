"""Policies that collect data: a scripted expert with noise, and free motion in all dimensions.

An `Intent` says what an episode is up to; a policy is a function of state, intent and key, so that a
whole episode is one `lax.scan` and many are one `vmap`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.data import poses
from jepa_jax.sim import bodies, world

# What the robot is doing, by number: `phase` of a step.
PHASES = ("reach", "grasp", "carry", "place", "free")
REACH, GRASP, CARRY, PLACE, FREE = range(len(PHASES))
# Part of the episodes that move freely instead of handling objects.
FREE_SHARE = 0.25
# Of the others, parts that start at an object and with one in the gripper.
NEAR_SHARE, HOLDING_SHARE = 0.3, 0.2
# The tool's origin over an object's center, before it goes down, and where an object is carried, m.
_HOVER, _CARRY_LOW, _CARRY_HIGH = 0.10, 0.14, 0.28
# Near enough: sideways to go down or to let go, and up or down to grasp or to open, m.
_ABOVE, _THERE, _LOW_ENOUGH = 0.02, 0.02, 0.012
_GRASP_DEPTH = 0.004
_CLOSING, _OPENING, _GRIPPING = 0.35, 0.45, 0.12
# Of the noise that is added to every action, as parts of the largest action; it lasts some steps.
_NOISE, _NOISE_KEPT = np.float32([0.16, 0.16, 0.12, 0.12, 0.12, 0.12, 0.06]), 0.6
# Chances per step that free motion changes its mind, and that the expert does while it holds nothing: something may
# be in the way.
_NEW_GOAL, _NEW_TARGET = 0.12, 0.03
# A goal is reached when no dimension is farther than this part of the largest action.
_ARRIVED = 0.5
_PUT_LOW, _PUT_HIGH = np.float32([0.34, -0.21]), np.float32([0.61, 0.21])
# An object is placed when it is this near, m.
PLACED_WITHIN = 0.045
# Part of the placements that go onto the plate.
_ON_PLATE = 0.5


class Intent(NamedTuple):
    """Hold what an episode is up to.

    Args:
        free: bool, move freely instead of handling objects.
        target: int32, number of the object to handle.
        put: float32 `[2]`, where to place it, x y, m.
        height: float32, of the tool while it carries, m.
        goal: float32 `[7]`, pose that free motion goes to.
        speed: float32, part of the largest action that free motion uses.
        noise: float32 `[7]`, part of the largest action that was added last.
    """

    free: jax.Array
    target: jax.Array
    put: jax.Array
    height: jax.Array
    goal: jax.Array
    speed: jax.Array
    noise: jax.Array


def start(key):
    """Draw the start of an episode of the mixture: far from, near to or holding an object, or moving freely.

    Args:
        key: PRNG key.

    Returns:
        `world.State` and `Intent`.
    """
    state_key, intent_key, kind_key, pose_key = jax.random.split(key, 4)
    state = world.reset(state_key)
    intent = new_intent(intent_key, state)._replace(free=jax.random.uniform(jax.random.fold_in(key, 0)) < FREE_SHARE)
    kind = jax.random.uniform(kind_key)
    near, holds = kind < NEAR_SHARE, (kind >= NEAR_SHARE) & (kind < NEAR_SHARE + HOLDING_SHARE)
    spread = np.float32([0.05, 0.05, 0.04, 0.05, 0.05, 0.3, 0.0])
    above = state.objects[intent.target, :3] + np.float32([0, 0, _HOVER])
    beside = jnp.concatenate([above, jnp.zeros(4)]) + spread * jax.random.normal(pose_key, (7,))
    beside = jnp.clip(beside, world.LOW, world.HIGH).at[2].max(above[2] - 0.01)
    state = state._replace(pose=jnp.where(near, beside, state.pose))
    held = world.holding(state._replace(pose=state.pose.at[2].set(intent.height)), intent.target)
    return jax.tree.map(lambda yes, no: jnp.where(holds, yes, no), held, state), intent


def new_intent(key, state):
    """Draw what to do next.

    Args:
        key: PRNG key.
        state: `world.State`.

    Returns:
        `Intent` that handles an object.
    """
    keys = jax.random.split(key, 6)
    target = jax.random.randint(keys[0], (), 0, bodies.NUM_OBJECTS)
    anywhere = jax.random.uniform(keys[1], (2,), minval=_PUT_LOW, maxval=_PUT_HIGH)
    other = state.objects[1 - target, :2]
    # Not onto the other object: then on the other half of the table.
    crowded = jnp.linalg.norm(anywhere - other) < 2 * bodies.PLATE_RADIUS / 1.5
    anywhere = jnp.where(crowded, jnp.stack([anywhere[0], -jnp.sign(other[1]) * jnp.abs(anywhere[1])]), anywhere)
    free_plate = jnp.linalg.norm(state.plate - other) > bodies.PLATE_RADIUS
    put = jnp.where((jax.random.uniform(keys[2]) < _ON_PLATE) & free_plate, state.plate, anywhere)
    return Intent(
        free=jnp.bool_(False),
        target=target.astype(jnp.int32),
        put=put,
        height=jax.random.uniform(keys[3], minval=_CARRY_LOW, maxval=_CARRY_HIGH),
        goal=jax.random.uniform(keys[4], (7,), minval=world.LOW, maxval=world.HIGH),
        speed=jax.random.uniform(keys[5], minval=0.3, maxval=1.0),
        noise=jnp.zeros(7),
    )


def expert(state, intent):
    """Handle the intent's object: go above it, down, grasp, lift, carry, lower, open; then rise and stay.

    Args:
        state: `world.State`.
        intent: `Intent`.

    Returns:
        Action float32 `[7]` without noise, and the phase, int32.
    """
    body, pose = state.objects[intent.target], state.pose
    holds = state.held == intent.target
    to_object, to_put = (jnp.linalg.norm(place - pose[:2]) for place in (body[:2], intent.put))
    grasp_height = body[2] + _GRASP_DEPTH
    above = to_object < _ABOVE
    at_object = above & (pose[2] < grasp_height + _LOW_ENOUGH)
    # Of the tool, when what it holds stands on the ground below.
    put_height = jnp.asarray(bodies.OBJECT_HALF_HEIGHTS)[intent.target] + bodies.PLATE_HEIGHT - state.grip[2]
    over_put = to_put < _THERE
    lifted = over_put | (pose[2] > intent.height - 0.05) | (to_put < 0.06)
    phase = jnp.where(holds, jnp.where(over_put, PLACE, CARRY), jnp.where(above, GRASP, REACH))
    done = is_placed(state, intent)
    phase = jnp.where(done, PLACE, phase)
    symmetry = jnp.asarray(bodies.OBJECT_SYMMETRIES)[intent.target]
    yaw = jnp.where(holds, pose[5], body[5] - jnp.round(body[5] / symmetry) * symmetry)
    heights = jnp.stack([jnp.maximum(body[2] + _HOVER, pose[2] - 0.03), grasp_height, intent.height, put_height])
    places = jnp.stack([body[:2], body[:2], jnp.where(lifted, intent.put, pose[:2]), intent.put])
    place, height = jnp.where(done, pose[:2], places[phase]), jnp.where(done, intent.height, heights[phase])
    goal = jnp.concatenate([place, height[None], jnp.zeros(2), jnp.where(done, pose[5], yaw)[None], pose[6:]])
    opens = holds & over_put & (pose[2] < put_height + _LOW_ENOUGH)
    grip = jnp.where(holds, jnp.where(opens, -_OPENING, _GRIPPING), jnp.where(at_object & ~done, _CLOSING, -_OPENING))
    return toward(pose, goal).at[6].set(grip), phase.astype(jnp.int32)


def is_placed(state, intent):
    """Tell whether the intent's object stands where it is wanted and nothing holds it; a bool."""
    body = state.objects[intent.target]
    near = jnp.linalg.norm(body[:2] - intent.put) < PLACED_WITHIN
    standing = body[2] < jnp.asarray(bodies.OBJECT_HALF_HEIGHTS)[intent.target] + 2 * bodies.PLATE_HEIGHT
    return near & standing & (state.held != intent.target)


def follow(key, state, intent):
    """Act once, with noise: the policy that data is collected with.

    Args:
        key: PRNG key.
        state: `world.State`.
        intent: `Intent`.

    Returns:
        Action float32 `[7]`, phase int32, and the next step's `Intent`.
    """
    noise_key, new_key, goal_key = jax.random.split(key, 3)
    handling, phase = expert(state, intent)
    wandering = toward(state.pose, intent.goal) * intent.speed
    kept = np.sqrt(1 - _NOISE_KEPT**2)
    noise = _NOISE_KEPT * intent.noise + kept * _NOISE * jax.random.normal(noise_key, (7,))
    action = jnp.where(intent.free, wandering, handling) + noise * world.MAX_ACTION
    action = jnp.clip(action, -world.MAX_ACTION, world.MAX_ACTION)
    arrived = (jnp.abs(toward(state.pose, intent.goal)) < _ARRIVED * world.MAX_ACTION).all()
    finished = is_placed(state, intent) & (state.pose[2] > intent.height - 0.06)
    chance = jax.random.uniform(goal_key)
    gives_up = (state.held == world.NOTHING) & (chance < _NEW_TARGET)
    changes = jnp.where(intent.free, arrived | (chance < _NEW_GOAL), finished | gives_up)
    drawn = new_intent(new_key, state)._replace(free=intent.free)
    following = jax.tree.map(lambda new, old: jnp.where(changes, new, old), drawn, intent)
    return action, jnp.where(intent.free, FREE, phase), following._replace(noise=noise)


def toward(pose, goal):
    """Return the action toward a goal pose, at most the largest."""
    action = poses.pose_deltas(jnp.stack([pose, goal]), jnp)[0]
    return jnp.clip(action, -world.MAX_ACTION, world.MAX_ACTION)


class Episode(NamedTuple):
    """Hold an episode's steps, each with a leading axis T.

    Args:
        states: `world.State`; the action and the phase of row t belong to state t.
        actions: float32 `[T, 7]`.
        phases: int32 `[T]`.
    """

    states: world.State
    actions: jax.Array
    phases: jax.Array


def run_episode(key, steps):
    """Run the mixture of policies for one episode.

    Args:
        key: PRNG key.
        steps: how many.

    Returns:
        `Episode`.
    """
    start_key, step_key = jax.random.split(key)

    def one(carry, key):
        state, intent = carry
        action, phase, intent = follow(key, state, intent)
        return (world.step(state, action), intent), Episode(state, action, phase)

    return jax.lax.scan(one, start(start_key), jax.random.split(step_key, steps))[1]
