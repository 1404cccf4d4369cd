"""Planners with a name: what each sets in a `PlanSpec`, and how they are fitted to a robot."""

from __future__ import annotations

import dataclasses

from jepa_jax.planning.spec import PlanSpec, as_tuple

# Numbers of the official planner for the gripper, whatever the preset. Source: notebooks/utils/mpc_utils.py (cem).
_GRIPPER = {"std": 1.0, "momentum_mean": 0.15, "momentum_std": 0.15, "deadzone": 0.25}
_GRIPPER_BOUND = 0.75
# Settings of the official planner, and the bound of a step of the hand along each axis, in metres.
# Source: `cem`: notebooks/utils/mpc_utils.py; `world_model`: notebooks/utils/world_model_wrapper.py; `notebook`:
# notebooks/energy_landscape_example.ipynb; `paper`: section 4 (momenta are not stated there: those of `world_model`).
OFFICIAL = {
    "cem_default": (0.05, {"horizon": 1, "samples": 100, "iterations": 100, "elites": 10, "momentum_mean": 0.25, "momentum_std": 0.95}),
    "world_model_default": (0.05, {"horizon": 2, "samples": 400, "iterations": 10, "elites": 10, "momentum_mean": 0.15, "momentum_std": 0.15}),
    "notebook": (0.075, {"horizon": 2, "samples": 25, "iterations": 2, "elites": 10, "momentum_mean": 0.15, "momentum_std": 0.75}),
    "paper": (0.075, {"horizon": 1, "samples": 800, "iterations": 10, "elites": 10, "momentum_mean": 0.15, "momentum_std": 0.15}),
}  # fmt: skip
# Ours, for any robot. Improved cross-entropy method: arXiv 2008.06389; path integrals: arXiv 1707.02342.
GENERAL = {
    "cem": {"samples": 128, "iterations": 5, "elites": 10, "momentum_mean": 0.1, "momentum_std": 0.1},
    "icem": {"samples": 64, "iterations": 4, "elites": 8, "momentum_mean": 0.1, "momentum_std": 0.1, "noise_color": 2.0,
             "keep": 3, "include_mean": True, "choice": "best"},
    "mppi": {"samples": 128, "iterations": 5, "elites": 128, "temperature": 0.3, "momentum_std": 0.2, "include_mean": True},
    "gradient": {"samples": 1, "iterations": 0, "gradient_steps": 24, "restarts": 4, "learning_rate": 0.15, "choice": "best"},
    "hybrid": {"samples": 32, "iterations": 2, "elites": 6, "keep": 2, "include_mean": True, "gradient_steps": 6, "restarts": 2,
               "learning_rate": 0.1, "choice": "best"},
    "precise": {"samples": 64, "iterations": 2, "elites": 6, "keep": 2, "include_mean": True, "gradient_steps": 8, "restarts": 6,
                "polish_steps": 42, "learning_rate": 0.2, "choice": "best"},
}  # fmt: skip
PRESETS = (*GENERAL, *OFFICIAL)


