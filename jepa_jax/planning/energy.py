"""How far latents are from those of a goal."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jepa_jax.models.aggregate import average_tokens


def _cosine(latents, goal):
    norms = jnp.linalg.norm(latents, axis=-1) * jnp.linalg.norm(goal, axis=-1)
    return (1 - (latents * goal).sum(-1) / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)).mean(-1)


DISTANCES = {
    "l1": lambda latents, goal: jnp.abs(latents - goal).mean((-2, -1)),
    "l2": lambda latents, goal: ((latents - goal) ** 2).mean((-2, -1)),
    "cosine": _cosine,
}


@dataclasses.dataclass(frozen=True)
class Energy:
    """Measure the distance of latents from a goal. Hashable; call it like a function.

    Attributes:
      distance: of `DISTANCES`: mean absolute difference (official), mean squared difference, or 1 - cosine of
        the angle between tokens.
      pool: squares of so many by so many tokens are averaged first.
      smooth: times that tokens are first averaged with their neighbours (weights 1 2 1 along rows and columns),
        so that things that do not overlap still attract each other.

    Raises:
      ValueError: an unknown distance, or a number that is too small.
    """

    distance: str = "l1"
    pool: int = 1
    smooth: int = 0

    def __post_init__(self):
        """Check the attributes."""
        if self.distance not in DISTANCES:
            raise ValueError(f"energy: distance is {self.distance!r}; it must be one of {', '.join(DISTANCES)}")
        for name, least in (("pool", 1), ("smooth", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"energy: {name} is {getattr(self, name)}; it must be at least {least}")

    def check_grid(self, grid):
        """Raise ValueError unless squares of `pool` tokens fill a grid (h, w)."""
        if any(side % self.pool for side in grid):
            raise ValueError(f"energy: pool is {self.pool}, which does not divide a grid of {grid[0]} x {grid[1]} tokens")

    def __call__(self, latents, goal, grid, states=None):
        """Return float32 `[...]` for latents `[..., h*w, D]`, a goal `[h*w, D]` or `[..., h*w, D]`, and their grid (h, w); states do not count."""
        del states
        self.check_grid(grid)
        return DISTANCES[self.distance](*(self._prepare(tokens.astype(jnp.float32), grid) for tokens in (latents, goal)))

    def _prepare(self, tokens, grid):
        if self.pool == 1 and not self.smooth:
            return tokens
        image = tokens.reshape(*tokens.shape[:-2], *grid, -1)
        for _ in range(self.smooth):
            image = _smooth(_smooth(image, -3), -2)
        return average_tokens(image.reshape(tokens.shape), grid, (self.pool, self.pool))


def _smooth(image, axis):
    """Average with the neighbours along an axis; the border is its own neighbour."""
    size = image.shape[axis]
    left = jnp.take(image, jnp.maximum(jnp.arange(size) - 1, 0), axis=axis)
    right = jnp.take(image, jnp.minimum(jnp.arange(size) + 1, size - 1), axis=axis)
    return 0.25 * left + 0.5 * image + 0.25 * right
