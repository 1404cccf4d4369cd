"""A world model as the planner takes it: a state that can be rolled out, and the distance of what is seen to a goal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jepa_jax.models import FrameCache
from jepa_jax.planning.energy import Energy
from jepa_jax.planning.search import plan
from jepa_jax.planning.spec import PlanSpec, Root
from jepa_jax.robots.algebra import derive_actions
from jepa_jax.robots.spec import RobotSpec
from jepa_jax.robots.world import WorldModel
from jepa_jax.weights.learned_energy import LearnedEnergy


class LatentState(NamedTuple):
    """What a robot sees and where it is; leaves of S candidates have a leading axis S.

    Attributes:
      latents: `[h*w, D]` of the last frame, normalised.
      pose: float32 `[state_dim]` at that frame, in the robot's units.
      extrinsics: float32 `[extrinsics_dim]` of the camera, which stands still; None unless the predictor uses them.
      cache: `FrameCache` of the frames before; None at the root.
    """

    latents: jax.Array
    pose: jax.Array
    extrinsics: jax.Array | None = None
    cache: FrameCache | None = None


class Planner(NamedTuple):
    """What `search.plan` needs to plan with a world model, beside params, rng and root.

    Attributes:
      dynamics_fn, cost_fn, spec: as in `search.plan`. States are `LatentState`, a goal is its latents `[h*w, D]`.
      robot: what actions mean.
    """

    dynamics_fn: Callable
    cost_fn: Callable
    spec: PlanSpec
    robot: RobotSpec

    def plan(self, params, rng, root, **options):
        """Search a plan: `search.plan` with what is bound here. `jax.jit(planner.plan)` compiles once for each planner."""
        return plan(params, rng, root, self.dynamics_fn, self.cost_fn, self.spec, **options)


def bind(world: WorldModel, spec: PlanSpec, energy: Energy | Callable[..., Any] | None = None) -> Planner:
    """Make a world model plannable. Parameters of the result's functions are those of the world model.

    Args:
      world: the world model.
      spec: how to search, as `presets.make_spec` makes it for its robot.
      energy: function (latents `[S, h*w, D]`, goal `[h*w, D]`, grid (h, w), states float32 `[S, state_dim]`) -> float32 `[S]`;
        None for `Energy()`, the official one. `LearnedEnergy` is a learned one.

    Returns:
      `Planner`.

    Raises:
      ValueError: if the robot cannot be planned so far ahead, or energy and grid do not fit.
    """
    robot, grid = world.robot, tuple(world.predictor.grid)
    check_plannable(robot, spec)
    energy = Energy() if energy is None else energy
    if isinstance(energy, (Energy, LearnedEnergy)):
        energy.check_grid(grid)
    effort = gripper_effort(energy, robot)
    per_frame = world.predictor.tokens_per_frame(grid[0] * grid[1])

    def dynamics_fn(params, state, action):
        action = full_actions(robot, state.pose, action)
        past = 0 if state.cache is None else state.cache.length // per_frame
        # The last step keeps nothing, which with a horizon of 1 saves most of the memory.
        keep = past + 1 < spec.horizon
        told = (state.latents, action, state.pose) + (() if state.extrinsics is None else (state.extrinsics,))
        out = world.predict_next(params, *(value[:, None] for value in told), past=state.cache, keep=keep)
        latents, cache = out if keep else (out, None)
        pose = world.move(state.pose, action) if robot.integrable else state.pose
        return LatentState(latents[:, 0], pose, state.extrinsics, cache)

    def cost_fn(params, state, goal, action):
        del params
        found = energy(state.latents, goal, grid, state.pose)
        return found if action is None else found + effort(action)

    return Planner(dynamics_fn, cost_fn, spec, robot)


def gripper_effort(energy, robot):
    """Return the function of planned numbers `[..., A]` that says what moving the gripper costs in an energy, float32 `[...]`.

    Raises:
      ValueError: the energy is a learned one that does not suit the robot.
    """
    free = lambda action: jnp.zeros(action.shape[:-1])
    if not isinstance(energy, LearnedEnergy):
        return free
    energy.check_robot(robot)
    # Only where actions are changes do they say how far fingers move.
    if robot.gripper not in robot.planned_dims or robot.gripper in robot.absolute_dims:
        return free
    where = robot.planned_dims.index(robot.gripper)
    return lambda action: energy.effort(action[..., where])


def make_root(world, latents, pose, goal, extrinsics=None, mean=None):
    """Put together where a plan starts and where it leads.

    Args:
      world: `WorldModel`.
      latents: `[h*w, D]`, normalised, of the current frame.
      pose: `[state_dim]`, the robot's state, in its units and as `robots.algebra.to_frame` returns it.
      goal: `[h*w, D]`, normalised, of the goal frame.
      extrinsics: `[extrinsics_dim]`, exactly if the predictor uses them.
      mean: as in `Root`; None for no motion where planned actions are absolute and what that is is known, else for the
        start of the spec.

    Returns:
      `Root`; all arguments but the first may have a leading axis, for `jax.vmap`.

    Raises:
      ValueError: if a size is not the model's.
    """
    predictor = world.predictor
    tokens = (predictor.grid[0] * predictor.grid[1], predictor.output_dim)
    for name, value, needed in (("latents of the observation", latents, tokens), ("latents of the goal", goal, tokens),
                                ("state", pose, (predictor.state_dim,))):
        if tuple(value.shape[-len(needed):]) != needed:
            raise ValueError(f"{name} have shape {tuple(value.shape)}; the model takes {needed}")
    if (extrinsics is not None) != predictor.use_extrinsics:
        given = "none are given" if extrinsics is None else "they are given"
        raise ValueError(f"extrinsics of the camera: {given}, but use_extrinsics of the model is {predictor.use_extrinsics}")
    pose = jnp.asarray(pose, jnp.float32)
    if mean is None and set(world.robot.absolute_dims) & set(world.robot.planned_dims):
        still = still_actions(world.robot, pose)
        mean = None if still is None else still[..., jnp.array(world.robot.planned_dims)]
    return Root(LatentState(latents, pose, extrinsics), goal, mean)


def full_actions(robot, states, planned):
    """Complete planned numbers `[..., A]` to actions `[..., action_dim]`; others are such that nothing moves there.

    Args:
      robot: `RobotSpec`.
      states: `[..., state_dim]` from which the actions are taken, of as many axes or fewer.
      planned: numbers of `robot.planned_dims`.
    """
    if len(robot.planned_dims) == robot.action_dim:
        return planned
    still = still_actions(robot, states)
    # Where it is not known, those that are not planned are changes: see `check_plannable`.
    still = jnp.broadcast_to(0.0 if still is None else still, (*planned.shape[:-1], robot.action_dim))
    return still.at[..., jnp.array(robot.planned_dims)].set(planned)


def still_actions(robot, states):
    """Return the actions `[..., action_dim]` that keep a robot in its states `[..., state_dim]`.

    None where that is not known: for absolute actions that are not laid out like states.
    """
    if not robot.integrable:
        return None if robot.absolute_dims else jnp.zeros((*states.shape[:-1], robot.action_dim), states.dtype)
    # States are in the frame that actions are in already.
    same = dataclasses.replace(robot, source="states", frame="tool" if robot.frame == "tool" else "base")
    return derive_actions(same, jnp.stack([states, states], -2), xp=jnp)[..., 0, :]


def check_plannable(robot, spec):
    """Raise ValueError unless plans of a spec make sense for a robot."""
    planned = len(robot.planned_dims)
    if spec.dims != planned:
        names = ", ".join(robot.action_names[at] for at in robot.planned_dims)
        raise ValueError(f"the planner moves {spec.dims} numbers; robot {robot.name!r} has {planned} to plan: {names}")
    absolute = [dim in robot.absolute_dims for dim in robot.planned_dims]
    if wrong := [penalty for penalty, is_absolute in zip(spec.action_penalty, absolute) if penalty and is_absolute]:
        raise ValueError(f"robot {robot.name!r}: action_penalty is {wrong[0]:g} for a planned action that is absolute, so small ones are "
                         "not small moves; it must be 0")
    if robot.integrable:
        return
    if spec.horizon > 1:
        raise ValueError(f"robot {robot.name!r}: its states cannot be computed from its actions, so the planner cannot look "
                         f"{spec.horizon} steps ahead; horizon must be 1")
    if unknown := [robot.action_names[at] for at in robot.absolute_dims if at not in robot.planned_dims]:
        raise ValueError(f"robot {robot.name!r}: {', '.join(unknown)} are absolute and not laid out like states, so what keeps them as "
                         "they are is not known; planned must name all absolute actions")
