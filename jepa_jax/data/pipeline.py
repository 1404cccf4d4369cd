"""From shards to batches: mixing, decoding, cropping, masks. Every batch is a function of (seed, step)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np

from jepa_jax.data import erasing, randaugment, sampling, transforms, video
from jepa_jax.data.errors import DataError
from jepa_jax.data.masks import MaskSampler
from jepa_jax.data.records import ClipRecord, ShardSource
from jepa_jax.data.remote import DEFAULT_CACHE, FileCache, is_remote
from jepa_jax.data.skips import Skip
from jepa_jax.data.specs import (
    NO_AUGMENT,
    AugmentSpec,
    CropSpec,
    GroupSpec,
    SourceSpec,
    check_process,
    check_specs,
)

__all__ = ["MAX_TRIES", "ClipPipeline", "CropSpec", "GroupSpec", "Notes", "SourceSpec", "load_clip"]

# Records tried for one row of a batch before giving up: with one bad record in
# ten, ten in a row happen once in 10^10 rows.
MAX_TRIES = 10
# Records opened to estimate the hours of a source.
_SAMPLED = 16


class Notes(NamedTuple):
    """Say what a batch was made of, for this process.

    Args:
        clips: good clips of every source, as `GroupSpec.labels` names them.
        skips: a note for every record that had to be replaced.
    """

    clips: dict[str, int]
    skips: list[Skip]


class _Row(NamedTuple):
    """Hold one clip, what it came from, and what device code has to do with it."""

    clip: np.ndarray
    source: int
    erase_box: tuple[int, int, int, int]
    erase_seed: int
    skips: list[Skip]


class _Draw(NamedTuple):
    """Point at one record of one source of a group."""

    source: int
    record: int


class _Tag:
    """Attach the number of its source to a record number; a class so that workers can unpickle it."""

    def __init__(self, source: int):
        self._source = source

    def __call__(self, record: int) -> _Draw:
        return _Draw(self._source, int(record))


class ClipPipeline:
    """Make the batches of one process.

    Args:
        groups: the sub-batches of a step; names must differ.
        crop: the random crop, the same for all groups.
        samplers: one mask sampler per group name.
        seed: of the order, the windows and the crops.
        augment: further augmentation, the same for all groups.
        cache: where copies of remote shards are kept.
        process_index, process_count: which rows of each global batch are made here.

    Raises:
        ValueError: a setting is out of range.
        FileNotFoundError: shards are missing.
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
        process_index: int = 0,
        process_count: int = 1,
    ):
        check_specs(groups, crop, augment, samplers)
        check_process(groups, process_index, process_count)
        self.groups = tuple(groups)
        self._samplers = dict(samplers)
        self._process = (process_index, process_count)
        self._erases = augment.erase > 0
        self._loaders = {group.name: _ClipLoader(group, crop, augment, cache) for group in groups}
        self._rows = {group.name: _row_dataset(group, self._loaders[group.name], seed) for group in groups}

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
            DataError: 'no usable record', after MAX_TRIES bad records for one row.
        """
        batch, clips, skips = {}, {}, []
        index, count = self._process
        for group in self.groups:
            local = group.batch_size // count
            numbers = np.arange(index * local, (index + 1) * local)
            first = step * group.batch_size
            rows: list[_Row] = [self._rows[group.name][first + int(number)] for number in numbers]
            context_ids, target_ids = self._samplers[group.name].sample(step, numbers)
            batch[group.name] = {
                "video": np.stack([row.clip for row in rows]),
                "context_ids": context_ids,
                "target_ids": target_ids,
            }
            if self._erases:
                batch[group.name]["erase_boxes"] = np.array([row.erase_box for row in rows], np.int32)
                batch[group.name]["erase_seeds"] = np.array([row.erase_seed for row in rows], np.uint32)
            counts = np.bincount([row.source for row in rows], minlength=len(group.sources))
            clips |= dict(zip(group.labels(), counts.tolist(), strict=True))
            skips += [skip for row in rows for skip in row.skips]
        return batch, Notes(clips, skips)

    def clips_per_step(self) -> int:
        """Count the clips of one batch of this process."""
        return sum(group.batch_size for group in self.groups) // self._process[1]

    def describe(self) -> list[str]:
        """Say what is in the mixture: one line per group and one per source."""
        lines = []
        for group in self.groups:
            shape = f"{group.frames} frames at {group.fps:g}/s" if group.kind == "video" else "images"
            lines.append(f"group {group.name}: {group.batch_size} x {shape} per step")
            total = sum(source.weight for source in group.sources)
            for spec, source in zip(group.sources, self._loaders[group.name].sources, strict=True):
                lines.append(f"  {spec.name}: {_size_text(source)}, weight {spec.weight / total:.3f}")
        return lines


class _ClipLoader:
    """Turn draws into clips, replacing bad records by others of the same source."""

    def __init__(self, group: GroupSpec, crop: CropSpec, augment: AugmentSpec, cache: FileCache):
        self._group = group
        self._crop = crop
        self._augment = augment
        self._labels = group.labels()
        self.sources = [ShardSource(source.paths, cache=cache) for source in group.sources]
        for spec, source in zip(group.sources, self.sources, strict=True):
            if not len(source):
                raise DataError("empty source", f"the shards at {spec.name} hold no records; prepare it again")

    def __call__(self, draw: _Draw, rng: np.random.Generator) -> _Row:
        source = self.sources[draw.source]
        record_number, skips = draw.record, []
        for _ in range(MAX_TRIES):
            source_id = ""
            try:
                record = source[record_number]
                source_id = record.source_id
                clip = load_clip(record, self._group, self._crop, rng, self._augment)
                return _Row(clip, draw.source, *_draw_erasing(self._augment, self._crop.size, rng), skips)
            except DataError as error:
                skips.append(Skip(self._labels[draw.source], source.locate(record_number), source_id, error.reason))
                record_number = int(rng.integers(len(source)))
        tried = "\n".join(f"  {skip.location} ({skip.source_id}): {skip.reason}" for skip in skips)
        raise DataError(
            "no usable record",
            f"{MAX_TRIES} records in a row of {self._group.sources[draw.source].name} could not be used:\n{tried}",
        )


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


def _draw_erasing(augment: AugmentSpec, size: int, rng: np.random.Generator) -> tuple[tuple[int, int, int, int], int]:
    """Draw the box that becomes noise, empty for most clips, and the seed of the noise."""
    if not augment.erase:
        return (0, 0, 0, 0), 0
    chosen, uniforms, seed = rng.random(), rng.random((erasing.ATTEMPTS, 4)), int(rng.integers(2**32))
    return (erasing.erase_box(size, size, uniforms) if chosen < augment.erase else (0, 0, 0, 0)), seed


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


def _row_dataset(group: GroupSpec, loader: _ClipLoader, seed: int) -> grain.MapDataset:
    """Build the endless list of clips of a group; element step * batch_size + row is a row of a step."""
    parts = [
        grain.MapDataset.range(len(source))
        .map(_Tag(number))
        .shuffle(seed=_derived_seed(seed, group.name, number))
        .repeat()
        for number, source in enumerate(loader.sources)
    ]
    mixed = grain.MapDataset.mix(parts, weights=[source.weight for source in group.sources])
    return mixed.random_map(loader, seed=_derived_seed(seed, group.name, len(parts)))


def _derived_seed(seed: int, group: str, number: int) -> int:
    """Mix a seed with a group's name and a number, so that no two streams are alike."""
    return int(np.random.SeedSequence([seed, zlib.crc32(group.encode()), number]).generate_state(1)[0])


def _size_text(source: ShardSource) -> str:
    """Say how many records a source has and, where that needs no transfer, about how many hours."""
    text = f"{len(source)} records in {len(source.files)} shards"
    if any(is_remote(file) for file in source.files):
        return text
    picks = np.unique(np.linspace(0, len(source) - 1, min(_SAMPLED, len(source))).astype(int))
    seconds = []
    for pick in picks:
        try:
            record = source[int(pick)]
        except DataError:
            # Counted when it is drawn in training; here it only costs precision.
            continue
        if record.kind == "video" and record.fps > 0:
            seconds.append(record.num_frames / record.fps)
    return f"{text}, about {np.mean(seconds) * len(source) / 3600:.3g} hours" if seconds else text
