"""Policies that plan: with a world model, with the simulator itself, or with the poses alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jepa_jax import planning
from jepa_jax.evals.closed_loop.episodes import Choice, Policy
from jepa_jax.robots.algebra import apply_action
from jepa_jax.robots.spec import RobotSpec

MODEL, ORACLE, POSES = "model", "oracle", "poses"
# The pose oracle's price of a gripper that is fully open instead of closed, m.
_GRIPPER_PRICE = 0.1


class Dynamics(NamedTuple):
    """What a plan is made with, for one robot.

    Attributes:
      name: for tables.
      robot: `RobotSpec` that says which numbers of an action are planned.
      dynamics_fn, cost_fn: as in `planning.plan`.
      root: (latents `[h*w, D]`, `Observation` of one, goal latents `[h*w, D]`, goal pose `[S]`, mean) -> `planning.Root`.
      params: of the functions.
    """

    name: str
    robot: RobotSpec
    dynamics_fn: Callable
    cost_fn: Callable
    root: Callable
    params: Any = ()


def model_dynamics(environment, world, params, spec, energy):
    """Plan with a world model.

    Args:
      environment: `Environment`.
      world: `WorldModel`.
      params: its parameters.
      spec: `planning.PlanSpec`.
      energy: as in `planning.bind`.

    Returns:
      `Dynamics`.

    Raises:
      ValueError: the model is of a robot with other numbers, or moves it in another way.
    """
    own, robot = world.robot, environment.robot
    for kind in ("state", "action"):
        told, needed = (_numbers(spec, kind) for spec in (own, robot))
        # A unit that is not stated may be any.
        if len(told) != len(needed) or any(a != b or (unit and other and unit != other) for (a, unit), (b, other) in zip(told, needed)):
            told, needed = (", ".join(f"{name} ({unit})" if unit else name for name, unit in numbers) for numbers in (told, needed))
            raise ValueError(f"the model is of robot {own.name!r} with {kind}s {told}; those of the simulator, {robot.name!r}, are {needed}")
    if own.frame != robot.frame or own.absolute_dims != robot.absolute_dims:
        raise ValueError(f"the model's actions are {own.mode} in frame {own.frame!r}; the simulator takes {robot.mode} ones in "
                         f"frame {robot.frame!r}")
    planner = planning.bind(world, spec, energy)

    def root(latents, seen, goal, pose, mean):
        extrinsics = seen.extrinsics if world.predictor.use_extrinsics else None
        return planning.make_root(world, latents, seen.poses, goal, extrinsics, mean)

    return Dynamics(MODEL, own, planner.dynamics_fn, planner.cost_fn, root, {"action_predictor": params["action_predictor"]})


def oracle_dynamics(environment, sight, energy):
    """Plan with the simulator itself, and judge pictures as a planner does that has a perfect model.

    Args:
      environment: `Environment`, a pure one.
      sight: `Sight`.
      energy: as in `planning.bind`.

    Returns:
      `Dynamics`.

    Raises:
      ValueError: the environment is not pure.
    """
    if not environment.pure:
        raise ValueError("oracle dynamics need a simulator written in JAX, as the table-top is")
    effort = planning.gripper_effort(energy, environment.robot)

    def dynamics_fn(params, state, action):
        state, seen = state
        state, seen = environment.step(state, planning.full_actions(environment.robot, seen.poses, action))
        # Pictures that nobody looks at are not drawn: the compiler removes them.
        return state, seen

    def cost_fn(params, state, goal, action):
        return energy(sight.see(params, state[1].frames), goal, sight.grid, state[1].poses) + effort(action)

    root = lambda latents, seen, goal, pose, mean: planning.Root((seen.truth, seen), goal, mean)
    return Dynamics(ORACLE, environment.robot, dynamics_fn, cost_fn, root, sight.params)


def pose_dynamics(environment):
    """Plan with what the robot reports, toward its pose at the goal: what seeing perfectly would give."""
    robot = environment.robot
    position, gripper = robot.part("position"), robot.part("gripper")

    def dynamics_fn(params, state, action):
        return apply_action(robot, state, planning.full_actions(robot, state, action), jnp)

    def cost_fn(params, state, goal, action):
        cost = jnp.linalg.norm((state - goal)[..., position.where], axis=-1)
        return cost if gripper is None else cost + _GRIPPER_PRICE * jnp.abs(state - goal)[..., gripper.where].sum(-1)

    return Dynamics(POSES, robot, dynamics_fn, cost_fn, lambda latents, seen, goal, pose, mean: planning.Root(seen.poses, pose, mean))


def _numbers(robot, kind):
    """List the numbers of a robot's states or actions: pairs (name, unit)."""
    return list(zip(getattr(robot, f"{kind}_names"), getattr(robot, f"{kind}_units")))


def planner_spec(environment, robot, preset="icem", **changes):
    """Make the settings of a planner for a simulator: within its bounds and those that the robot of a model has.

    Args:
      environment: `Environment`.
      robot: `RobotSpec` of the model; that of the environment where there is none.
      preset, changes: as in `planning.make_spec`.

    Returns:
      `planning.PlanSpec`.
    """
    allowed = environment.robot
    limits = {}
    for name, own, other, inner in (("low", robot.action_low, allowed.action_low, max), ("high", robot.action_high, allowed.action_high, min)):
        limits[name] = [inner(own[at], other[at]) if own else other[at] for at in robot.planned_dims]
    return planning.make_spec(robot, preset, **(limits | changes))


def planner_policy(pursuit, dynamics, spec, *, warm, robots_at_once):
    """Plan anew at every step and take the first action.

    Args:
      pursuit: `Pursuit`.
      dynamics: `Dynamics`.
      spec: `planning.PlanSpec`.
      warm: start from the previous plan, less its first action, as long as the goal is the same.
      robots_at_once: plans made side by side.

    Returns:
      `Policy`.
    """
    robot = dynamics.robot
    cold = lambda count: jnp.broadcast_to(jnp.float32(spec.start), (count, spec.horizon, spec.dims))

    def begin(params, goals):
        return pursuit.begin(params["sight"], goals), cold(len(goals.frames))

    def act(params, memory, keys, seen):
        before, means = memory
        now, goal, pose, energy, pursued = pursuit.look(params["sight"], before, seen)
        # What was planned for one goal leads away from the next.
        anew = pursued.progress.goal != before.progress.goal
        means = jnp.where(anew[:, None, None], cold(len(now)), means)

        def one(robot):
            key, *parts = robot
            return planning.plan(params["dynamics"], key, dynamics.root(*parts), dynamics.dynamics_fn, dynamics.cost_fn, spec)

        together = min(robots_at_once, len(now))
        robots = keys, now, seen, goal, pose, means
        # A batch of one would be mapped over for nothing.
        found = jax.lax.map(one, robots, batch_size=together if together > 1 else None)
        actions = planning.full_actions(robot, seen.poses, found.actions[:, 0])
        means = jax.vmap(planning.warm_start)(found) if warm else means
        return Choice(actions, pursued.progress.goal, energy), (pursued, means)

    return Policy(dynamics.name, begin, act, {"sight": pursuit.sight.params, "dynamics": dynamics.params})
