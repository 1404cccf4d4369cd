"""From shards to batches: mixing, decoding, cropping, masks. Every batch is a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jepa_jax.data import erasing, randaugment, sampling, transforms, video
from jepa_jax.data.copies import DEFAULT_CACHE, FileCache
from jepa_jax.data.errors import DataError
from jepa_jax.data.masks import MaskSampler
from jepa_jax.data.mixing import Mixture, Notes, open_sources, process_rows
from jepa_jax.data.records import ClipRecord
from jepa_jax.data.skips import MAX_BAD_FRACTION
from jepa_jax.data.specs import (
    NO_AUGMENT,
    AugmentSpec,
    CropSpec,
    GroupSpec,
    SourceSpec,
    check_process,
    check_specs,
)

__all__ = ["ClipPipeline", "CropSpec", "GroupSpec", "SourceSpec", "load_clip"]


class _Clip(NamedTuple):
    """Hold one clip, and what device code has to do with it."""

    video: np.ndarray
    erase_box: tuple[int, int, int, int]
    erase_seed: int


class ClipPipeline:
    """Make the batches of one process.

    Args:
        groups: the sub-batches of a step; names must differ.
        crop: the random crop, the same for all groups.
        samplers: one mask sampler per group name.
        seed: of the order, the windows and the crops.
        augment: further augmentation, the same for all groups.
        cache: where copies of remote shards are kept.
        max_bad_fraction: of the records of any source; says how many are tried for one row.
        process_index, process_count: which rows of each global batch are made here.

    Raises:
        ValueError: a setting is out of range.
        FileNotFoundError: shards are missing.
        DataError: a shard is unreadable, or a source empty.
    """

    def __init__(
        self,
        groups: Sequence[GroupSpec],
        crop: CropSpec,
        samplers: Mapping[str, MaskSampler],
        *,
        seed: int,
        augment: AugmentSpec = NO_AUGMENT,
        cache: FileCache = DEFAULT_CACHE,
        max_bad_fraction: float = MAX_BAD_FRACTION,
        process_index: int = 0,
        process_count: int = 1,
    ):
        check_specs(groups, crop, augment, samplers)
        check_process(groups, process_index, process_count)
        self.groups, self._size = tuple(groups), crop.size
        self._samplers = dict(samplers)
        self._process = (process_index, process_count)
        self._erases = augment.erase > 0
        sources = open_sources(groups, "clip", cache)
        self._mixtures = {
            group.name: Mixture(
                group, sources[group.name], _ClipMaker(group, crop, augment),
                seed=seed, max_bad_fraction=max_bad_fraction,
            )
            for group in groups
        }  # fmt: skip

    def batch_at(self, step: int) -> tuple[dict[str, dict], Notes]:
        """Make the rows of this process for one step.

        Args:
            step: counted from 0; no earlier step needs to have been made.

        Returns:
            `{group: {'video': uint8 [b, F, S, S, 3], 'context_ids': (int32 [b, Kc], ...),
            'target_ids': (int32 [b, Kt], ...)}}`, F being 1 in image groups unless the crop
            moves; with erasing also 'erase_boxes' int32 [b, 4] and 'erase_seeds' uint32 [b];
            and `Notes`.

        Raises:
            DataError: 'no usable record', after `skips.max_tries` bad records for one row.
        """
        batch, clips, skips = {}, {}, []
        for group in self.groups:
            numbers = process_rows(group.batch_size, *self._process)
            mixture = self._mixtures[group.name]
            rows = mixture.rows(step, numbers)
            context_ids, target_ids = self._samplers[group.name].sample(step, numbers)
            batch[group.name] = {
                "video": np.stack([row.value.video for row in rows]),
                "context_ids": context_ids,
                "target_ids": target_ids,
            }
            if self._erases:
                batch[group.name]["erase_boxes"] = np.array([row.value.erase_box for row in rows], np.int32)
                batch[group.name]["erase_seeds"] = np.array([row.value.erase_seed for row in rows], np.uint32)
            notes = mixture.notes(rows)
            clips |= notes.clips
            skips += notes.skips
        return batch, Notes(clips, skips)

    def clips_per_step(self) -> int:
        """Count the clips of one batch of this process."""
        return sum(group.batch_size for group in self.groups) // self._process[1]

    def describe(self) -> list[str]:
        """Say what is in the mixture: one line per group and one per source.

        Raises:
            DataError: why none of the records of a source that were looked at can be used.
        """
        lines = []
        for group in self.groups:
            lines.append(f"group {group.name}: {group.shape_text()}")
            lines += self._mixtures[group.name].describe()
        return lines

    def contents(self) -> dict[str, str]:
        """Say what decides which clips are drawn, by name; a run that finds the same goes on with the same batches."""
        found = {}
        for group in self.groups:
            found |= {group.name: group.shape_text()} | self._mixtures[group.name].contents()
        return found

    def warnings(self) -> list[str]:
        """Say what will work, but hardly as wanted: sources whose frames are smaller than the crop."""
        return [line for group in self.groups for line in self._mixtures[group.name].enlarged(self._size)]


class _ClipMaker:
    """Cut a clip out of a record; a class so that workers can unpickle it."""

    def __init__(self, group: GroupSpec, crop: CropSpec, augment: AugmentSpec):
        self._group, self._crop, self._augment = group, crop, augment

    def __call__(self, record: ClipRecord, rng: np.random.Generator) -> _Clip:
        video = load_clip(record, self._group, self._crop, rng, self._augment)
        return _Clip(video, *erasing.draw_box(self._augment.erase, self._crop.size, rng))


def load_clip(
    record: ClipRecord,
    group: GroupSpec,
    crop: CropSpec,
    rng: np.random.Generator,
    augment: AugmentSpec = NO_AUGMENT,
) -> np.ndarray:
    """Decode one record and cut one augmented clip out of it.

    Args:
        record: the encoded clip.
        group: how many frames at what rate; an image in a video group is repeated.
        crop: the crop, the same for every frame unless it moves.
        rng: consumed.
        augment: further augmentation; erasing is left to the caller.

    Returns:
        uint8 `[F, S, S, 3]`; F is 1 in image groups, unless the crop moves.

    Raises:
        DataError: the record cannot be decoded or does not fit the group.

    Source: src/datasets/video_dataset.py, app/vjepa/transforms.py
    """
    # All draws happen in a fixed order, whatever the record turns out to be.
    window, box_uniforms, flip_uniform = rng.random(1), _crop_uniforms(rng), rng.random()
    last_uniforms = _crop_uniforms(rng) if augment.motion_shift else box_uniforms
    operations = randaugment.draw_operations(augment.rand_augment, rng)
    if record.kind == "image":
        frames = [video.decode_image(record.data)]
        still = group.kind == "image" and not augment.motion_shift
        order = np.zeros(1 if still else group.frames, np.int64)
    elif group.kind == "image":
        raise DataError("not an image", f"{record.source_id}: a video record in the image group {group.name!r}")
    else:
        needed, order = np.unique(_choose_frames(record, group, window), return_inverse=True)
        frames = _decode(record, needed)
    frames = randaugment.apply_operations(frames, operations)
    height, width = frames[0].shape[:2]
    box = transforms.random_crop_box(height, width, crop.scale, crop.aspect, box_uniforms)
    if augment.motion_shift:
        last = transforms.random_crop_box(height, width, crop.scale, crop.aspect, last_uniforms)
        boxes = transforms.motion_boxes(box, last, len(order))
        clip = transforms.crop_resize_moving_uint8([frames[index] for index in order], boxes, crop.size)
        order = np.arange(len(order))
    else:
        clip = transforms.crop_resize_uint8(frames, box, crop.size)
    if flip_uniform < crop.flip:
        transforms.flip_in_place(clip)
    # Copying a whole clip costs some percent of decoding it.
    return clip if np.array_equal(order, np.arange(len(clip))) else clip[order]


def _crop_uniforms(rng: np.random.Generator) -> np.ndarray:
    return rng.random((transforms.CROP_ATTEMPTS, 4))


def _choose_frames(record: ClipRecord, group: GroupSpec, window: np.ndarray) -> np.ndarray:
    if sampling.frame_step(record.fps, frames=group.frames, fps=group.fps) < 1:
        raise DataError(
            f"fps below {group.fps:g}", f"{record.source_id}: {record.fps:g} frames/s, sampled at {group.fps:g}"
        )
    if record.num_frames < 1:
        raise DataError("no frames", f"{record.source_id}: the record says it has {record.num_frames} frames")
    return sampling.sample_frame_indices(
        record.num_frames, record.fps, frames=group.frames, fps=group.fps, uniforms=window
    )[0]


def _decode(record: ClipRecord, needed: np.ndarray) -> list[np.ndarray]:
    try:
        return video.decode_frame_list(record.data, needed)
    except IndexError as error:
        raise DataError("fewer frames than stated", f"{record.source_id}: {error}") from error
