"""What a network is told about a sample of a trajectory: states and actions, as a `RobotSpec` defines them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jepa_jax.data.errors import DataError
from jepa_jax.data.trajectories import TrajectoryRecord
from jepa_jax.data.trajectory_clips import TrajectoryClip
from jepa_jax.robots.algebra import derive_actions, to_frame
from jepa_jax.robots.checks import check_record
from jepa_jax.robots.spec import RobotSpec


@dataclass(frozen=True)
class ConditionMaker:
    """Turn the numbers of a sample into states and actions; picklable, for data workers.

    Args:
        spec: the robot.
        views: names of the cameras that are used; None for all of a record's.
    """

    spec: RobotSpec
    views: tuple[str, ...] | None = None

    def __call__(self, record: TrajectoryRecord, clip: TrajectoryClip) -> tuple[np.ndarray, np.ndarray]:
        """Return states and actions of a sample, computed in float64.

        Args:
            record: the trajectory.
            clip: a sample of it.

        Returns:
            float32 `[T, S]` in the robot's frame, and float32 `[T - 1, A]`.

        Raises:
            DataError: as in `check_record`, or 'no actions', for numbers that no action describes.
        """
        check_record(self.spec, record, self.views)
        states = clip.states.astype(np.float64)
        extrinsics = None if clip.extrinsics is None else clip.extrinsics.astype(np.float64)
        recorded = None if clip.recorded is None else clip.recorded.astype(np.float64)
        try:
            actions = derive_actions(self.spec, states, recorded, extrinsics)
            states = to_frame(self.spec, states, extrinsics)
        except ValueError as error:
            raise DataError("no actions", f"{record.source_id}: {error}") from error
        return states.astype(np.float32), actions.astype(np.float32)
