"""Samples of held-out trajectories, each one known by the trajectory that it comes from."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from jepa_jax.data.errors import DataError
from jepa_jax.data.opening import LOOKED_AT, readable
from jepa_jax.data.specs import CropSpec, GroupSpec, SourceSpec
from jepa_jax.data.trajectory_pipeline import SampleMaker
from jepa_jax.robots.conditions import ConditionMaker

# A crop larger than the frame never fits: what is cut is the largest centered one.
CENTERED = (1.777, 1.777)
_THREADS, _AHEAD = 4, 16
# Windows are drawn at random: more rounds would hardly find another one.
_ROUNDS = 20


class Samples(NamedTuple):
    """Hold N samples of F frames.

    Attributes:
      arrays: 'video' uint8 `[N, F, S, S, 3]` or 'latents' bfloat16 `[N, F, h*w, D]`; 'states' float32
        `[N, F, S]`, 'actions' float32 `[N, F - 1, A]` and, where asked for, 'extrinsics' `[N, F, 6]`.
      extras: dict from name to float32 `[N, F, K]`: what else is known about the frames.
      trajectory: int64 `[N]`, number of the record that a sample is of.
      step_seconds: float64 `[N]`, from a frame to the next, by the true rate of the record.
      skips: list of (trajectory, reason, message): records that could not be used.
    """

    arrays: dict[str, np.ndarray]
    extras: dict[str, np.ndarray]
    trajectory: np.ndarray
    step_seconds: np.ndarray
    skips: list[tuple[str, str, str]]

    def __len__(self):
        return len(self.trajectory)

    @property
    def trajectories(self):
        """Count the trajectories."""
        return len(np.unique(self.trajectory))


def make_maker(trained, paths, frames, *, latents):
    """Build what cuts samples as a model is to see them.

    Args:
      trained: `jepa_jax.robots.world.Trained`.
      paths: of the shards, for messages.
      frames: F.
      latents: the shards hold features instead of frames.

    Returns:
      `SampleMaker`.
    """
    group = GroupSpec("trajectory", "video", frames, trained.fps, 1, (SourceSpec(tuple(paths), 1.0),))
    return SampleMaker(
        group, CropSpec(trained.size, CENTERED, trained.crop_aspect, 0.0),
        ConditionMaker(trained.world.robot, trained.views), views=trained.views,
        extrinsics=trained.world.predictor.use_extrinsics, latents=latents, origin=trained.origin if latents else None,
    )


def frame_maker(paths, frames, conditions, *, fps, size, views, origin=None):
    """Build what cuts clips of square frames, or of their features, without a world model to say how.

    Args:
      paths: of the shards, for messages.
      frames: F.
      conditions: such as `ConditionMaker`.
      fps: frames per second.
      size: side of the frames, pixels.
      views: names of the cameras to choose from; None for any.
      origin: `data.latents.Origin` of the features that the shards hold instead of frames.

    Returns:
      `SampleMaker`.
    """
    group = GroupSpec("trajectory", "video", frames, fps, 1, (SourceSpec(tuple(paths), 1.0),))
    return SampleMaker(group, CropSpec(size, CENTERED, (1.0, 1.0), 0.0), conditions, views=views, extrinsics=False,
                       latents=origin is not None, origin=origin)


def read_samples(source, maker, count, *, seed=0, extras=(), on_sample=lambda: None):
    """Cut samples out of trajectories in random order: one of each, then others of the same.

    Args:
      source: `ShardSource` of trajectories.
      maker: as `make_maker` makes it.
      count: samples wanted.
      seed: of the order and the windows.
      extras: names of what else is wanted of the records.
      on_sample: called for every sample.

    Returns:
      `Samples`: no two are the same frames, so there may be fewer than wanted.

    Raises:
      DataError: why a record cannot be used, if none of the first ones can, or fewer than two are left.
    """
    order = np.random.default_rng(seed).permutation(len(source)).tolist()
    rows, seen, skips = [], set(), {}
    read = lambda draw: _read(source, maker, extras, seed, *draw)
    for number in range(_ROUNDS):
        before = len(rows)
        draws = [(number, record) for record in order if record not in skips]
        for (_, record), found in _parallel(read, draws):
            if isinstance(found, _Failure):
                skips[record] = found
                if not rows and len(skips) >= min(LOOKED_AT, len(order)):
                    raise next(iter(skips.values())).error
                continue
            if (key := (record, found.view, found.start)) not in seen:
                seen.add(key)
                rows.append((record, found))
                on_sample()
            if len(rows) == count:
                return _join(rows, skips)
        if len(rows) == before:
            break
    return _join(rows, skips)


def stored_latents(record, views):
    """Return the features, `data.latents.Latents`, that a record holds of the first view that is used and has any; None without."""
    return next((view.latents for view in record.views if view.latents and (not views or view.name in views)), None)


def holds_latents(record, views):
    """Tell whether a record holds features, in the views that are used."""
    return stored_latents(record, views) is not None


def first_record(source):
    """Read the first record that can be read.

    Raises:
      DataError: 'empty source', or why the first one cannot be read, if none of the first ones can.
    """
    return next(readable(source))


class _Failure(NamedTuple):
    source_id: str
    error: DataError


class _Row(NamedTuple):
    arrays: dict
    extras: dict
    view: int
    start: int
    step_seconds: float


def _read(source, maker, names, seed, number, record_number):
    """Cut one sample; the same for the same seed, round and record."""
    name = source.locate(record_number)
    try:
        record = source[record_number]
        name = record.source_id
        arrays, clip = maker.cut(record, np.random.default_rng([seed, number, record_number]))
        if missing := [extra for extra in names if extra not in record.extras]:
            held = ", ".join(record.extras) or "none"
            raise DataError("no extras", f"{name}: no extra {', '.join(missing)}; the record has {held}")
    except DataError as error:
        return _Failure(name, error)
    seconds = float(np.diff(clip.indices[:2]).sum()) / record.control_rate
    return _Row(arrays, {extra: record.extras[extra][clip.indices] for extra in names}, clip.view, int(clip.indices[0]), seconds)


def _parallel(function, arguments):
    """Yield (argument, result) in order, computed a little ahead of the one that is asked for."""
    waiting, arguments = deque(), iter(arguments)
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for argument in arguments:
                waiting.append((argument, pool.submit(function, argument)))
                if len(waiting) == _AHEAD:
                    done = waiting.popleft()
                    yield done[0], done[1].result()
            while waiting:
                done = waiting.popleft()
                yield done[0], done[1].result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _join(rows, skips):
    trajectory = np.array([record for record, _ in rows], np.int64)
    found = [(failure.source_id, failure.error.reason, str(failure.error)) for failure in skips.values()]
    if len(np.unique(trajectory)) < 2:
        told = f"; {found[0][2]}" if found else ""
        raise DataError("too few trajectories", f"trajectories that can be used: {len(np.unique(trajectory))}; a comparison "
                        f"needs at least 2, better hundreds{told}")
    stack = lambda name: {key: np.stack([getattr(row, name)[key] for _, row in rows]) for key in getattr(rows[0][1], name)}
    return Samples(stack("arrays"), stack("extras"), trajectory, np.array([row.step_seconds for _, row in rows]), found)
