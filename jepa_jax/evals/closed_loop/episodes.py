"""Environments, policies, and the loop that brings them together."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jepa_jax.robots.spec import RobotSpec
from jepa_jax.training.sharding import BATCH_AXES, make_mesh, replicated

# Sets the keys of policies apart from those of splits, which are small numbers.
_POLICY = 1 << 16
# How arguments and results are split over devices: not at all, with a leading axis of episodes, with one of steps before it.
_WHOLE, _EPISODES, _STEPS_OF_EPISODES = PartitionSpec(), PartitionSpec(BATCH_AXES), PartitionSpec(None, BATCH_AXES)


class Observation(NamedTuple):
    """What there is to see of N episodes.

    Attributes:
      frames: uint8 `[N, H, W, 3]`.
      poses: float32 `[N, S]`, states that the robot reports, in its units.
      extrinsics: float32 `[N, 6]`, poses of the camera in the robot's base frame, m and rad.
      truth: what the simulator knows, for policies that are allowed to cheat: `Environment.expert` takes it. The state
        itself where the environment is pure.
    """

    frames: jax.Array
    poses: jax.Array
    extrinsics: jax.Array
    truth: Any


class Goals(NamedTuple):
    """What shall be seen, one goal after the other.

    Attributes:
      frames: uint8 `[N, G, H, W, 3]`.
      poses: float32 `[N, G, S]`, states of the robot in these pictures.
    """

    frames: jax.Array
    poses: jax.Array


class Choice(NamedTuple):
    """What a policy does.

    Attributes:
      actions: float32 `[N, A]`, in the robot's units.
      goal: int32 `[N]`, number of the goal that was pursued; of the last one where none is looked at.
      energy: float32 `[N]`, how far it is away in the policy's eyes; NaN where it has no opinion.
    """

    actions: jax.Array
    goal: jax.Array
    energy: jax.Array


class Policy(NamedTuple):
    """Decide what N robots do.

    Attributes:
      name: for tables.
      begin: (params, `Goals`) -> memory, any pytree; called once per episode.
      act: (params, memory, keys `[N]`, `Observation`) -> (`Choice`, memory).
      params: pytree of arrays; they travel as arguments, so that weights are no constants of the program.

    Both functions are pure and can be compiled.
    """

    name: str
    begin: Callable
    act: Callable
    params: Any = ()


class Environment(Protocol):
    """Simulate N episodes side by side. `state` is what the simulator wants to be handed back, a pytree with leading axis N.

    Attributes:
      pure: whether the functions below are written in JAX, without side effects; then everything becomes one program.
      steps: length of an episode.
      goal_steps: how many steps each goal is meant for.
      robot: `RobotSpec`, what poses and actions mean, and how large actions may be: the `Runner` clips those of all policies.
      control_rate: steps per second.
    """

    pure: bool
    steps: int
    goal_steps: tuple[int, ...]
    robot: RobotSpec
    control_rate: float

    def reset(self, seed, numbers):
        """Begin episodes `numbers` (int32 `[N]`) of a seed (int32): (state, `Observation`, `Goals`, `Starts`)."""

    def step(self, state, actions):
        """Take actions `[N, A]`: (next state, `Observation`)."""

    def measure(self, state):
        """Return whether the task is done, bool `[N]`, and how far it is from that, float32 `[N]`, m."""

    def expert(self, truth):
        """Return the actions `[N, A]` of a scripted expert; pure, whatever the rest is."""

    def redraw(self, film, pixels):
        """Draw what `Episodes.film` holds at another size: frames `[K, T + 1, H, W, 3]`, goals `[K, G, H, W, 3]`, uint8."""


class Starts(NamedTuple):
    """How starts were found.

    Attributes:
      excluded: int32 `[N]`, draws left out because they begin with the task done.
      unsolved: int32 `[N]`, draws left out because the expert, whose states are the goals, did not get there.
      valid: bool `[N]`, whether a start was found at all.
    """

    excluded: jax.Array
    unsolved: jax.Array
    valid: jax.Array


class Episodes(NamedTuple):
    """What happened in N episodes of T steps; arrays of the host.

    Attributes:
      seed: int32 `[N]`, and `number`, int32 `[N]`: which episode it is.
      success: bool `[N, T]` after every step, and `distance`, float32 `[N, T]`, m.
      energy: float32 `[N, T]` before every step, and `goal`, int32 `[N, T]`: as in `Choice`.
      actions: float32 `[N, T, A]`, as they were taken.
      excluded, unsolved: int32 `[N]`, as in `Starts`.
      film: dict with `frames`, uint8 `[K, T + 1, H, W, 3]`, `poses`, float32 `[K, T + 1, S]`, `goals`, uint8 `[K, G, H, W, 3]`, and
        `goal_poses`, float32 `[K, G, S]`, of the first K episodes, and `states` of the environment (leading axes K, T + 1), to
        draw them again.
      seconds: that all of it took; with the first batch that is compiled.
    """

    seed: np.ndarray
    number: np.ndarray
    success: np.ndarray
    distance: np.ndarray
    energy: np.ndarray
    goal: np.ndarray
    actions: np.ndarray
    excluded: np.ndarray
    unsolved: np.ndarray
    film: dict[str, Any]
    seconds: float


class _Steps(NamedTuple):
    """Records of a batch: one step with leading axis N, or all steps with leading axes T, N."""

    success: Any
    distance: Any
    choice: Choice
    frames: Any
    poses: Any
    state: Any


class Runner:
    """Run episodes of a policy in an environment; compiled at the first batch, and only there.

    Args:
      environment: `Environment`.
      policy: `Policy`.
      at_once: episodes that run side by side.
      filmed: how many episodes to keep the pictures of.
      mesh: device mesh as `training.sharding` makes it, over whose devices episodes are spread; one device if None.

    Raises:
      ValueError: episodes side by side are none, or do not divide over the devices.
    """

    def __init__(self, environment: Environment, policy: Policy, *, at_once: int = 16, filmed: int = 6, mesh=None):
        mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
        if at_once < 1 or at_once % mesh.size:
            raise ValueError(f"{at_once} episodes side by side; there must be at least one, and as many on each of {mesh.size} devices")
        self._environment, self._policy = environment, policy
        self._at_once, self._filmed = at_once, filmed
        self._params = jax.device_put(policy.params, replicated(mesh))
        self._reset = _spread_reset(environment, mesh) if environment.pure else environment.reset
        self._begin = _spread(policy.begin, mesh, (_WHOLE, _EPISODES), _EPISODES)
        if environment.pure:
            drive = functools.partial(_drive, environment, policy.act)
            self._drive = _spread(drive, mesh, (_WHOLE, _EPISODES, _STEPS_OF_EPISODES), _STEPS_OF_EPISODES)
        else:
            act = _spread(policy.act, mesh, (_WHOLE, _EPISODES, _EPISODES, _EPISODES), _EPISODES)
            self._drive = functools.partial(_drive, environment, act)

    def run(self, seeds, episodes, on_episodes=lambda count: None) -> Episodes:
        """Run so many episodes of every seed.

        Args:
          seeds: whole numbers from 0 to 2**31 - 1, all different.
          episodes: of each seed.
          on_episodes: called with the number of episodes of every batch.

        Returns:
          `Episodes`, seed after seed.

        Raises:
          ValueError: nothing to run, seeds that would repeat episodes, the task has no start as it was described, or
            actions are not finite.
        """
        if episodes < 1 or not seeds:
            raise ValueError(f"{episodes} episodes of {len(seeds)} seeds; there must be at least one of each")
        if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**31 for seed in seeds):
            raise ValueError(f"seeds {', '.join(map(str, seeds))}; they must be different, for the same one gives the same episodes, and "
                             f"from 0 to {2**31 - 1}")
        begun, found, films = time.monotonic(), [], []
        for seed in seeds:
            for first in range(0, episodes, self._at_once):
                # The last batch is filled up, so that all have one shape.
                numbers = np.arange(first, first + self._at_once, dtype=np.int32)
                count = min(self._at_once, episodes - first)
                goals, starts, steps = jax.device_get(self._batch(np.int32(seed), numbers, count))
                _check_actions(steps.choice.actions, self._policy.name, count)
                # Pictures are large: only those that are wanted are kept.
                films.append(_film(goals, steps, min(count, self._filmed - sum(len(film["goals"]) for film in films))))
                left_out = (starts.excluded[:count], starts.unsolved[:count])
                found.append((np.full(count, seed), numbers[:count], *_by_episode(steps, count), *left_out))
                on_episodes(count)
        columns = [np.concatenate(column) for column in zip(*found)]
        film = jax.tree.map(lambda *parts: np.concatenate(parts), *films)
        return Episodes(*columns, film, time.monotonic() - begun)

    def _batch(self, seed, numbers, count):
        state, seen, goals, starts = self._reset(seed, numbers)
        _check_starts(starts, count)
        keys = _policy_keys(seed, numbers, self._environment.steps)
        return goals, starts, self._drive(self._params, (state, seen, self._begin(self._params, goals)), keys)

    def milliseconds_per_plan(self, repeats: int = 5) -> float:
        """Measure how long one robot alone waits for its next action: the median, without compiling."""
        # What was compiled is compiled for so many; others draw every start in turn.
        starts = self._at_once if self._environment.pure else 1
        _, seen, goals, _ = self._reset(np.int32(0), np.arange(starts, dtype=np.int32))
        seen, goals = jax.tree.map(lambda leaf: np.asarray(leaf)[:1], (seen, goals))
        params = self._policy.params
        memory, act, times = jax.jit(self._policy.begin)(params, goals), jax.jit(self._policy.act), []
        for repeat in range(repeats + 1):
            begun = time.perf_counter()
            jax.block_until_ready(act(params, memory, jax.random.split(jax.random.key(repeat), 1), seen)[0])
            times.append(1000 * (time.perf_counter() - begun))
        return float(np.median(times[1:]))


def _spread(function, mesh, inputs, outputs):
    """Compile a function that every device of a mesh runs for its own episodes, without asking the others."""
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False))


@functools.cache
def _spread_reset(environment, mesh):
    """Compile what all policies in an environment have in common."""
    return _spread(environment.reset, mesh, (_WHOLE, _EPISODES), _EPISODES)


@functools.partial(jax.jit, static_argnums=2)
def _policy_keys(seed, numbers, steps):
    """Make keys `[T, N]` that depend on seed and number of an episode alone, and are none of those that it was drawn with."""
    key = jax.random.fold_in(jax.random.key(seed), _POLICY)
    return jax.vmap(lambda number: jax.random.split(jax.random.fold_in(key, number), steps), out_axes=1)(numbers)


def _drive(environment, act, params, carry, keys):
    """Take as many steps as there are rows of keys; records of them, frames, poses and states those before the first one too."""
    low, high = np.float32(environment.robot.action_low), np.float32(environment.robot.action_high)

    def one(carry, keys):
        state, seen, memory = carry
        choice, memory = act(params, memory, keys, seen)
        # Whoever asks: a policy that imitates knows no bounds.
        choice = choice._replace(actions=jnp.clip(choice.actions, low, high))
        state, seen = environment.step(state, choice.actions)
        return (state, seen, memory), _Steps(*environment.measure(state), choice, seen.frames, seen.poses, state)

    steps = (jax.lax.scan if environment.pure else _loop)(one, carry, keys)[1]
    join = jnp.concatenate if environment.pure else np.concatenate
    state, seen, _ = carry
    before = {"frames": seen.frames, "poses": seen.poses, "state": state}
    return steps._replace(**{
        name: jax.tree.map(lambda start, rows: join([start[None], rows]), value, getattr(steps, name)) for name, value in before.items()
    })


def _loop(one, carry, keys):
    """Do what `lax.scan` does, in Python."""
    rows = []
    for step_keys in keys:
        carry, row = one(carry, step_keys)
        rows.append(jax.device_get(row))
    return carry, jax.tree.map(lambda *parts: np.stack(parts), *rows)


def _check_starts(starts, count):
    missing = count - int(np.asarray(starts.valid)[:count].sum())
    if missing:
        raise ValueError(f"{missing} of {count} episodes have no start of the wanted distance from which the expert gets to the "
                         "goal; choose other distances, or more steps")


def _check_actions(actions, name, count):
    bad = ~np.isfinite(actions[:, :count]).all((0, 2))
    if bad.any():
        raise ValueError(f"policy {name!r} asked for actions that are not finite in {int(bad.sum())} of {count} episodes")


def _by_episode(steps, count):
    """Return success, distance, energy, goal and actions of the first episodes, with axes N, T."""
    choice = steps.choice
    for value in (steps.success, steps.distance, choice.energy, choice.goal, choice.actions):
        yield np.moveaxis(np.asarray(value), 0, 1)[:count]


def _film(goals, steps, count):
    """Keep the pictures of the first episodes."""
    shown = {"frames": steps.frames, "poses": steps.poses, "states": steps.state}
    rows = jax.tree.map(lambda value: np.moveaxis(np.asarray(value), 0, 1)[:count], shown)
    return rows | {"goals": np.asarray(goals.frames)[:count], "goal_poses": np.asarray(goals.poses)[:count]}
