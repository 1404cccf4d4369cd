"""From shards to batches: mixing, decoding, cropping, masks. Every batch is a function of (seed, step)."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grain
import numpy as np

from jepa_jax.data import sampling, transforms, video
from jepa_jax.data.errors import DataError
from jepa_jax.data.masks import MaskSampler
from jepa_jax.data.records import ClipRecord, ShardSource
from jepa_jax.data.skips import Skip

# Records tried for one row of a batch before giving up: with one bad record in
# ten, ten in a row happen once in 10^10 rows.
MAX_TRIES = 10
# Records opened to estimate the hours of a source.
_SAMPLED = 16


@dataclass(frozen=True)
class SourceSpec:
    """Name the shards of one source and its share of a group's clips.

    Args:
        paths: directories, globs or files, as in `records.resolve_shards`.
        weight: relative to the other sources of the group, above 0.
    """

    paths: tuple[str, ...]
    weight: float


@dataclass(frozen=True)
class GroupSpec:
    """Describe clips of one shape that share a sub-batch.

    Args:
        name: key of the group in a batch.
        kind: 'video' or 'image'.
        frames: frames of the clip the model sees.
        fps: sampling rate, frames per second; not used by images.
        batch_size: clips per step over all processes.
        sources: where they come from.
    """

    name: str
    kind: str
    frames: int
    fps: float
    batch_size: int
    sources: tuple[SourceSpec, ...]


@dataclass(frozen=True)
class CropSpec:
    """Describe the random resized crop.

    Args:
        size: side of the result, pixels.
        scale: smallest and largest part of the frame's area.
        aspect: smallest and largest width/height.
        flip: probability of mirroring left to right.
    """

    size: int
    scale: tuple[float, float]
    aspect: tuple[float, float]
    flip: float


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
        crop: the augmentation, the same for all groups.
        samplers: one mask sampler per group name.
        seed: of the order, the windows and the crops.
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
        process_index: int = 0,
        process_count: int = 1,
    ):
        _check_settings(groups, crop, samplers, process_index, process_count)
        self.groups = tuple(groups)
        self._samplers = dict(samplers)
        self._process = (process_index, process_count)
        self._loaders = {group.name: _ClipLoader(group, crop) for group in groups}
        self._rows = {group.name: _row_dataset(group, self._loaders[group.name], seed) for group in groups}

    def batch_at(self, step: int) -> tuple[dict[str, dict], list[Skip]]:
        """Make the rows of this process for one step.

        Args:
            step: counted from 0; no earlier step needs to have been made.

        Returns:
            `{group: {'video': uint8 [b, F, S, S, 3], 'context_ids': (int32 [b, Kc], ...),
            'target_ids': (int32 [b, Kt], ...)}}`, F being 1 in image groups, and
            a note for every record that had to be replaced.

        Raises:
            DataError: 'no usable record', after MAX_TRIES bad records for one row.
        """
        batch, skips = {}, []
        index, count = self._process
        for group in self.groups:
            local = group.batch_size // count
            rows = np.arange(index * local, (index + 1) * local)
            first = step * group.batch_size
            loaded = [self._rows[group.name][first + int(row)] for row in rows]
            context_ids, target_ids = self._samplers[group.name].sample(step, rows)
            batch[group.name] = {
                "video": np.stack([clip for clip, _ in loaded]),
                "context_ids": context_ids,
                "target_ids": target_ids,
            }
            skips += [skip for _, row_skips in loaded for skip in row_skips]
        return batch, skips

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
                lines.append(f"  {_source_name(spec)}: {_size_text(source)}, weight {spec.weight / total:.3f}")
        return lines


class _ClipLoader:
    """Turn draws into clips, replacing bad records by others of the same source."""

    def __init__(self, group: GroupSpec, crop: CropSpec):
        self._group = group
        self._crop = crop
        self.sources = [ShardSource(source.paths) for source in group.sources]
        for spec, source in zip(group.sources, self.sources, strict=True):
            if not len(source):
                raise DataError("empty source", f"the shards at {_source_name(spec)} hold no records; prepare it again")

    def __call__(self, draw: _Draw, rng: np.random.Generator) -> tuple[np.ndarray, list[Skip]]:
        source = self.sources[draw.source]
        record_number, skips = draw.record, []
        for _ in range(MAX_TRIES):
            source_id = ""
            try:
                record = source[record_number]
                source_id = record.source_id
                return load_clip(record, self._group, self._crop, rng), skips
            except DataError as error:
                name = _source_name(self._group.sources[draw.source])
                skips.append(Skip(name, source.locate(record_number), source_id, error.reason))
                record_number = int(rng.integers(len(source)))
        tried = "\n".join(f"  {skip.location} ({skip.source_id}): {skip.reason}" for skip in skips)
        raise DataError(
            "no usable record", f"{MAX_TRIES} records in a row of {skips[0].source} could not be used:\n{tried}"
        )


def load_clip(record: ClipRecord, group: GroupSpec, crop: CropSpec, rng: np.random.Generator) -> np.ndarray:
    """Decode one record and cut one augmented clip out of it.

    Args:
        record: the encoded clip.
        group: how many frames at what rate; an image in a video group is repeated.
        crop: the augmentation, the same for every frame.
        rng: consumed.

    Returns:
        uint8 `[F, S, S, 3]`; F is 1 in image groups.

    Raises:
        DataError: the record cannot be decoded or does not fit the group.

    Source: src/datasets/video_dataset.py, app/vjepa/transforms.py
    """
    # All draws happen in a fixed order, whatever the record turns out to be.
    window, box_uniforms, flip_uniform = rng.random(1), rng.random((transforms.CROP_ATTEMPTS, 4)), rng.random()
    if record.kind == "image":
        frames = [video.decode_image(record.data)]
        order = np.zeros(group.frames if group.kind == "video" else 1, np.int64)
    elif group.kind == "image":
        raise DataError("not an image", f"{record.source_id}: a video record in the image group {group.name!r}")
    else:
        needed, order = np.unique(_choose_frames(record, group, window), return_inverse=True)
        frames = _decode(record, needed)
    box = transforms.random_crop_box(*frames[0].shape[:2], crop.scale, crop.aspect, box_uniforms)
    clip = transforms.crop_resize_uint8(frames, box, crop.size)
    if flip_uniform < crop.flip:
        clip = transforms.flip(clip)
    return np.ascontiguousarray(clip[order])


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


def _source_name(spec: SourceSpec) -> str:
    return ", ".join(os.fspath(path) for path in spec.paths)


def _size_text(source: ShardSource) -> str:
    """Say how many records a source has and about how many hours."""
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
    text = f"{len(source)} records in {len(source.files)} shards"
    return f"{text}, about {np.mean(seconds) * len(source) / 3600:.3g} hours" if seconds else text


def _check_settings(
    groups: Sequence[GroupSpec],
    crop: CropSpec,
    samplers: Mapping[str, MaskSampler],
    process_index: int,
    process_count: int,
) -> None:
    names = [group.name for group in groups]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"group names are {names}; give at least one, all different")
    if set(samplers) != set(names):
        raise ValueError(f"mask samplers are for {sorted(samplers)}, groups are {sorted(names)}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not in 0..{process_count - 1}")
    if crop.size < 1 or not 0 < crop.scale[0] <= crop.scale[1] or not 0 < crop.aspect[0] <= crop.aspect[1]:
        raise ValueError(f"{crop}: size, scale and aspect must be positive, with low <= high")
    if not 0 <= crop.flip <= 1:
        raise ValueError(f"flip is {crop.flip}; it is a probability, between 0 and 1")
    for group in groups:
        if group.kind not in ("video", "image"):
            raise ValueError(f"group {group.name!r} has kind {group.kind!r}; allowed: 'video', 'image'")
        if group.frames < 1 or (group.kind == "video" and group.fps <= 0):
            raise ValueError(f"group {group.name!r}: frames {group.frames} and fps {group.fps} must be above 0")
        if group.batch_size < 1 or group.batch_size % process_count:
            raise ValueError(
                f"group {group.name!r}: batch_size {group.batch_size} is not a positive multiple of the "
                f"{process_count} processes"
            )
        if not group.sources or any(source.weight <= 0 for source in group.sources):
            raise ValueError(
                f"group {group.name!r}: weights {[source.weight for source in group.sources]} must be above 0; "
                "leave a source out instead of giving it weight 0"
            )
