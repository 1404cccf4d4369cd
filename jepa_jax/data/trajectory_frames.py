"""The frames of stored trajectories whose features are to be kept: which they are, decoded and cropped."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from jepa_jax.data import remote, transforms
from jepa_jax.data.errors import DataError
from jepa_jax.data.latents import DTYPE, Origin
from jepa_jax.data.records import ShardSource, count_records, resolve_shards
from jepa_jax.data.trajectories import KIND, TrajectoryRecord, View
from jepa_jax.data.trajectory_clips import trajectory_step
from jepa_jax.data.video import decode_frame_list

ALL_FRAMES = 0
_OPEN_SHARDS = 8
# How much of the data is read for an estimate.
_SAMPLED_SHARDS, _SAMPLED_RECORDS = 4, 32


class StoredTrajectory(NamedTuple):
    """Name a trajectory in shards; `shard_bytes` tells one version of a shard from another."""

    path: str
    index: int
    shard_bytes: int

    @property
    def name(self) -> str:
        """Name the trajectory in reports."""
        return f"{self.path}#{self.index}"


class DecodedTrajectory(NamedTuple):
    """Hold a trajectory without its videos, and the frames to encode.

    Args:
        record: its views hold neither videos nor latents.
        rows: of the trajectory, ascending.
        frames: uint8 `[n, S, S, 3]` of these rows, per view.
    """

    record: TrajectoryRecord
    rows: tuple[int, ...]
    frames: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class FrameSpec:
    """Say what is encoded of a trajectory, and by what; it is part of the manifest of the shards made.

    Args:
        encoder_sha256: identity of the encoder's weights.
        compute_dtype: it runs in.
        grid, width: (h, w) tokens of a frame, each of this width.
        size: side of the crops, pixels.
        aspect: smallest and largest width/height of what is cropped; the largest centered box is.
        fps: rate of the frames, frames per second, as the sampling rule of training counts.
        phases: how many first frames windows may have within a step, evenly spaced; ALL_FRAMES for every one.
        views: names of the cameras; all of a trajectory if empty.
    """

    kind: ClassVar[str] = KIND
    encoder_sha256: str
    compute_dtype: str
    grid: tuple[int, int]
    width: int
    size: int
    aspect: tuple[float, float]
    fps: float
    phases: int
    views: tuple[str, ...]

    @property
    def origin(self) -> Origin:
        """Say what makes the latents."""
        return Origin(self.grid, self.width, self.encoder_sha256, (self.size, *self.aspect))

    @property
    def frame_bytes(self) -> int:
        """Return what the latents of one frame take."""
        return self.grid[0] * self.grid[1] * self.width * DTYPE.itemsize

    def rows(self, record: TrajectoryRecord) -> np.ndarray:
        """Choose the rows that are encoded, int64, ascending from 0.

        Raises:
            DataError: 'rate too low'.
        """
        try:
            step = trajectory_step(record.sampling_fps, self.fps)
        except DataError as error:
            raise DataError(error.reason, f"{record.source_id}: {error} (--fps)") from error
        phases = step if self.phases == ALL_FRAMES else min(self.phases, step)
        offsets = np.arange(phases) * step // phases
        every = np.arange(record.num_frames)
        return every[np.isin(every % step, offsets)]

    def chosen_views(self, record: TrajectoryRecord) -> list[View]:
        """Choose the views that are encoded.

        Raises:
            DataError: 'missing view', or 'no frames' where a view holds latents already.
        """
        known = {view.name: view for view in record.views}
        lost = [name for name in self.views if name not in known]
        if lost:
            raise DataError(
                "missing view", f"{record.source_id}: no view {', '.join(lost)}; there are {', '.join(known)}"
            )
        chosen = [known[name] for name in self.views or known]
        for view in chosen:
            if not view.data:
                raise DataError(
                    "no frames",
                    f"{record.source_id}: view {view.name!r} holds features ({view.latents.origin}) instead of frames; "
                    "give the shards they were made from",
                )
        return chosen

    def convert(self, item: StoredTrajectory) -> DecodedTrajectory:
        """Read a trajectory, decode and crop its frames.

        Raises:
            DataError: it cannot be read or decoded, or as in `rows` and `chosen_views`.
        """
        record = _open_shard(item.path)[item.index]
        rows = self.rows(record)
        views = self.chosen_views(record)
        frames = tuple(self._cropped(record, view, rows) for view in views)
        bare = tuple(view._replace(data=b"", latents=None) for view in views)
        return DecodedTrajectory(record._replace(views=bare), tuple(rows.tolist()), frames)

    def _cropped(self, record: TrajectoryRecord, view: View, rows: np.ndarray) -> np.ndarray:
        try:
            frames = decode_frame_list(view.data, rows)
        except DataError as error:
            raise DataError(error.reason, f"{record.source_id}, view {view.name!r}: {error}") from error
        except IndexError as error:
            raise DataError(
                "fewer frames than stated", f"{record.source_id}, view {view.name!r}: {error}"
            ) from error
        box = transforms.centered_crop_box(*frames[0].shape[:2], self.aspect)
        return transforms.crop_resize_uint8(frames, box, self.size)


@functools.lru_cache(_OPEN_SHARDS)
def _open_shard(path: str) -> ShardSource:
    return ShardSource([path], KIND)


def list_trajectories(paths: Sequence[str]) -> list[StoredTrajectory]:
    """List all records of shards of trajectories.

    Args:
        paths: as in `records.resolve_shards`.

    Raises:
        FileNotFoundError, DataError: as in `ShardSource`.
    """
    items = []
    for path in resolve_shards(paths):
        size = remote.size(path) or 0
        items += [StoredTrajectory(path, index, size) for index in range(count_records(path))]
    return items


class Estimate(NamedTuple):
    """Hold what the features of all trajectories come to, by those that were looked at.

    Args:
        looked_at: trajectories that were read.
        frames: to be encoded, of all views.
        num_bytes: of their latents.
    """

    looked_at: int
    frames: int
    num_bytes: int


def estimate(items: Sequence[StoredTrajectory], spec: FrameSpec) -> Estimate:
    """Estimate the work from a few trajectories; exact where there are no more.

    Args:
        items: at least one.
        spec: what is encoded.

    Raises:
        DataError: why none of those looked at can be used; also where the shards hold clips, not trajectories.
    """
    paths = list(dict.fromkeys(item.path for item in items))
    near = {paths[place] for place in _spread(len(paths), _SAMPLED_SHARDS)}
    sampled = [item for item in items if item.path in near]
    counts, problems = [], []
    for place in _spread(len(sampled), _SAMPLED_RECORDS):
        item = sampled[place]
        try:
            record = _open_shard(item.path)[item.index]
            counts.append(len(spec.rows(record)) * len(spec.chosen_views(record)))
        except DataError as error:
            problems.append(error)
    if not counts:
        raise problems[0]
    frames = round(sum(counts) / (len(counts) + len(problems)) * len(items))
    return Estimate(len(counts) + len(problems), frames, frames * spec.frame_bytes)


def _spread(count: int, wanted: int) -> list[int]:
    """Choose up to `wanted` of 0 .. count - 1, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)).tolist()
