"""The energy over the box of actions: where its minimum is, and how the true action fares."""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

import jax
import numpy as np

from jepa_jax.planning.rollouts import make_score

# Source: notebooks/energy_landscape_example.ipynb.
NOTEBOOK_POINTS, NOTEBOOK_REACH = 5, 0.075
_CHUNK = 64


class Landscape(NamedTuple):
    """Energies of single actions, N of P numbers each varied, and of random ones.

    Attributes:
      dims: places among the planned numbers of the two that are drawn: across, up.
      axes: float32 `[N]` for each of them.
      energies: float32 `[N up, N across]`; the mean over the others where those are varied too.
      others: what the remaining numbers are, for people.
      lowest: float32 `[A]`, the action of least energy of all that were evaluated.
      still: float32 `[A]`, the action that moves nothing; None if it is not known.
      true, true_energy: float32 `[A]` and float, the action that was made; None if it is not known.
      rank, samples: the true action is the rank-th best (from 1 on) among so many random ones and itself.
    """

    dims: tuple[int, int]
    axes: tuple[np.ndarray, np.ndarray]
    energies: np.ndarray
    others: str
    lowest: np.ndarray
    still: np.ndarray
    true: np.ndarray | None
    true_energy: float | None
    rank: int | None
    samples: int


def measure(planner, params, root, dims, *, points=25, still=None, true=None, samples=1000, seed=0):
    """Evaluate a grid over two numbers of the action, the others as in the true action (within the bounds), as if nothing moves, or as a search starts.

    Args:
      planner: `latent.Planner` with a horizon of 1; its bounds are those of the box.
      params: of the model.
      root: `Root`.
      dims: places of the two numbers among the planned ones.
      points: N, along each of them.
      still: float32 `[A]`, planned numbers that move nothing; None if they are not known.
      true: float32 `[A]`, planned numbers of the action that was made; None if it is not known.
      samples: random actions of the whole box, against which the true one is ranked.
      seed: of these.

    Returns:
      `Landscape`.

    Raises:
      ValueError: if the horizon is not 1, the two numbers are not two, or one has no range.
    """
    spec = planner.spec
    _check(spec, dims)
    if flat := [dim for dim in dims if spec.low[dim] >= spec.high[dim]]:
        name = planner.robot.action_names[planner.robot.planned_dims[flat[0]]]
        raise ValueError(f"the bounds of {name} are {spec.low[flat[0]]:g} to {spec.high[flat[0]]:g}, so there is nothing to draw over it")
    axes = [np.linspace(spec.low[dim], spec.high[dim], points, dtype=np.float32) for dim in dims]
    base, others = _others(spec, still)
    if true is not None:
        # A goal may be more than a step away; the model has seen no action as long as that.
        base = np.clip(true, spec.low, spec.high)
        others = "other numbers as in the true action" + (", within the bounds" if (base != np.float32(true)).any() else "")
    actions = np.tile(np.array(base, np.float32), (points, points, 1))
    actions[..., dims[0]], actions[..., dims[1]] = axes[0], axes[1][:, None]
    return _finish(planner, params, root, dims, axes, actions, others, still, true, samples, seed)


def measure_notebook(planner, params, root, dims, *, still=None, true=None, samples=1000, seed=0):
    """Evaluate the official grid: 5 x 5 x 5 positions up to 0.075 m, the mean over the axis that is not drawn.

    Args:
      planner, params, root, dims, still, true, samples, seed: as in `measure`; the position must be planned, as changes.

    Returns:
      `Landscape`.

    Raises:
      ValueError: as `measure`; or if the position of the robot has not three planned numbers.

    Source: notebooks/energy_landscape_example.ipynb (which sums over the axis instead).
    """
    robot, spec = planner.robot, planner.spec
    # Elsewhere the numbers of an action do not lie where those of a state do.
    part = robot.part("position") if robot.integrable else None
    places = [robot.planned_dims.index(at) for at in range(part.start, part.stop) if at in robot.planned_dims] if part else []
    changes = [at for at in places if robot.planned_dims[at] not in robot.absolute_dims]
    if len(changes) != 3 or not set(dims) <= set(places):
        raise ValueError(f"the grid of the notebook is over planned changes of three positions, two of which are drawn; robot "
                         f"{robot.name!r} has {len(changes)}")
    _check(spec, dims)
    (rest,) = set(places) - set(dims)
    axis = np.linspace(-NOTEBOOK_REACH, NOTEBOOK_REACH, NOTEBOOK_POINTS, dtype=np.float32)
    base, others = _others(spec, still)
    actions = np.tile(np.array(base, np.float32), (*(NOTEBOOK_POINTS,) * 3, 1))
    for up, across, other in itertools.product(range(NOTEBOOK_POINTS), repeat=3):
        actions[up, across, other, [dims[1], dims[0], rest]] = axis[[up, across, other]]
    name = robot.action_names[robot.planned_dims[rest]]
    others = f"mean over {name}, {others}"
    return _finish(planner, params, root, dims, [axis, axis], actions, others, still, true, samples, seed)


def _others(spec, still):
    """Return an action whose numbers those that are not varied have, and what it is, for people."""
    return (spec.start, "other numbers where a search starts") if still is None else (still, "other numbers as if nothing moves")


def _check(spec, dims):
    if spec.horizon != 1:
        raise ValueError(f"a landscape is that of single actions: horizon is {spec.horizon}; it must be 1")
    if len(set(dims)) != 2 or not all(dim in range(spec.dims) for dim in dims):
        raise ValueError(f"dims are {dims}; they must be two different places from 0 to {spec.dims - 1}")


def _finish(planner, params, root, dims, axes, actions, others, still, true, samples, seed):
    """Evaluate the grid, random actions and the true one together."""
    spec = planner.spec
    drawn = np.random.default_rng(seed).uniform(spec.low, spec.high, (samples, spec.dims)).astype(np.float32)
    known = np.zeros((0, spec.dims), np.float32) if true is None else np.array(true, np.float32)[None]
    grid = actions.reshape(-1, spec.dims)
    everything = np.concatenate([grid, drawn, known])
    found = _evaluate(planner, params, root, everything)
    energies = found[: len(grid)].reshape(*actions.shape[:2], -1).mean(-1)
    true_energy = None if true is None else float(found[-1])
    rank = None if true is None else 1 + int((found[len(grid) : len(grid) + samples] < true_energy).sum())
    lowest = everything[int(np.argmin(found[: len(grid) + samples]))]
    true = None if true is None else known[0]
    still = None if still is None else np.array(still, np.float32)
    return Landscape(tuple(dims), tuple(axes), energies, others, lowest, still, true, true_energy, rank, samples)


def _evaluate(planner, params, root, actions):
    spec = planner.spec if planner.spec.chunk else dataclasses.replace(planner.spec, chunk=_CHUNK)

    @jax.jit
    def run(params, root, actions):
        return make_score(params, root, planner.dynamics_fn, planner.cost_fn, spec)(actions[:, None])

    found = np.asarray(run(params, root, actions))
    if not np.isfinite(found).all():
        raise ValueError(f"{int((~np.isfinite(found)).sum())} of {len(found)} energies are not finite: the training of the action "
                         "predictor has diverged")
    return found
