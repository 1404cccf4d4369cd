"""Tasks in the table-top: where an episode starts, what it shall look like at its end, and whether it got there.

A `Trial` is one draw of a task: a start, a scene, and the states whose pictures are the goals. These are states
that the scripted expert went through in the same scene, so every goal can be reached. All of it is pure
functions for one robot: `jit` and `vmap` them.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.sim import bodies, policies, world
from jepa_jax.sim.nuisance import Scene, sample_scene

REACH, GRASP, CARRY, PLACE = KINDS = ("reach", "grasp", "reach with", "place")
# The tool has arrived when it is this near, m.
REACHED_WITHIN = 0.04
# Where tools start and arrive: m and rad. Whatever they hold passes above things that stand on the table.
_LOW = np.float32([0.33, -0.22, 0.16, 0.0, 0.0, -0.7, 0.0])
_HIGH = np.float32([0.62, 0.22, 0.33, 0.0, 0.0, 0.7, 0.3])
# From the tool to the object that is to be grasped, at the start, m.
_APPROACH = (0.08, 0.20)
# Height of the tool while the expert carries an object to its place, m.
_CARRY_HEIGHT = 0.17
# How far an object may be pressed into what it stands on, in worlds where things give way, m.
_SUNK = 0.003
# An object is near its place from here on: the second goal of PLACE, m.
_NEAR = 0.02
# Where the expert has its hand around an object and begins to close it, m from its middle; and how far closed it is at most then.
_AROUND, _OPEN = 0.026, 0.1
# The expert's last goal of REACH and CARRY, m.
_ARRIVED = 0.005
_DRAWS = 256
MAX_TRIES = 64


@dataclasses.dataclass(frozen=True)
class Task:
    """Say what is to be done.

    Attributes:
        kind: 'reach' (bring the tool to a place), 'grasp' (hold the object), 'reach with' (bring the object
            that is held at the start to a place) or 'place' (pick the object up and put it onto the plate).
        thing: 'box' or 'cup'; '' for 'reach'.
        distance: least and largest distance at the start, m: of the tool to its goal; with 'grasp', to the
            object; with 'place', of the object to the plate.
        steps: length of an episode.
        waypoints: how many goals, evenly spaced along the way, 'reach' and 'reach with' have; with 2, 'grasp' has the open hand
            around the object as a goal before the last; 'place' has its own.
        lift: with 'grasp', how far above where it stood the object must be held, m.

    Raises:
        ValueError: a field does not fit; the message says what is allowed.
    """

    kind: str
    thing: str
    distance: tuple[float, float]
    steps: int
    waypoints: int = 1
    lift: float = 0.0

    def __post_init__(self):
        """Check the fields."""
        if self.kind not in KINDS:
            raise ValueError(f"there is no task {self.kind!r}; allowed: {', '.join(KINDS)}")
        allowed = ("",) if self.kind == REACH else bodies.OBJECTS
        if self.thing not in allowed:
            raise ValueError(f"task {self.kind!r} of {self.thing!r}; allowed: {', '.join(map(repr, allowed))}")
        low, high = self.distance
        if not 0 <= low < high:
            raise ValueError(f"distances from {low:g} to {high:g} m; the first must be at least 0 and below the second")
        if min(self.steps, self.waypoints) < 1:
            raise ValueError(f"{self.steps} steps and {self.waypoints} waypoints; there must be at least one of each")
        if self.waypoints > (most := {GRASP: 2, PLACE: 1}.get(self.kind, self.waypoints)):
            why = f", as its {self.num_goals} goals are its own" if most == 1 else ""
            raise ValueError(f"waypoints is {self.waypoints}; task {self.kind!r} has {most} at most{why}")
        if not 0 <= self.lift <= 0.1:
            raise ValueError(f"lift is {self.lift:g} m; it must be from 0 to 0.1")

    @property
    def num_goals(self) -> int:
        """Count the goals of an episode, which are to be reached one after the other."""
        return 3 if self.kind == PLACE else self.waypoints

    @property
    def goal_steps(self) -> tuple[int, ...]:
        """Return how many steps each goal is pursued for when a clock decides; the last one takes what is left."""
        if self.kind == PLACE:
            # The paper's 4, 10 and 4, in parts of an episode.
            parts = np.round(np.float64([4, 14]) / 18 * self.steps)
        else:
            # The last goal has as much time again as every earlier one.
            parts = np.round(np.arange(1, self.num_goals) / (self.num_goals + 1) * self.steps)
        return tuple(int(steps) for steps in np.diff([0, *parts, self.steps]))


TASKS = {
    "reach": Task(REACH, "", (0.10, 0.30), 15),
    "grasp-box": Task(GRASP, "box", _APPROACH, 15),
    "grasp-cup": Task(GRASP, "cup", _APPROACH, 15),
    "reach-with-box": Task(CARRY, "box", (0.10, 0.30), 15),
    "reach-with-cup": Task(CARRY, "cup", (0.10, 0.30), 15),
    "place-box": Task(PLACE, "box", (0.14, 0.30), 27),
    "place-cup": Task(PLACE, "cup", (0.14, 0.30), 27),
}


class Trial(NamedTuple):
    """Hold one draw of a task.

    Args:
        start: `world.State`.
        scene: `Scene`, the look of the episode and of its goals.
        goals: `world.State` with a leading axis G.
        intent: `policies.Intent` of the expert; `goal` is the pose that 'reach' and 'reach with' go to.
        excluded: int32, draws before this one that were left out because they start with the task done.
        unsolved: int32, those that were left out because the expert did not get there.
        valid: bool, whether there is a start from which the expert gets there, within `MAX_TRIES` draws.
    """

    start: world.State
    scene: Scene
    goals: world.State
    intent: policies.Intent
    excluded: jax.Array
    unsolved: jax.Array
    valid: jax.Array


def draw_trial(key, task, nuisance):
    """Draw an episode of a task.

    Args:
        key: PRNG key.
        task: `Task`.
        nuisance: `nuisance.Nuisance`.

    Returns:
        `Trial`.
    """
    scene_key, draw_key = jax.random.split(key)
    scene = sample_scene(scene_key, nuisance)

    def draw(tries, excluded, unsolved):
        start, intent, in_range = draw_start(jax.random.fold_in(draw_key, tries), task)
        goals, reached = _expert_goals(task, start, intent)
        done = succeeds(task, start, intent)
        usable = in_range & ~done
        return Trial(start, scene, goals, intent, excluded + (in_range & done), unsolved + (usable & ~reached), usable & reached)

    def again(carry):
        tries, trial = carry
        return tries + 1, draw(tries, trial.excluded, trial.unsolved)

    # Nothing that is not valid is looked at, so the first one may be anything; this way it is compiled once.
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(draw, 0, 0, 0))
    return jax.lax.while_loop(lambda carry: ~carry[1].valid & (carry[0] < MAX_TRIES), again, (jnp.int32(0), nothing))[1]


def succeeds(task, state, intent):
    """Tell whether a task is done: a bool.

    The tool within `REACHED_WITHIN` of its goal, with 'reach with' still holding the object; the object held
    with 'grasp'; standing within `policies.PLACED_WITHIN` of its place and let go with 'place'.
    """
    holds = state.held == intent.target
    if task.kind == PLACE:
        return policies.is_placed(state, intent)
    if task.kind == GRASP:
        # What is held stood on the table or on something, and sinks into it where fingers press it down.
        bottom = state.objects[intent.target, 2] - jnp.asarray(bodies.OBJECT_HALF_HEIGHTS)[intent.target]
        return holds & (bottom > task.lift - _SUNK)
    return (distance(task, state, intent) < REACHED_WITHIN) & (holds | (task.kind == REACH))


def distance(task, state, intent):
    """Measure how far a task is from being done, float32, m: as `Task.distance` says."""
    body = state.objects[intent.target]
    if task.kind == PLACE:
        return jnp.linalg.norm(body[:2] - intent.put)
    return jnp.linalg.norm(state.pose[:3] - (body if task.kind == GRASP else intent.goal)[:3])


def expert_action(task, state, intent):
    """Act as the scripted expert does in a task; it turns nothing, and stays where the task is done.

    Args:
        task: `Task`.
        state: `world.State`.
        intent: `policies.Intent` of the trial.

    Returns:
        Action float32 `[7]`.
    """
    if task.kind in (REACH, CARRY):
        goal = state.pose.at[:3].set(intent.goal[:3])
        return policies.toward(state.pose, goal)
    action = policies.expert(state, intent)[0]
    # Pictures of goals are then within reach of planners that turn nothing either.
    return jnp.where(succeeds(task, state, intent), 0.0, action.at[3:6].set(0.0))


def draw_start(key, task):
    """Draw a start that may not do: the state, the expert's intent, and whether the distance is as wanted."""
    state_key, pose_key, goal_key = jax.random.split(key, 3)
    state = world.reset(state_key)
    target = jnp.int32(bodies.OBJECTS.index(task.thing) if task.thing else 0)
    poses = jax.random.uniform(pose_key, (_DRAWS, 7), minval=_LOW, maxval=_HIGH)
    goals = jax.random.uniform(goal_key, (_DRAWS, 7), minval=_LOW, maxval=_HIGH)
    if task.kind in (REACH, CARRY):
        state = state._replace(pose=poses[0])
        goal, found = _first_within(goals, state.pose, task.distance)
        if task.kind == CARRY:
            state = world.holding(state, target)
    else:
        near = task.distance if task.kind == GRASP else _APPROACH
        pose, found = _first_within(poses, state.objects[target], near)
        state, goal = state._replace(pose=pose), pose
    # Nothing is put anywhere with 'grasp': a place that is too far to get there.
    put = jnp.full(2, 9.0) if task.kind == GRASP else state.plate
    intent = policies.Intent(
        free=jnp.bool_(False), target=target, put=put, height=jnp.float32(_CARRY_HEIGHT), goal=goal,
        speed=jnp.float32(1.0), noise=jnp.zeros(7),
    )  # fmt: skip
    if task.kind == PLACE:
        low, high = task.distance
        found &= (low <= distance(task, state, intent)) & (distance(task, state, intent) <= high)
    return state, intent, found


