"""The simulated Panda as an environment: stepped by MuJoCo outside of any compiled program."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from jepa_jax.evals.closed_loop.episodes import Goals, Observation, Starts
from jepa_jax.evals.closed_loop.tabletop import ROBOT
from jepa_jax.sim import tasks
from jepa_jax.sim.episodes import PANDA, Draw
from jepa_jax.sim.nuisance import Nuisance
from jepa_jax.sim.panda import rollouts
from jepa_jax.sim.panda.trials import draw_trial
from jepa_jax.sim.world import CONTROL_RATE, State

# Draws of trials that are kept, for the next policy.
_KEPT_TRIALS = 4096


class PandaState(NamedTuple):
    """Hold N episodes; arrays of NumPy with leading axis N.

    Attributes:
      trials: `sim.panda.trials.PandaTrial`.
      vectors: float64 `[N, S]`, what the simulator takes.
      states: `sim.State`, what is told of them.
    """

    trials: Any
    vectors: np.ndarray
    states: State


@dataclasses.dataclass(frozen=True)
class Panda:
    """N episodes of a task, with starts and scenes of the split 'test'. Implements `episodes.Environment`.

    The state is `PandaState`.

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

    pure = False
    control_rate = CONTROL_RATE
    robot = dataclasses.replace(ROBOT, name=PANDA)

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
        found = [_trial(self.task, self.nuisance, int(seed), int(number)) for number in numbers]
        trials = jax.tree.map(lambda *parts: np.stack(parts), *found)
        state = PandaState(trials, trials.start, trials.trial.start)
        goals, trial = Goals(self._goals(trials, self.size), trials.trial.goals.pose), trials.trial
        return state, self._seen(state), goals, Starts(trial.excluded, trial.unsolved, trial.valid)

    def step(self, state, actions):
        """Take actions; see `Environment`."""
        world, vectors, states = rollouts.shared_world(), [], []
        for vector, action in zip(state.vectors, np.asarray(actions)):
            world.load(vector)
            world.step(action)
            vectors.append(world.save())
            states.append(world.state())
        state = PandaState(state.trials, np.stack(vectors), jax.tree.map(lambda *parts: np.stack(parts), *states))
        return state, self._seen(state)

    def measure(self, state):
        """Judge states; see `Environment`."""
        return tuple(np.asarray(part) for part in _judge(self.task)(state.states, state.trials.trial.intent))

    def expert(self, truth):
        """Return the actions of the scripted expert."""
        states, intents = truth
        return jax.vmap(functools.partial(tasks.expert_action, self.task))(states, intents)

    def redraw(self, film, pixels):
        """Draw filmed episodes and their goals again; see `Environment`."""
        state = film["states"]
        trials = jax.tree.map(lambda part: part[:, 0], state.trials)
        frames = [self._drawn(rows, [scene] * len(rows), pixels) for rows, scene in zip(state.vectors, _each(trials.trial.scene))]
        return np.stack(frames), self._goals(trials, pixels)

    def _goals(self, trials, pixels):
        scenes = _each(trials.trial.scene)
        return np.stack([self._drawn(rows, [scene] * len(rows), pixels) for rows, scene in zip(trials.goals, scenes)])

    def _drawn(self, vectors, scenes, pixels):
        """Draw states of the simulator `[n, S]`: uint8 `[n, H, W, 3]`."""
        world, pictures, drawn = rollouts.shared_world(), rollouts.shared_pictures(pixels), []
        for vector, scene in zip(vectors, scenes):
            world.load(vector)
            drawn.append(world.draw(pictures, self.camera, scene))
        return np.stack(drawn)

    def _seen(self, state):
        scenes, world = _each(state.trials.trial.scene), rollouts.shared_world()
        frames = self._drawn(state.vectors, scenes, self.size)
        places = [world.extrinsics(self.camera, scene, pose) for scene, pose in zip(scenes, state.states.pose)]
        return Observation(frames, state.states.pose, np.stack(places), (state.states, state.trials.trial.intent))


def _each(tree):
    """Take a tree with leading axis N apart."""
    return [jax.tree.map(lambda part, number=number: part[number], tree) for number in range(len(jax.tree.leaves(tree)[0]))]


@functools.lru_cache(_KEPT_TRIALS)
def _trial(task, nuisance, seed, number):
    return draw_trial(Draw("test", seed, number, PANDA).key, task, nuisance)


@functools.cache
def _judge(task):
    def judge(state, intent):
        return tasks.succeeds(task, state, intent), tasks.distance(task, state, intent)

    return jax.jit(jax.vmap(judge))