def make_spec(robot, preset="icem", *, low=None, high=None, **changes):
    """Make the settings of a planner for a robot.

    Args:
      robot: `RobotSpec`; what it calls planned is searched.
      preset: one of `PRESETS`. Those of `OFFICIAL` have bounds of their own for a hand with a gripper, that is a
        robot with the numbers of the preset 'droid'.
      low, high: bounds of an action of one step, one number for each planned action (`robot.planned_dims`) in the
        robot's units; instead of those of the robot or preset. Where both are the same, that number is fixed.
      **changes: fields of `PlanSpec` in place of the preset's. Numbers of actions are places among the planned ones.

    Returns:
      `PlanSpec`.

    Raises:
      ValueError: unknown preset or field, a field that does not fit, a number fixed outside of its bounds, or bounds that nothing states.
    """
    if preset not in PRESETS:
        raise ValueError(f"planner {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    known = {field.name for field in dataclasses.fields(PlanSpec)}
    if unknown := sorted(set(changes) - known):
        raise ValueError(f"a planner has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    fields = _official(robot, preset) if preset in OFFICIAL else dict(GENERAL[preset])
    fields |= _bounds(robot, fields, low, high)
    if isinstance(changes.get("samples"), int) and "elites" not in changes and fields["iterations"]:
        # Path integrals weight all candidates; others cannot have more elites than candidates.
        every = fields["elites"] == fields["samples"]
        fields["elites"] = changes["samples"] if every else min(fields["elites"], changes["samples"])
    draws = fields["iterations"] or "iterations" in changes
    if not draws and (unused := [name for name in ("samples", "elites", "keep") if name in changes]):
        raise ValueError(f"planner {preset!r} draws no candidates, so {', '.join(unused)} would do nothing; leave it out, or give iterations")
    fields |= changes
    fixed = as_tuple(fields.get("fixed", ()))
    stated = {entry[0] for entry in fixed if isinstance(entry, (tuple, list)) and entry}
    alike = [(dim, low) for dim, (low, high) in enumerate(zip(fields["low"], fields["high"])) if low == high and dim not in stated]
    spec = PlanSpec(**(fields | {"fixed": (*fixed, *alike)}))
    for dim, value in spec.fixed:
        # A number that never changed in the data has no bounds, only a value.
        if spec.low[dim] < spec.high[dim] and not spec.low[dim] <= value <= spec.high[dim]:
            raise ValueError(f"planner: {robot.action_names[robot.planned_dims[dim]]} is fixed to {value:g}; its bounds allow {spec.low[dim]:g} "
                             f"to {spec.high[dim]:g}")
    return spec


def _bounds(robot, fields, low, high):
    """Return bounds as given, or else as the preset or the robot has them."""
    names, found = ", ".join(robot.action_names[at] for at in robot.planned_dims), {}
    for name, given, own in (("low", low, robot.action_low), ("high", high, robot.action_high)):
        known = fields.get(name) or tuple(own[at] for at in robot.planned_dims if own)
        found[name] = known if given is None else as_tuple(given)
        if not found[name]:
            raise ValueError(f"robot {robot.name!r}: the bounds of an action are not known; give LOW:HIGH for each of {names}, with commas "
                             "between them (--bounds; in Python low and high), or state robot.action_low and robot.action_high in the "
                             "config of the training")
        if len(found[name]) != len(robot.planned_dims):
            raise ValueError(f"robot {robot.name!r}: the {name} bounds of an action are {len(found[name])} numbers; give one for each of "
                             f"{names}")
    return found


def _official(robot, preset):
    """Lay the settings of an official preset out for a robot, number by number."""
    reach, fields = OFFICIAL[preset]
    position = robot.part("position")
    expected = position and (*range(position.start, position.stop), robot.gripper)
    absolute = set(robot.absolute_dims) & set(robot.planned_dims)
    if not robot.integrable or robot.planned_dims != expected or absolute:
        planned = ", ".join(robot.action_names[at] + " (absolute)" * (at in absolute) for at in robot.planned_dims)
        raise ValueError(f"planner {preset!r} is the official one, whose actions are changes of x, y, z and a gripper; robot "
                         f"{robot.name!r} plans {planned}; choose one of {', '.join(GENERAL)}")
    per_dim = lambda others, own: tuple(own if at == robot.gripper else others for at in robot.planned_dims)
    fields = fields | {
        "std": per_dim(reach, _GRIPPER["std"]), "deadzone": per_dim(0.0, _GRIPPER["deadzone"]),
        "momentum_mean": per_dim(fields["momentum_mean"], _GRIPPER["momentum_mean"]),
        "momentum_std": per_dim(fields["momentum_std"], _GRIPPER["momentum_std"]),
    }
    bounds = per_dim(reach, _GRIPPER_BOUND)
    return fields | {"low": tuple(-bound for bound in bounds), "high": bounds}
