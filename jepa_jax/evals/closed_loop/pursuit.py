"""Which goal a policy pursues, and how far away it looks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jepa_jax import planning
from jepa_jax.evals.closed_loop.sight import Sight


class Pursued(NamedTuple):
    """Where N episodes stand.

    Attributes:
      latents: `[N, G, h*w, D]` of all goals.
      poses: float32 `[N, G, S]` of the robot at all goals.
      progress: `planning.Progress` of `[N]`.
    """

    latents: jax.Array
    poses: jax.Array
    progress: planning.Progress


@dataclasses.dataclass(frozen=True)
class Pursuit:
    """See the goals, and go from one to the next. Hashable.

    Attributes:
      sight: `Sight`.
      energy: as in `planning.bind`.
      timer: steps for each goal, or None for no limit.
      threshold: energy below which a goal counts as reached, or None for never.

    Raises:
      ValueError: neither timer nor threshold is given.
    """

    sight: Sight
    energy: Callable[..., Any] = planning.Energy()
    timer: tuple[int, ...] | None = None
    threshold: float | None = None

    def __post_init__(self):
        """Check that goals can change."""
        if self.timer is None and self.threshold is None:
            raise ValueError("goals switch by timer, threshold or both; neither is given")

    def begin(self, params, goals):
        """See all goals; `params` are those of the sight."""
        count, each = goals.frames.shape[:2]
        latents = self.sight.see(params, goals.frames.reshape(-1, *goals.frames.shape[2:]))
        # The first look comes before the first step: it counts none.
        progress = planning.start_goals((count,))
        return Pursued(latents.reshape(count, each, *latents.shape[1:]), goals.poses, progress._replace(steps=progress.steps - 1))

    def look(self, params, pursued, seen):
        """See where the robots are, and go on to the next goal where it is time.

        Args:
          params: of the sight.
          pursued: `Pursued`.
          seen: `Observation`.

        Returns:
          (latents now, `[N, h*w, D]`; latents `[N, h*w, D]` and pose `[N, S]` of the goal; energy float32 `[N]`; `Pursued`).
        """
        now = self.sight.see(params, seen.frames)
        before = self._energy(now, _chosen(pursued.latents, pursued.progress), seen.poses)
        progress = planning.next_goal(
            pursued.progress, before, pursued.latents.shape[1], timer=self.timer, threshold=self.threshold
        )
        goal, pose = (_chosen(values, progress) for values in (pursued.latents, pursued.poses))
        return now, goal, pose, self._energy(now, goal, seen.poses), pursued._replace(progress=progress)

    def _energy(self, latents, goals, states):
        one = lambda latents, goal, state: self.energy(latents[None], goal, self.sight.grid, state[None])[0]
        return jax.vmap(one)(latents, goals, states)


def _chosen(values, progress):
    """Take the goal that is pursued from `[N, G, ...]`."""
    return jax.vmap(lambda rows, goal: rows[goal])(values, progress.goal)
