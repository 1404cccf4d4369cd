"""Policies by name, and the settings of those that plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jepa_jax import planning
from jepa_jax.evals.closed_loop import baselines, planners, response
from jepa_jax.evals.closed_loop.pursuit import Pursuit
from jepa_jax.planning.presets import OFFICIAL

EXPERT, RANDOM, ZERO, CLONING = "expert", "random", "zero", "cloning"
# Policies that do not look at pictures.
BLIND = {EXPERT: baselines.expert_policy, RANDOM: baselines.random_policy, ZERO: baselines.zero_policy}
POLICIES = (planners.MODEL, planners.ORACLE, planners.POSES, CLONING, *BLIND)
TASK_TIMES = "task"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to plan, and when to go on to the next goal.

    Attributes:
      preset: of `planning.PRESETS`.
      changes: pairs (field of `planning.PlanSpec`, value), in place of the preset's.
      energy: as in `planning.bind`.
      timer: steps for each goal; None for no limit; 'task' for those that the environment names.
      threshold: energy below which a goal counts as reached, or None for never.
    """

    preset: str = "icem"
    changes: tuple[tuple[str, Any], ...] = ()
    energy: Any = planning.Energy()
    timer: tuple[int, ...] | str | None = TASK_TIMES
    threshold: float | None = None


def make_pursuit(environment, sight, settings):
    """Return the `Pursuit` of an environment's goals."""
    timer = environment.goal_steps if settings.timer == TASK_TIMES else settings.timer
    if timer is not None and len(timer) != len(environment.goal_steps):
        raise ValueError(f"{len(timer)} times for {len(environment.goal_steps)} goals; there must be one for each")
    return Pursuit(sight, settings.energy, timer, settings.threshold)


def make_planner(kind, environment, sight, settings=Settings(), trained=None, params=None, *, at_once=16):
    """Make a policy that plans.

    Args:
      kind: 'model', 'oracle' (the simulator instead of a model, pictures judged alike) or 'poses' (neither model
        nor pictures).
      environment: `Environment`.
      sight: `Sight`; with 'model', of the encoder that it was trained on.
      settings: `Settings`.
      trained, params: `robots.world.Trained` and its parameters, for 'model'.
      at_once: episodes that will run side by side on a device.

    Returns:
      (`Policy`, `planning.PlanSpec`); as many candidates of the model are evaluated at once as fit into memory.

    Raises:
      ValueError: the kind is unknown, model, simulator and settings do not fit together, or plans not into memory.
    """
    if kind not in (planners.MODEL, planners.ORACLE, planners.POSES):
        raise ValueError(f"there is no planner on {kind!r}; allowed: {planners.MODEL}, {planners.ORACLE}, {planners.POSES}")
    robot = trained.world.robot if kind == planners.MODEL else environment.robot
    spec = planners.planner_spec(environment, robot, settings.preset, **dict(settings.changes))
    # Side by side they need the memory of all, and are no faster on a CPU.
    together = 1 if jax.default_backend() == "cpu" else at_once
    if kind == planners.MODEL:
        spec = planning.fit_memory(trained.world, spec, robots=together)
        dynamics = planners.model_dynamics(environment, trained.world, params, spec, settings.energy)
    elif kind == planners.ORACLE:
        dynamics = planners.oracle_dynamics(environment, sight, settings.energy)
    else:
        dynamics = planners.pose_dynamics(environment)
    # A plan of one step has nothing left after it: its successor starts from standing still. Official planners always do.
    warm = settings.preset not in OFFICIAL and spec.horizon > 1
    pursuit = make_pursuit(environment, sight, settings)
    return planners.planner_policy(pursuit, dynamics, spec, warm=warm, robots_at_once=together), spec


def can_respond(environment, trained):
    """Say whether `response_of` has something to compare with: a simulator that can be planned with, and the same numbers."""
    return environment.pure and trained.world.robot.planned_dims == environment.robot.planned_dims


def response_of(environment, sight, energy, trained, params, seed=0):
    """Measure how much of what actions do a world model foresees; see `response.measure_response`.

    Args:
      environment: one of which `can_respond` holds.
      sight: `Sight` of the model.
      energy: as in `planning.bind`.
      trained, params: as in `make_planner`.
      seed: which starts.

    Returns:
      list of dicts.
    """
    spec = planners.planner_spec(environment, trained.world.robot)
    model = planners.model_dynamics(environment, trained.world, params, spec, energy)
    oracle = planners.oracle_dynamics(environment, sight, energy)
    return response.measure_response(environment, sight, model, oracle, spec, seed=seed)
