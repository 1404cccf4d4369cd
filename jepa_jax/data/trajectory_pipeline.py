"""From trajectory shards to batches: frames or stored features, with states and actions. A function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jepa_jax.data import transforms
from jepa_jax.data.copies import DEFAULT_CACHE, FileCache
from jepa_jax.data.errors import DataError
from jepa_jax.data.latents import Origin
from jepa_jax.data.mixing import Mixture, RowPipeline, open_sources
from jepa_jax.data.skips import MAX_BAD_FRACTION
from jepa_jax.data.specs import NO_AUGMENT, CropSpec, GroupSpec, check_process, check_specs
from jepa_jax.data.trajectories import KIND, TrajectoryRecord
from jepa_jax.data.trajectory_clips import TrajectoryClip, sample_trajectory

# (record, sample) -> states float32 [T, S] and actions float32 [T - 1, A], as a network is to see them.
Conditions = Callable[[TrajectoryRecord, TrajectoryClip], tuple[np.ndarray, np.ndarray]]


class TrajectoryPipeline(RowPipeline):
    """Make the batches of one process out of robot trajectories.

    A batch is `{'video': uint8 [b, T, S, S, 3]}` or `{'latents': bfloat16 [b, T, N, D]}`, with 'states' float32
    [b, T, S], 'actions' float32 [b, T - 1, A] and, where asked for, 'extrinsics' float32 [b, T, 6].

    Args:
        group: frames, rate, batch size and sources; its kind is 'video'.
        crop: of the frames, the same for all of a sample; must not flip.
        conditions: what a network is told about a sample; refuses, with a `DataError`, what is not
            of the robot at hand. Picklable.
        views: names of the cameras to choose from; all of a record's if None.
        extrinsics: give camera poses too; a trajectory without them is replaced.
        latents: expect stored features instead of frames.
        origin: of the features that are expected; None for any.
        seed: of the order, the windows and the crops.
        cache: where copies of remote shards are kept.
        max_bad_fraction: of the records of any source; says how many are tried for one row.
        process_index, process_count: which rows of each global batch are made here.

    Raises:
        ValueError: a setting is out of range.
        FileNotFoundError: shards are missing.
    """

    def __init__(
        self,
        group: GroupSpec,
        crop: CropSpec,
        conditions: Conditions,
        *,
        views: Sequence[str] | None,
        extrinsics: bool,
        latents: bool,
        seed: int,
        origin: Origin | None = None,
        cache: FileCache = DEFAULT_CACHE,
        max_bad_fraction: float = MAX_BAD_FRACTION,
        process_index: int = 0,
        process_count: int = 1,
    ):
        check_specs([group], crop, NO_AUGMENT, {group.name: None})
        check_process([group], process_index, process_count)
        if crop.flip:
            raise ValueError(f"flip is {crop.flip}; mirrored frames contradict states and actions, so it must be 0")
        if group.frames < 2:
            raise ValueError(f"group {group.name!r} has {group.frames} frames; an action leads from one to the next")
        make = SampleMaker(group, crop, conditions, views=views, extrinsics=extrinsics, latents=latents, origin=origin)
        sources = open_sources([group], KIND, cache)[group.name]
        mixture = Mixture(group, sources, make, seed=seed, max_bad_fraction=max_bad_fraction)
        super().__init__(group, mixture, process_index, process_count)


class SampleMaker:
    """Cut samples out of trajectories; picklable. The arguments are those of `TrajectoryPipeline`."""

    def __init__(
        self,
        group: GroupSpec,
        crop: CropSpec,
        conditions: Conditions,
        *,
        views: Sequence[str] | None,
        extrinsics: bool,
        latents: bool,
        origin: Origin | None = None,
    ):
        self._group, self._crop, self._conditions = group, crop, conditions
        self._views, self._extrinsics, self._latents, self._origin = views, extrinsics, latents, origin

    def __call__(self, record: TrajectoryRecord, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return a row of a batch, as `TrajectoryPipeline.batch_at` stacks them; errors are those of `cut`."""
        return self.cut(record, rng)[0]

    def cut(self, record: TrajectoryRecord, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], TrajectoryClip]:
        """Return such a row, and the sample that it was made of.

        Raises:
            DataError: as in `sample_trajectory` and `conditions`, or 'no extrinsics', 'no features', 'no frames',
                'other features'.
        """
        # All draws happen in a fixed order, whatever the record turns out to be.
        uniforms, crop_uniforms = rng.random(2), rng.random((transforms.CROP_ATTEMPTS, 4))
        clip = sample_trajectory(
            record, frames=self._group.frames, fps=self._group.fps, uniforms=uniforms, views=self._views
        )
        states, actions = self._conditions(record, clip)
        row = {"states": states, "actions": actions}
        if self._extrinsics:
            if clip.extrinsics is None:
                raise DataError("no extrinsics", f"{record.source_id}: view {record.views[clip.view].name!r} has none")
            row["extrinsics"] = clip.extrinsics
        self._check_origin(record, clip)
        if clip.latents is not None:
            return row | {"latents": clip.latents}, clip
        crop = self._crop
        height, width = clip.frames[0].shape[:2]
        box = transforms.random_crop_box(height, width, crop.scale, crop.aspect, crop_uniforms)
        return row | {"video": transforms.crop_resize_uint8(clip.frames, box, crop.size)}, clip

    def _check_origin(self, record: TrajectoryRecord, clip: TrajectoryClip) -> None:
        """Raise DataError unless a sample is of the kind of all others: frames, or features of one origin."""
        view = record.views[clip.view]
        if (clip.latents is not None) != self._latents:
            held, wanted = ("frames", "features") if self._latents else ("features", "frames")
            raise DataError(
                f"no {wanted}",
                f"{record.source_id}: view {view.name!r} holds {held}, not {wanted}; all shards must be of one kind",
            )
        if self._origin and view.latents.origin != self._origin:
            raise DataError(
                "other features",
                f"{record.source_id}: features of view {view.name!r} are {view.latents.origin}; wanted: {self._origin}",
            )
