"""A learned energy: how many steps two frames are apart in recorded trajectories.

Both frames are read by the same small network as a point of a few numbers, and the distance of the points is the
number of steps. A file holds one such network and what it belongs to: safetensors, with a JSON text in its header.
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

_KEY, _FORMAT, _VERSION = "jepa_jax", "temporal distance", 1
# Numbers of a token that the linear map reads.
_REDUCED = 16
# In steps: rounds the tip of the cone, so that there is a slope at the goal itself.
_TIP = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class TemporalEnergy:
    """Measure how many steps latents are from a goal. Call it like `Energy`; hashable, equal only to itself.

    Attributes:
      params: of `read_points`.
      grid: (h, w) of the latents that it was fitted on.
      encoder_sha256: identity of the encoder that made them.
      fps: frames per second: what a step is.
      frames: F of the clips that it was fitted on: what is more than F - 1 steps away is not told apart.
      fitted: what else is known about the fit, JSON-able.
    """

    params: dict[str, Any]
    grid: tuple[int, int]
    encoder_sha256: str
    fps: float
    frames: int
    fitted: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, latents, goal, grid):
        """Return float32 `[...]`, steps, for latents `[..., h*w, D]`, a goal `[h*w, D]` or `[..., h*w, D]`, and their grid (h, w)."""
        self.check_grid(grid)
        return point_distance(read_points(self.params, latents), read_points(self.params, goal))

    def check_grid(self, grid):
        """Raise ValueError unless a grid (h, w) is that of the fit."""
        if tuple(grid) != tuple(self.grid):
            (height, width), (h, w) = self.grid, grid
            raise ValueError(f"temporal distance: fitted on a grid of {height} x {width} tokens, used on one of {h} x {w}; fit it anew")

    def check_encoder(self, sha256, who="the planner"):
        """Raise ValueError unless an encoder is that of the fit.

        Args:
          sha256: identity of its weights, "" for none.
          who: sees with it, for the message.
        """
        if sha256 != self.encoder_sha256:
            other = f"the one with sha256 {sha256[:12]}..." if sha256 else "other eyes"
            raise ValueError(f"temporal distance: fitted on the encoder with sha256 {self.encoder_sha256[:12]}..., but {who} sees with "
                             f"{other}; fit it on that one")


def init_points(key, tokens, width, points=64):
    """Draw the weights of a network that reads frames as points; other arguments as in `init_readout`."""
    readout_key, reduce_key, flat_key = jax.random.split(key, 3)
    reduced = min(_REDUCED, width)
    draw = lambda key, rows, columns: jax.random.normal(key, (rows, columns)) / math.sqrt(rows)
    return init_readout(readout_key, tokens, width, points) | {
        "reduce": draw(reduce_key, width, reduced), "flat": draw(flat_key, tokens * reduced, points),
    }


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


def save_temporal(energy, path):
    """Write a `TemporalEnergy` to a new file.

    Raises:
      WeightsError: if the destination exists or cannot be written.
    """
    card = {name: getattr(energy, name) for name in ("grid", "encoder_sha256", "fps", "frames", "fitted")}
    _, width, points = _sizes(energy.params)
    card |= {"format": _FORMAT, "version": _VERSION, "width": width, "points": points}
    with tensors.whole_output(path, folder=False) as partial:
        tensors.write_safetensors(jax.tree.map(np.asarray, energy.params), partial, {_KEY: json.dumps(card)})


def load_temporal(path):
    """Read a `TemporalEnergy` that `save_temporal` wrote.

    Raises:
      WeightsError: if it is no such file, or tensors are missing, of other shapes or not finite.
    """
    params, text = tensors.read_safetensors(path), tensors.read_metadata(path).get(_KEY)
    try:
        card = json.loads(text or "null")
        if (card["format"], card["version"]) != (_FORMAT, _VERSION):
            raise KeyError("format")
        (h, w), width, points = card["grid"], card["width"], card["points"]
        rest = {"grid": (h, w)} | {name: card[name] for name in ("encoder_sha256", "fps", "frames", "fitted")}
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} holds no temporal distance; make one with python -m jepa_jax.evaluate distance") from error
    expected = jax.eval_shape(lambda: init_points(jax.random.key(0), h * w, width, points))
    shapes = lambda tree: {name: tuple(leaf.shape) for name, leaf in tree.items()}
    if wrong := set(shapes(params).items()) ^ set(shapes(expected).items()):
        raise WeightsError(f"{path}: tensors {', '.join(sorted({name for name, _ in wrong}))} are missing, unknown or of another shape than "
                           f"its header says, {h} x {w} tokens of {width}")
    if bad := [name for name, leaf in params.items() if not np.isfinite(leaf).all()]:
        raise WeightsError(f"{path}: {', '.join(sorted(bad))} hold numbers that are not finite")
    return TemporalEnergy(jax.tree.map(jnp.asarray, params), **rest)


def _sizes(params):
    """Return tokens N, width D and numbers of a point M."""
    return params["where"].shape[1], params["query"].shape[0], params["out_bias"].shape[0]
