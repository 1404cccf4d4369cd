"""Policies by name, and the quickest way to know what an encoder and an energy are worth."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jepa_jax import planning
from jepa_jax.evals.closed_loop import baselines, planners, report
from jepa_jax.evals.closed_loop.episodes import Runner
from jepa_jax.evals.closed_loop.pursuit import Pursuit
from jepa_jax.evals.closed_loop.tabletop import Tabletop
from jepa_jax.planning.presets import OFFICIAL
from jepa_jax.sim.nuisance import Nuisance
from jepa_jax.sim.tasks import TASKS

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
      warm: start from the previous plan; None to do so with our presets and plans of several steps. A plan of one
        step has nothing left after it: its successor then starts from standing still.
      robots_at_once: plans made side by side; None for one after the other on a CPU, all at once elsewhere.
    """

    preset: str = "icem"
    changes: tuple[tuple[str, Any], ...] = ()
    energy: Any = planning.Energy()
    timer: tuple[int, ...] | str | None = TASK_TIMES
    threshold: float | None = None
    warm: bool | None = None
    robots_at_once: int | None = None


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
      at_once: episodes that will run side by side.

    Returns:
      (`Policy`, `planning.PlanSpec`); as many candidates of the model are evaluated at once as fit into memory.

    Raises:
      ValueError: the kind is unknown, model, simulator and settings do not fit together, or plans not into memory.
    """
    if kind not in (planners.MODEL, planners.ORACLE, planners.POSES):
        raise ValueError(f"there is no planner on {kind!r}; allowed: {planners.MODEL}, {planners.ORACLE}, {planners.POSES}")
    robot = trained.world.robot if kind == planners.MODEL else environment.robot
    spec = planners.planner_spec(environment, robot, settings.preset, **dict(settings.changes))
    together = settings.robots_at_once or (1 if jax.default_backend() == "cpu" else at_once)
    if kind == planners.MODEL:
        spec = planning.fit_memory(trained.world, spec, robots=together)
        dynamics = planners.model_dynamics(environment, trained.world, params, spec, settings.energy)
    elif kind == planners.ORACLE:
        dynamics = planners.oracle_dynamics(environment, sight, settings.energy)
    else:
        dynamics = planners.pose_dynamics(environment)
    warm = settings.preset not in OFFICIAL and spec.horizon > 1 if settings.warm is None else settings.warm
    pursuit = make_pursuit(environment, sight, settings)
    return planners.planner_policy(pursuit, dynamics, spec, warm=warm, robots_at_once=together), spec


def oracle_success(sight, task="reach", settings=Settings(changes=(("samples", 48), ("iterations", 2))), *, episodes=32, seeds=(0,),
                   nuisance=1.0, at_once=16):
    """Measure how well the table-top can be planned in with perfect dynamics: what eyes and energy are worth, without a model.

    Args:
      sight: `Sight`.
      task: one of `sim.tasks.TASKS`, or a `Task`.
      settings: `Settings`.
      episodes: of each seed.
      seeds: whole numbers.
      nuisance: strength from 0 to 1.
      at_once: episodes that run side by side.

    Returns:
      What `report.summarize` does: `end` and `ever` with 95 % intervals, `final_cm_quartiles`, `energy_median`.
    """
    environment = Tabletop(TASKS[task] if isinstance(task, str) else task, size=sight.size, nuisance=Nuisance.all(nuisance))
    at_once = min(at_once, episodes)
    policy, _ = make_planner(planners.ORACLE, environment, sight, settings, at_once=at_once)
    found = Runner(environment, policy, at_once=at_once, filmed=0).run(seeds, episodes)
    return report.summarize(found, policy.name, sight.name)
