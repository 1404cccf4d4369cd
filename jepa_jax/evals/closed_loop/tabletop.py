"""The table-top of `jepa_jax.sim` as an environment: pure, so that simulator and policy become one program."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.evals.closed_loop.episodes import Goals, Observation, Starts
from jepa_jax.robots.presets import DROID
from jepa_jax.sim import cameras, tasks, world
from jepa_jax.sim.episodes import SPLITS, TABLETOP
from jepa_jax.sim.nuisance import Nuisance
from jepa_jax.sim.rendering import render

# Pictures drawn side by side where that is faster than one after the other.
_DRAWN_AT_ONCE = 256
ROBOT = dataclasses.replace(
    DROID, name=TABLETOP, action_low=tuple((-world.MAX_ACTION).tolist()), action_high=tuple(world.MAX_ACTION.tolist())
)


@dataclasses.dataclass(frozen=True)
class Tabletop:
    """N episodes of a task, with starts and scenes of the split 'test'. Implements `episodes.Environment`.

    The state is (`tasks.Trial`, `world.State`), both with leading axis N.

    Attributes:
      task: `tasks.Task`.
      camera: of `cameras.CAMERAS`.
      size: side of the frames, pixels.
      nuisance: `Nuisance`.
    """

    task: tasks.Task
    camera: str = "front"
    size: int = 64
    nuisance: Nuisance = Nuisance.all(1.0)

    pure = True
    control_rate = world.CONTROL_RATE
    robot = ROBOT

    @property
    def steps(self):
        """Return the length of an episode."""
        return self.task.steps

    @property
    def goal_steps(self):
        """Return how many steps each goal is meant for."""
        return self.task.goal_steps

    def reset(self, seed, numbers):
        """Begin episodes; see `Environment`."""
        key = jax.random.fold_in(jax.random.key(seed), SPLITS.index("test"))
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
        trials = jax.vmap(lambda key: tasks.draw_trial(key, self.task, self.nuisance))(keys)
        shown = jax.tree.map(lambda start, goals: jnp.concatenate([start[:, None], goals], 1), trials.start, trials.goals)
        scenes = jax.tree.map(lambda part: jnp.repeat(part, 1 + self.task.num_goals, axis=0), trials.scene)
        frames = self.draw(jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), shown), scenes)
        frames = frames.reshape(len(numbers), -1, *frames.shape[1:])
        state, goals = (trials, trials.start), Goals(frames[:, 1:], trials.goals.pose)
        return state, self._seen(frames[:, 0], state), goals, Starts(trials.excluded, trials.unsolved, trials.valid)

    def step(self, state, actions):
        """Take actions; see `Environment`."""
        trials, before = state
        states = jax.vmap(world.step)(before, actions)
        state = trials, states
        return state, self._seen(self.draw(states, trials.scene), state)

    def measure(self, state):
        """Judge states; see `Environment`."""
        trials, states = state
        judged = (jax.vmap(functools.partial(judge, self.task)) for judge in (tasks.succeeds, tasks.distance))
        return tuple(judge(states, trials.intent) for judge in judged)

    def expert(self, state):
        """Return the actions of the scripted expert."""
        trials, states = state
        return jax.vmap(functools.partial(tasks.expert_action, self.task))(states, trials.intent)

    def redraw(self, film, pixels):
        """Draw filmed episodes and their goals again; see `Environment`."""
        trials, states = film["states"]
        flat = lambda tree, axes: jax.tree.map(lambda part: part.reshape(-1, *part.shape[axes:]), tree)
        draw = _drawing(dataclasses.replace(self, size=pixels))
        frames = np.asarray(draw(flat(states, 2), flat(trials.scene, 2)))
        count, each = trials.goals.pose.shape[0], trials.goals.pose.shape[2]
        scenes = jax.tree.map(lambda part: np.repeat(part[:, 0], each, axis=0), trials.scene)
        goals = np.asarray(draw(flat(jax.tree.map(lambda part: part[:, 0], trials.goals), 2), scenes))
        return frames.reshape(count, -1, *frames.shape[1:]), goals.reshape(count, each, *goals.shape[1:])

    def draw(self, states, scenes):
        """Draw `world.State` and `Scene` with a leading axis: uint8 `[n, H, W, 3]`."""
        at_once = None if jax.default_backend() == "cpu" else _DRAWN_AT_ONCE
        picture = lambda pair: render(*pair, self.camera, self.size)
        return jax.lax.map(picture, (states, scenes), batch_size=at_once)

    def _seen(self, frames, state):
        trials, states = state
        extrinsics = jax.vmap(functools.partial(cameras.extrinsics, self.camera))(states.pose, trials.scene.camera)
        return Observation(frames, states.pose, extrinsics, state)


@functools.cache
def _drawing(environment):
    """Compile drawing one picture after the other; pictures of a batch of any length."""
    one = jax.jit(lambda state, scene: environment.draw(*jax.tree.map(lambda part: part[None], (state, scene)))[0])

    def draw(states, scenes):
        count = len(jax.tree.leaves(states)[0])
        pick = lambda number: jax.tree.map(lambda part: part[number], (states, scenes))
        return np.stack([one(*pick(number)) for number in range(count)])

    return draw