def _first_within(poses, place, limits):
    """Return the first of several poses `[n, 7]` at a wanted distance of a place, and whether there is one."""
    gaps = jnp.linalg.norm(poses[:, :3] - place[:3], axis=-1)
    within = (gaps >= limits[0]) & (gaps <= limits[1])
    return poses[jnp.argmax(within)], within.any()


def _expert_goals(task, start, intent):
    """Let the expert do a task: the state at which it first reached each goal, and whether it did."""

    def one(state, _):
        return world.step(state, expert_action(task, state, intent)), state

    last, before = jax.lax.scan(one, start, length=task.steps)
    path = jax.tree.map(lambda rows, end: jnp.concatenate([rows, end[None]]), before, last)
    reached = jax.vmap(lambda state: milestones(task, state, start, intent))(path)
    return jax.tree.map(lambda rows: rows[jnp.argmax(reached, 0)], path), reached.any(0).all()


def milestones(task, state, start, intent):
    """Tell of every goal whether a state has reached it: bool `[G]`."""
    done, gap = succeeds(task, state, intent), distance(task, state, intent)
    if task.kind == GRASP:
        return jnp.stack([(gap < _AROUND) & (state.pose[6] < _OPEN), done][-task.waypoints :])
    if task.kind == PLACE:
        holds = state.held == intent.target
        return jnp.stack([holds, holds & (gap < _NEAR), done])
    parts = np.arange(task.waypoints - 1, -1, -1, dtype=np.float32) / task.waypoints
    return gap <= jnp.maximum(parts * distance(task, start, intent), _ARRIVED)
