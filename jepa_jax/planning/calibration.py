"""Find out how commanded and seen motion are related, as where a camera stands is not told to the model.

A model that was trained with one camera and looks through another infers motion in turned axes. A few moves whose
frames before and after are encoded show by how much: for each, `infer` searches the action that the model believes
was made; `fit` finds the linear map from the actions made to those; `watch` does both for frames and states. At
planning time `calibrate` takes the planner's numbers for what the robot shall do and tells the model what that will
look like to it.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.planning.latent import bind, make_root
from jepa_jax.planning.memory import fit_memory
from jepa_jax.planning.observations import encode
from jepa_jax.planning.presets import make_spec
from jepa_jax.robots.algebra import derive_actions, to_frame

# Moves that point in nearly the same direction say nothing about the others.
_MAX_CONDITION = 30.0


class Calibration(NamedTuple):
    """A linear map from commanded to seen motion, of P of the planned numbers.

    Attributes:
      matrix: float32 `[P, P]`: seen = matrix @ commanded.
      dims: places of these numbers among the planned ones.
      residual: root mean square of what the map leaves unexplained, in the robot's units.
      unexplained: that, as a share of the seen motion: 0 for a perfect map, 1 for one that says nothing.
    """

    matrix: jax.Array
    dims: tuple[int, ...]
    residual: float
    unexplained: float

    @property
    def angle(self):
        """Return by how many degrees the first two axes are turned; the nearest rotation."""
        (a, b), (c, d) = np.asarray(self.matrix)[:2, :2]
        return float(np.degrees(np.arctan2(c - b, a + d)))


def infer(planner, params, rng, roots):
    """Search for each of M moves the action that the model believes has been made.

    Args:
      planner: `latent.Planner` with a horizon of 1.
      params: of the model.
      rng: JAX key.
      roots: `Root` with a leading axis of M: frames before the moves, and as goals those after.

    Returns:
      float32 `[M, A]`, planned numbers.

    Raises:
      ValueError: if the horizon is not 1.
    """
    if planner.spec.horizon != 1:
        raise ValueError(f"calibration looks at single moves: horizon is {planner.spec.horizon}; it must be 1")

    @jax.jit
    def run(params, keys, roots):
        # One after the other, so that as many moves fit into memory as plans.
        return jax.lax.map(lambda move: planner.plan(params, *move).actions[0], (keys, roots))

    count = len(jax.tree.leaves(roots.goal)[0])
    return run(params, jax.random.split(rng, count), roots)


def fit(commanded, seen, dims):
    """Fit the linear map from commanded to seen motion by least squares.

    Args:
      commanded: `[M, A]` planned numbers that were executed, in several directions.
      seen: `[M, A]`, as `infer` returns them.
      dims: places of the numbers that the map is about, such as (0, 1) or those of a position. Others are as
        commanded.

    Returns:
      `Calibration`.

    Raises:
      ValueError: if the moves are too few, or do not span these directions; or they are not numbers.
    """
    commanded, seen = (np.asarray(moves, np.float64)[:, list(dims)] for moves in (commanded, seen))
    if commanded.shape != seen.shape:
        raise ValueError(f"{len(commanded)} commanded and {len(seen)} seen moves; there must be as many")
    if not (np.isfinite(commanded).all() and np.isfinite(seen).all()):
        raise ValueError("calibration: a move holds a number that is not finite")
    strengths = np.linalg.svd(commanded, compute_uv=False)
    if len(commanded) < len(dims) or strengths[-1] * _MAX_CONDITION < strengths[0] or not strengths[0]:
        raise ValueError(f"calibration: {len(commanded)} moves do not tell {len(dims)} directions apart; command moves of similar "
                         "length along each of them")
    solution = np.linalg.lstsq(commanded, seen, rcond=None)[0]
    left = np.sqrt(((commanded @ solution - seen) ** 2).sum(1).mean())
    whole = max(np.sqrt((seen**2).sum(1).mean()), np.finfo(np.float64).tiny)
    return Calibration(jnp.asarray(solution.T, jnp.float32), tuple(dims), float(left), float(left / whole))


def watch(trained, params, frames, states, energy=None, extrinsics=None, seed=0, **bounds):
    """Calibrate the first two coordinates of a robot's position from what its camera saw while it moved.

    Args:
      trained: `Trained`, with an encoder.
      params: of its world model.
      frames: T pictures uint8 `[H, W, 3]`, before and after each of T - 1 moves.
      states: float32 `[T, state_dim]` at these frames, as in the shards.
      energy: as in `latent.bind`.
      extrinsics: float32 `[6]`, as in `observations.see`.
      seed: of the search for what the model believes.
      **bounds: `low` and `high`, as in `presets.make_spec`.

    Returns:
      `Calibration`. Moves beyond the bounds are left out, as the search ends there.

    Raises:
      ValueError: if positions are not planned or are absolute, bounds are not known, or as `fit` does.
    """
    world, robot = trained.world, trained.world.robot
    part = robot.part("position")
    places = range(part.start, part.start + 2) if part else ()
    if not places or not set(places) <= set(robot.planned_dims) - set(robot.absolute_dims) or not robot.integrable:
        raise ValueError(f"robot {robot.name!r} cannot be calibrated: a planner must move its position, by changes of it")
    planner = bind(world, fit_memory(world, make_spec(robot, "cem", **bounds)), energy)
    _, latents = encode(trained, params, frames)
    cameras = None if extrinsics is None else np.tile(np.asarray(extrinsics, np.float32), (len(states), 1))
    made = derive_actions(dataclasses.replace(robot, source="states"), states, extrinsics=cameras)[:, list(robot.planned_dims)]
    dims = tuple(map(robot.planned_dims.index, places))
    near = ((made >= planner.spec.low) & (made <= planner.spec.high))[:, list(dims)].all(1)
    if not near.any():
        raise ValueError(f"calibration: all {len(made)} moves go beyond the bounds of one step of robot {robot.name!r}")
    cameras = cameras[:-1][near] if world.predictor.use_extrinsics else None
    poses = to_frame(robot, states[:-1], None if extrinsics is None else np.tile(extrinsics, (len(made), 1)))
    roots = make_root(world, latents[:-1][near], poses[near], latents[1:][near], cameras)
    return fit(made[near], infer(planner, params, jax.random.key(seed), roots), dims)


def seen_actions(calibration, actions):
    """Translate commanded planned numbers `[..., A]` to what they look like to the model."""
    dims = jnp.array(calibration.dims)
    return actions.at[..., dims].set(actions[..., dims] @ calibration.matrix.T)


def calibrate(planner, calibration):
    """Return the planner that searches actions to command, while its model is told what they look like."""

    def dynamics_fn(params, state, action):
        return planner.dynamics_fn(params, state, seen_actions(calibration, action))

    return planner._replace(dynamics_fn=dynamics_fn)


def exploratory_moves(spec, dims, size=0.8):
    """Return moves to calibrate with: there and back along each number and each pair of neighbouring ones.

    Args:
      spec: `PlanSpec`, for bounds.
      dims: places of the numbers to explore.
      size: share of the bounds to go to.

    Returns:
      float32 `[M, A]`; each is followed by its opposite where bounds are symmetric, so that the robot stays near.
    """
    directions = [np.eye(spec.dims)[dim] for dim in dims]
    directions += [first + second for first, second in itertools.pairwise(directions)]
    signed = np.array([sign * direction for direction in directions for sign in (1, -1)])
    low, high = np.array(spec.low), np.array(spec.high)
    return (size * np.where(signed > 0, signed * high, -signed * low)).astype(np.float32)

