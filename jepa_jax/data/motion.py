"""Measure what the numbers of a robot trajectory do: their spread, jumps, standstills and turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jepa_jax.data.poses import rotation_steps
from jepa_jax.data.trajectories import TrajectoryRecord

# Rows of a trajectory that histograms count, evenly spaced: all rows of very many would not fit in memory.
ROWS_KEPT = 32
# A step this many times the trajectory's 95th percentile, and at least this long, is a gap: rows are missing.
GAP_FACTOR, GAP_LENGTH = 4.0, 0.02
# The least length where dimensions have no unit: part of what each covers in the trajectory.
GAP_SHARE = 0.05
_RADIANS = "rad"


class Dimensions(NamedTuple):
    """Name numbers and their units, "" for those that have none."""

    names: tuple[str, ...]
    units: tuple[str, ...]


class Layout(NamedTuple):
    """Say what the numbers of a trajectory mean; those of one layout are counted together."""

    states: Dimensions
    actions: Dimensions
    extras: Dimensions
    frame: str
    rotation: str

    def angles(self) -> np.ndarray:
        """Tell which dimensions of the state are angles, bool `[S]`."""
        found = np.array([unit == _RADIANS for unit in self.states.units], bool)
        if self.rotation != "none":
            found[3:6] = True
        return found

    def positions(self) -> np.ndarray:
        """Tell which dimensions of the state are positions, bool `[S]`."""
        return np.array([unit == "m" for unit in self.states.units], bool)

    def gap_measure(self) -> str:
        """Say what steps are compared by, to find gaps."""
        if self.positions().any():
            return "positions, m"
        return "angles, rad" if self.angles().any() else "most dimensions, each against its own range"


class Numbers(NamedTuple):
    """Hold a part of some rows, and what all of them lie between.

    Args:
        kept: float32 `[<= ROWS_KEPT per trajectory, K]`.
        low, high: float32 `[K]`, over all rows.
    """

    kept: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Motion(NamedTuple):
    """Hold what is counted of a trajectory.

    Args:
        layout: what its numbers mean.
        states, actions, extras: their numbers; None for what is not stored.
        control_rate, header_fps: rows per second, in truth and as stated.
        gaps: steps that are far longer than the others, as `Layout.gap_measure` says.
        wraps: jumps of an angle by more than pi; None where no number of the state is an angle.
        steps, idle: how many steps there are, and in how many of them no number changes.
        turn: fastest turn of the end effector, rad/s; None where the state holds no orientation.
        views: cameras.
        with_extrinsics: views whose camera pose is known.
    """

    layout: Layout
    states: Numbers
    actions: Numbers | None
    extras: Numbers | None
    control_rate: float
    header_fps: float
    gaps: int
    wraps: int | None
    steps: int
    idle: int
    turn: float | None
    views: tuple[str, ...]
    with_extrinsics: tuple[str, ...]


def layout_of(record: TrajectoryRecord) -> Layout:
    """Return what the numbers of a trajectory mean; those of extras are counted from 0 where there are several."""
    extras = [
        f"{name}[{column}]" if array.shape[1] > 1 else name
        for name, array in sorted(record.extras.items())
        for column in range(array.shape[1])
    ]
    return Layout(
        Dimensions(record.state_names, record.state_units), Dimensions(record.action_names, record.action_units),
        Dimensions(tuple(extras), ("",) * len(extras)), record.frame, record.rotation,
    )  # fmt: skip


def measure_motion(record: TrajectoryRecord) -> Motion:
    """Count what a trajectory's numbers do.

    Args:
        record: a trajectory.

    Returns:
        Its motion.
    """
    states, layout = record.states.astype(np.float64), layout_of(record)
    steps, angles = np.diff(states, axis=0), layout.angles()
    turn = None
    if record.rotation != "none":
        turn = float(rotation_steps(states[:, 3:6]).max(initial=0.0) * record.control_rate)
    extras = [array for _, array in sorted(record.extras.items())]
    return Motion(
        layout, _numbers(record.states), None if record.actions is None else _numbers(record.actions),
        _numbers(np.concatenate(extras, axis=1)) if extras else None, record.control_rate, record.header_fps,
        _count_gaps(states, layout), int((np.abs(steps[:, angles]) > np.pi).sum()) if angles.any() else None,
        len(steps), int((steps == 0).all(axis=1).sum()), turn, tuple(view.name for view in record.views),
        tuple(view.name for view in record.views if view.extrinsics is not None),
    )  # fmt: skip


def _numbers(rows: Sequence) -> Numbers:
    rows = np.asarray(rows, np.float32)
    places = np.linspace(0, len(rows) - 1, min(len(rows), ROWS_KEPT)).round().astype(int)
    return Numbers(rows[places], rows.min(0), rows.max(0))


def _count_gaps(states: np.ndarray, layout: Layout) -> int:
    """Count gaps by what has one unit: positions, or else angles, which may wrap; or else by shares of ranges."""
    steps = np.diff(states, axis=0)
    if layout.positions().any():
        return len(gap_places(np.linalg.norm(steps[:, layout.positions()], axis=1)))
    if layout.angles().any():
        turns = (steps[:, layout.angles()] + np.pi) % (2 * np.pi) - np.pi
        return len(gap_places(np.linalg.norm(turns, axis=1)))
    ranges = np.ptp(states, axis=0)
    moving = ranges > 0
    if not moving.any():
        return 0
    shares = np.sort(np.abs(steps[:, moving]) / ranges[moving], axis=1)
    # The median, or the one below: a gripper that closes at once is no gap, missing rows show in most dimensions.
    return len(gap_places(shares[:, (moving.sum() - 1) // 2], GAP_SHARE))


def gap_places(moved: np.ndarray, least: float = GAP_LENGTH) -> np.ndarray:
    """Find the steps that are far longer than the others, as where rows are missing.

    Args:
        moved: float `[n]`, lengths of steps: m, rad or shares of a range.
        least: shorter steps are no gaps, in the same unit.

    Returns:
        int64, their places.
    """
    usual = np.percentile(moved, 95) if len(moved) else 0.0
    return np.flatnonzero(moved > max(least, GAP_FACTOR * usual))
