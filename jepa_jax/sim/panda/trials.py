"""Draws of a task in the simulated Panda: starts, and the states that the scripted expert goes through from there."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from jepa_jax.sim import tasks
from jepa_jax.sim.panda import rollouts


class PandaTrial(NamedTuple):
    """Hold one draw of a task; arrays of NumPy.

    Args:
        trial: `tasks.Trial`, whose states are those that the simulator was in.
        start: float64 `[S]`, what `PandaWorld.load` takes.
        goals: float64 `[G, S]`, likewise.
    """

    trial: tasks.Trial
    start: np.ndarray
    goals: np.ndarray


def draw_trial(key, task, nuisance):
    """Draw an episode of a task, as `tasks.draw_trial` does in the table-top.

    Args:
        key: PRNG key.
        task: `tasks.Task`.
        nuisance: `Nuisance`.

    Returns:
        `PandaTrial`; its `trial.valid` is False where no start was found.

    Raises:
        MissingSimulatorError: the extra 'sim' is not installed.
    """
    world, (draw, act, judge) = rollouts.shared_world(), _compiled(task)
    scene_key, draw_key = jax.random.split(key)
    scene, excluded, unsolved = rollouts.draw_scene(scene_key, nuisance), 0, 0
    for tries in range(tasks.MAX_TRIES):
        drawn, intent, in_range = jax.device_get(draw(jax.random.fold_in(draw_key, tries)))
        world.place(drawn)
        start = world.state()
        # In a world with friction what shall be held may have slipped.
        usable = in_range and start.held == drawn.held
        done = bool(judge(start, start, intent)[0])
        excluded += usable and done
        if not usable or done:
            continue
        path = [(start, world.save())]
        for _ in range(task.steps):
            world.step(np.asarray(act(path[-1][0], intent)))
            path.append((world.state(), world.save()))
        reached = np.stack([judge(state, start, intent)[1] for state, _ in path])
        if reached.any(0).all():
            break
        unsolved += 1
    else:
        path, reached = [(start, world.save())], np.ones((1, task.num_goals), bool)
        usable = False
    goals, vectors = ([path[at][part] for at in reached.argmax(0)] for part in range(2))
    states = jax.tree.map(lambda *parts: np.stack(parts), *goals)
    trial = tasks.Trial(start, scene, states, intent, np.int32(excluded), np.int32(unsolved), np.bool_(usable))
    return PandaTrial(trial, path[0][1], np.stack(vectors))


@functools.cache
def _compiled(task):
    """Compile a task's draw of a start, its expert, and its judgement: (done, goals that are reached)."""

    def judge(state, start, intent):
        return tasks.succeeds(task, state, intent), tasks.milestones(task, state, start, intent)

    draw = jax.jit(lambda key: tasks.draw_start(key, task))
    return draw, jax.jit(lambda state, intent: tasks.expert_action(task, state, intent)), jax.jit(judge)
