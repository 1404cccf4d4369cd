"""Videos as probes see them: segments in time, and one augmented crop or several square views in space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from jepa_jax.data import clips, erasing, randaugment, sampling, transforms
from jepa_jax.data.errors import DataError
from jepa_jax.data.labelled import Footage, LabelledFile, open_footage
from jepa_jax.data.records import ClipRecord
from jepa_jax.data.specs import AugmentSpec, CropSpec


class Seeing(Protocol):
    """What is read of `jepa_jax.weights.bundle.Protocol`."""

    frames: int
    frame_step: int
    num_segments: int
    num_views: int
    crop_size: int
    use_pos_embed: bool


class Augmented(NamedTuple):
    """Hold the segments of a video for training, and what device code has to do with them.

    Args:
        video: uint8 `[S, T, H, W, 3]`.
        erase_boxes: int32 `[S, 4]`, see `models.pixels.erase_boxes`.
        erase_seeds: uint32 `[S]`.
        frame_indices: int32 `[S, T]`, the frames as counted in the video; of a still all that it will be repeated for.
    """

    video: np.ndarray
    erase_boxes: np.ndarray
    erase_seeds: np.ndarray
    frame_indices: np.ndarray


def make_row(found: Augmented, seeing: Seeing, augment: AugmentSpec) -> dict[str, np.ndarray]:
    """Return what of a video goes to the device, without its class: a row of the batches of `LabelledPipeline`."""
    row = {"video": found.video}
    if augment.erase:
        row |= {"erase_boxes": found.erase_boxes, "erase_seeds": found.erase_seeds}
    if seeing.use_pos_embed:
        row["frame_indices"] = found.frame_indices
    return row


def read_views(record: ClipRecord | LabelledFile, protocol: Seeing, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read the segments and views of a video as evaluations do.

    Args:
        record: a video; an image stands still for the whole segment.
        protocol: how it is seen.
        uniforms: float `[S]` in [0, 1), where the window of every segment lies in its part of the video.

    Returns:
        (uint8 `[S, V, T, H, W, 3]`, int32 `[S, T]`): the views, and which frames of the video they show.

    Raises:
        DataError: it cannot be read.

    Source: evals/video_classification_frozen/utils.py, src/datasets/video_dataset.py.
    """
    with open_footage(record) as footage:
        indices = _choose(footage, protocol, uniforms)
        needed = np.unique(indices)
        # Resized at once: the frames of a long segment at full size would fill the memory.
        frames = {index: _shrink(frame, protocol) for index, frame in zip(needed, footage.read(needed))}
    check_shapes(record, frames)
    if footage.num_frames == 1:
        still = _views(frames[0][None], protocol)
        return np.broadcast_to(still, (protocol.num_segments, len(still), protocol.frames, *still.shape[2:])), indices.astype(np.int32)
    segments = [np.stack([frames[index] for index in segment]) for segment in indices]
    return np.stack([_views(segment, protocol) for segment in segments]), indices.astype(np.int32)


def read_augmented(
    record: ClipRecord | LabelledFile, protocol: Seeing, crop: CropSpec, augment: AugmentSpec, rng: np.random.Generator,
    still: bool = False,
) -> Augmented:
    """Read the segments of a video, each with a crop and augmentation of its own, as trainings of probes do.

    Args:
        record: a video or image.
        protocol: frames, step and segments.
        crop: the random crop.
        augment: operations and erasing; its crops do not move.
        rng: consumed.
        still: return one frame of an image, to be repeated where it is encoded.

    Raises:
        DataError: it cannot be read, or is a video where an image is wanted.

    Source: evals/video_classification_frozen/utils.py (VideoTransform).
    """
    segments = protocol.num_segments
    uniforms = rng.random(segments)
    drawn = [draw_augmentation(crop, augment, rng) for _ in range(segments)]
    with open_footage(record) as footage:
        if still and footage.num_frames > 1:
            raise DataError("not an image", f"{record.source_id} has {footage.num_frames} frames, but data.still says that all are images")
        indices = _choose(footage, protocol, uniforms)
        needed = np.unique(indices)
        frames = dict(zip(needed, footage.read(needed)))
    check_shapes(record, frames)
    found = augment_segments(frames, indices[:, : 1 if still else None], drawn, crop)
    return found._replace(frame_indices=indices.astype(np.int32))


class Drawn(NamedTuple):
    """Hold everything that is random about one segment, but its place in time."""

    crop: np.ndarray
    flip: float
    operations: list[randaugment.Operation]
    erase_box: tuple[int, int, int, int]
    erase_seed: int


def draw_augmentation(crop: CropSpec, augment: AugmentSpec, rng: np.random.Generator) -> Drawn:
    """Draw everything for one segment in a fixed order, whatever the video turns out to be."""
    return Drawn(
        rng.random((transforms.CROP_ATTEMPTS, 4)), rng.random(), randaugment.draw_operations(augment.rand_augment, rng),
        *erasing.draw_box(augment.erase, crop.size, rng),
    )


def augment_segments(frames: Mapping[int, np.ndarray], indices: np.ndarray, drawn: Sequence[Drawn], crop: CropSpec) -> Augmented:
    """Augment and crop the frames of every segment as was drawn for it.

    Args:
        frames: uint8 `[H, W, 3]` by frame index, all of one shape.
        indices: int `[S, T]`, the frames of every segment.
        drawn: `S` of them.
        crop: the random crop.
    """
    video = []
    for segment, draw in zip(indices, drawn, strict=True):
        shown, order = np.unique(segment, return_inverse=True)
        images = randaugment.apply_operations([frames[index] for index in shown], draw.operations)
        box = transforms.random_crop_box(*images[0].shape[:2], crop.scale, crop.aspect, draw.crop)
        clip = transforms.crop_resize_uint8(images, box, crop.size)
        if draw.flip < crop.flip:
            transforms.flip_in_place(clip)
        video.append(clip[order])
    boxes = np.array([draw.erase_box for draw in drawn], np.int32)
    return Augmented(np.stack(video), boxes, np.array([draw.erase_seed for draw in drawn], np.uint32), indices.astype(np.int32))


def _choose(footage: Footage, protocol: Seeing, uniforms: np.ndarray) -> np.ndarray:
    if footage.num_frames == 1:
        return np.zeros((protocol.num_segments, protocol.frames), np.int64)
    return sampling.sample_frame_indices(
        footage.num_frames, footage.fps, frames=protocol.frames, num_clips=protocol.num_segments,
        step=protocol.frame_step, allow_overlap=True, uniforms=np.asarray(uniforms),
    )


def check_shapes(record: ClipRecord | LabelledFile, frames: Mapping[int, np.ndarray]) -> None:
    """Raise DataError where the frames of a video are not all of one shape."""
    if len({frame.shape for frame in frames.values()}) > 1:
        raise DataError("changing shape", f"{record.source_id}: its frames change their shape")


def _shrink(frame: np.ndarray, protocol: Seeing) -> np.ndarray:
    clips.check_elongation(*frame.shape[:2])
    short_side = protocol.crop_size if protocol.num_views > 1 else clips.resized_side(protocol.crop_size)
    return transforms.eval_resize(frame[None], short_side)[0]


def _views(frames: np.ndarray, protocol: Seeing) -> np.ndarray:
    """Cut frames of the right short side into views, uint8 `[V, T, H, W, 3]`."""
    if protocol.num_views > 1:
        return np.stack(transforms.spatial_views(frames, protocol.crop_size, protocol.num_views))
    return transforms.center_crop(frames, protocol.crop_size)[None]
