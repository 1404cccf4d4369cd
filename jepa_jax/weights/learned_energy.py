"""A learned energy: how far two frames are apart in recorded trajectories, in steps and in what the robot says of itself.

Of each distance there is a small network that reads a frame as a point of a few numbers; the distance of the points of two
frames is what is measured. One more may read from the goal how far the gripper is to be closed: how far it is, robots report.
A file holds these networks and what they belong to: safetensors, with a JSON text in its header.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.models.attentive_readout import apply_readout, init_readout
from jepa_jax.models.norms import normalize_latents
from jepa_jax.weights import tensors
from jepa_jax.weights.bundle import WeightsError

# Time between frames, the change of the robot's state in units of its usual change in one step, and how far its tool has to go
# as fast as it can: all count steps.
DISTANCES = ("steps", "states", "position")
GRIPPER = "gripper"
MEASURES = (*DISTANCES, GRIPPER)
_KEY, _FORMAT, _VERSION = "jepa_jax", "learned distance", 3
# Numbers of a token that the linear map reads.
_REDUCED = 16
# Fingers are small: reading them takes more than reading where an arm is.
_READER = {"queries": 32, "hidden": 512}
# In steps: rounds the tip of the cone, so that there is a slope at the goal itself.
_TIP = 0.01
# Of the distance beside what is longer, so that arms come nearer while fingers move.
_BESIDE = 0.2
# Fingers are to close so many times as far as the goal shows: they are stopped by what they hold, and hold nothing if they stop
# before it, as they would half a step from a goal: the distance of points hardly falls below that.
_FURTHER = 1.5
# Energy of one step of the fingers. Far from a goal nothing else says that they are not to move, and what they hold is lost if they do.
_PRICE = 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedEnergy:
    """Measure how many steps latents are from a goal, the sum over measures. Call it like `Energy`; hashable, equal only to itself.

    Attributes:
      params: dict of measure, of `MEASURES`, -> parameters of `read_points`; at least one is a distance.
      grid: (h, w) of the latents that it was fitted on.
      encoder_sha256: identity of the encoder that made them.
      fps: frames per second: what a step is.
      frames: F of the clips that it was fitted on: what is more than F - 1 steps away is not told apart.
      fitted: what else is known about the fit, JSON-able.
      gripper: (number of the robot's state that is the gripper, how much of it changes in a step when it moves); None without 'gripper'.
    """

    params: dict[str, Any]
    grid: tuple[int, int]
    encoder_sha256: str
    fps: float
    frames: int
    fitted: dict[str, Any] = dataclasses.field(default_factory=dict)
    gripper: tuple[int, float] | None = None

    def __call__(self, latents, goal, grid, states=None):
        """Measure the steps to a goal.

        Args:
          latents: `[..., h*w, D]`.
          goal: `[h*w, D]` or `[..., h*w, D]`.
          grid: (h, w).
          states: float `[..., S]` of the robot at the latents, as it reports them or as they follow from its actions; needed with 'gripper'.

        Returns:
          float32 `[...]`: the sum of the distances; with 'gripper' its steps where these are more, plus a part of that sum.

        Raises:
          ValueError: another grid than that of the fit, or states are needed and missing.
        """
        self.check_grid(grid)
        distance = sum(point_distance(read_points(one, latents), read_points(one, goal)) for one in self._distances())
        if self.gripper is None:
            return distance
        if states is None:
            raise ValueError(f"learned distance: with {GRIPPER!r} it compares the goal with what the robot reports; states are missing")
        number, step = self.gripper
        # Closed is 1 for every robot of a known range.
        asked = jnp.minimum(_FURTHER * read_points(self.params[GRIPPER], goal)[..., -1], 1 / step)
        # Arm and fingers move at once, so the longer way counts; were the sum to count, fingers would close on the way.
        return jnp.maximum(distance, jnp.abs(states[..., number] / step - asked)) + _BESIDE * distance

    def effort(self, change):
        """Return the energy float32 `[...]` of moving the gripper by so much of its state; 0 without 'gripper'."""
        return jnp.zeros_like(change) if self.gripper is None else _PRICE * jnp.abs(change) / self.gripper[1]

    def _distances(self):
        return [params for measure, params in self.params.items() if measure != GRIPPER]

    def misread(self, latents, targets):
        """Return float32 `[...]`, steps squared: how far points of latents `[..., h*w, D]` are from where they should be, those of targets.

        Unlike the energy of one to the other it is the same in all directions, and has a slope everywhere.
        """
        return sum(((read_points(one, latents) - read_points(one, targets)) ** 2).sum(-1) for one in self._distances())

    def check_grid(self, grid):
        """Raise ValueError unless a grid (h, w) is that of the fit."""
        if tuple(grid) != tuple(self.grid):
            (height, width), (h, w) = self.grid, grid
            raise ValueError(f"learned distance: fitted on a grid of {height} x {width} tokens, used on one of {h} x {w}; fit it anew")

    def check_robot(self, robot):
        """Raise ValueError unless a robot has the gripper of the fit, and its states follow from its actions."""
        if self.gripper is None:
            return
        if robot.gripper != self.gripper[0]:
            raise ValueError(f"learned distance: fitted on a robot whose gripper is number {self.gripper[0]} of its state; of robot {robot.name!r} "
                             f"it is {robot.gripper}; fit it on trajectories of that one, or --of others than {GRIPPER}")
        if not robot.integrable:
            raise ValueError(f"learned distance: it needs to know how far the gripper will be closed, but the states of robot {robot.name!r} cannot "
                             f"be computed from its actions; fit one --of others than {GRIPPER}")

    def check_encoder(self, sha256, who="the planner"):
        """Raise ValueError unless an encoder is that of the fit.

        Args:
          sha256: identity of its weights, "" for none.
          who: sees with it, for the message.
        """
        if sha256 != self.encoder_sha256:
            other = f"the one with sha256 {sha256[:12]}..." if sha256 else "other eyes"
            raise ValueError(f"learned distance: fitted on the encoder with sha256 {self.encoder_sha256[:12]}..., but {who} sees with "
                             f"{other}; fit it on that one")


def init_points(key, tokens, width, points=64, **size):
    """Draw the weights of a network that reads frames as points; other arguments as in `init_readout`."""
    readout_key, reduce_key, flat_key = jax.random.split(key, 3)
    reduced = min(_REDUCED, width)
    draw = lambda key, rows, columns: jax.random.normal(key, (rows, columns)) / math.sqrt(rows)
    return init_readout(readout_key, tokens, width, points, **size) | {
        "reduce": draw(reduce_key, width, reduced), "flat": draw(flat_key, tokens * reduced, points),
    }


def init_reading(key, tokens, width, numbers):
    """Draw the weights of a network that reads a gripper, and what is read beside it: a larger one of the same kind."""
    return init_points(key, tokens, width, numbers, **_READER)


def read_points(params, latents):
    """Read frames `[..., N, D]`, normalised before use, as points float32 `[..., M]`.

    A linear map of all tokens, whose random start keeps the distances of latents, plus what queries find, which can
    say where a thing is.
    """
    tokens = normalize_latents(jnp.asarray(latents, jnp.float32))
    reduced = tokens @ params["reduce"]
    return reduced.reshape(*reduced.shape[:-2], -1) @ params["flat"] + apply_readout(params, tokens)


def point_distance(points, others):
    """Return the distance `[...]` of points `[..., M]`: Euclidean, but smooth where it is 0."""
    return jnp.sqrt(((points - others) ** 2).sum(-1) + _TIP**2) - _TIP


def save_learned(energy, path):
    """Write a `LearnedEnergy` to a new file.

    Raises:
      WeightsError: if the destination exists or cannot be written.
    """
    card = {name: getattr(energy, name) for name in ("grid", "encoder_sha256", "fps", "frames", "fitted", "gripper")}
    sizes = {measure: params["out_bias"].shape[0] for measure, params in energy.params.items()}
    width = next(iter(energy.params.values()))["query"].shape[0]
    card |= {"format": _FORMAT, "version": _VERSION, "width": width, "points": sizes}
    arrays = {f"{measure}.{name}": np.asarray(leaf) for measure, params in energy.params.items() for name, leaf in params.items()}
    with tensors.whole_output(path, folder=False) as partial:
        tensors.write_safetensors(arrays, partial, {_KEY: json.dumps(card)})


def load_learned(path):
    """Read a `LearnedEnergy` that `save_learned` wrote.

    Raises:
      WeightsError: if it is no such file, or tensors are missing, of other shapes or not finite.
    """
    arrays, text = tensors.read_safetensors(path), tensors.read_metadata(path).get(_KEY)
    try:
        card = json.loads(text or "null")
        if (card["format"], card["version"]) != (_FORMAT, _VERSION):
            raise KeyError("format")
        (h, w), width, points = card["grid"], card["width"], dict(card["points"])
        gripper = (int(card["gripper"][0]), float(card["gripper"][1])) if card["gripper"] else None
        if not set(points) & set(DISTANCES) or not set(points) <= set(MEASURES) or (GRIPPER in points) != (gripper is not None):
            raise KeyError("points")
        rest = {"grid": (h, w), "gripper": gripper} | {name: card[name] for name in ("encoder_sha256", "fps", "frames", "fitted")}
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} holds no learned distance; make one with python -m jepa_jax.evaluate distance") from error
    expected = {
        f"{measure}.{name}": tuple(leaf.shape) for measure, size in points.items()
        for name, leaf in jax.eval_shape(lambda: (init_reading if measure == GRIPPER else init_points)(jax.random.key(0), h * w, width, size)).items()
    }
    if wrong := {name: tuple(leaf.shape) for name, leaf in arrays.items()}.items() ^ expected.items():
        raise WeightsError(f"{path}: tensors {', '.join(sorted({name for name, _ in wrong}))} are missing, unknown or of another shape than "
                           f"its header says, {h} x {w} tokens of {width}")
    if bad := [name for name, leaf in arrays.items() if not np.isfinite(leaf).all()]:
        raise WeightsError(f"{path}: {', '.join(sorted(bad))} hold numbers that are not finite")
    params = {measure: {} for measure in points}
    for name, leaf in arrays.items():
        measure, _, own = name.partition(".")
        params[measure][own] = jnp.asarray(leaf)
    return LearnedEnergy(params, **rest)
