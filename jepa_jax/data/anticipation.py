"""Clips of what happens before an action: which frames, read for evaluation or augmented for training; their batches."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jepa_jax.data import clips
from jepa_jax.data.actions import OUTPUTS, ActionSegment, ActionSource
from jepa_jax.data.errors import DataError
from jepa_jax.data.labelled import Footage, open_footage
from jepa_jax.data.mixing import Mixture, RowPipeline
from jepa_jax.data.segments import Augmented, augment_segments, check_shapes, draw_augmentation
from jepa_jax.data.skips import MAX_BAD_FRACTION
from jepa_jax.data.specs import AugmentSpec, CropSpec, GroupSpec, check_process, check_specs
from jepa_jax.data.stream import read_timeline

# Which end of a segment the distance is measured from.
ANCHORS = ("released", "standard")
# To know when its frames are shown, a file is read once, whole. Training comes back to every one in no order, so that the tables of all
# of EPIC-KITCHENS-100 (700 videos, 20 million frames of 24 bytes) are kept in every worker.
_REMEMBERED = 1024
_find_frames = functools.lru_cache(_REMEMBERED)(read_timeline)


class Seeing(Protocol):
    """What is read of `jepa_jax.weights.anticipation.Anticipation`."""

    frames: int
    fps: float
    crop_size: int


@dataclass(frozen=True)
class TimingSpec:
    """Say how long before an action the clips of training end; both numbers are drawn anew for every clip.

    Args:
        seconds: smallest and largest time from the end of the clip to the moment that is anticipated.
        points: smallest and largest place of that moment in the segment, as a part of it, counted from the anchor.
        anchor: 'released', the last frame of the segment, or 'standard', its first one.

    Raises:
        ValueError: a number is out of range.
    """

    seconds: tuple[float, float]
    points: tuple[float, float]
    anchor: str

    def __post_init__(self):
        check_anchor(self.anchor)
        if not 0 <= self.seconds[0] <= self.seconds[1] < math.inf or not 0 <= self.points[0] <= self.points[1] <= 1:
            raise ValueError(f"anticipation times {self.seconds} must be seconds of at least 0 and points {self.points} parts of a "
                             "segment between 0 and 1, the smaller number first")


def check_anchor(anchor: str) -> None:
    """Raise ValueError if an anchor is unknown."""
    if anchor not in ANCHORS:
        raise ValueError(f"anchor {anchor!r} is unknown; choose one of {', '.join(ANCHORS)}")


def frames_before(
    start: int, stop: int, fps_video: float, *, frames: int, fps: float, seconds: float, point: float = 0.0, anchor: str = "standard"
) -> np.ndarray:
    """Choose the frames of the clip that ends before a moment of a segment.

    Args:
        start, stop: first and last frame of the segment.
        fps_video: average rate of the video, frames per second.
        frames: frames of the clip.
        fps: their rate, frames per second; the step in native frames is rounded down.
        seconds: from the end of the clip to the moment.
        point: place of the moment in the segment, in [0, 1], counted from the anchor.
        anchor: 'released' counts points from the stop, as the released code does, so that the clip usually shows a part
            of the action; 'standard' from the start, as the benchmark is defined.

    Returns:
        int64 `[frames]`, ascending; before the video begins its first frame stands in.

    Raises:
        ValueError: the video is slower than the clip, or the anchor unknown.

    Source: evals/action_anticipation_frozen/epickitchens.py.
    """
    check_anchor(anchor)
    step = int(fps_video / fps)
    if step < 1:
        raise ValueError(f"a video of {fps_video:g} frames/s is too slow for clips at {fps:g}/s")
    of_start = point if anchor == "released" else 1 - point
    end = int(of_start * start + (1 - of_start) * stop - int(seconds * fps_video))
    return np.maximum(end - step * np.arange(frames, 0, -1), 0)


def read_before(segment: ActionSegment, seeing: Seeing, *, seconds: float, anchor: str) -> np.ndarray:
    """Read the clip before an action as evaluations do: uint8 `[T, H, W, 3]`, the central square.

    Args:
        segment: the action.
        seeing: how clips are seen.
        seconds, anchor: see `frames_before`.

    Raises:
        DataError: it cannot be read.
    """
    with open_footage(segment, _find_frames) as footage:
        indices = _choose(segment, footage, seeing, seconds, 0.0, anchor)
        needed, order = np.unique(indices, return_inverse=True)
        short_side = clips.resized_side(seeing.crop_size)
        # Resized at once: frames of full size would fill the memory.
        frames = dict(enumerate(clips.preprocess(frame[None], seeing.crop_size, short_side)[0] for frame in footage.read(needed)))
    return np.stack([frames[place] for place in order])


def read_before_augmented(
    segment: ActionSegment, seeing: Seeing, timing: TimingSpec, crop: CropSpec, augment: AugmentSpec, rng: np.random.Generator
) -> tuple[Augmented, float]:
    """Read the clip before an action as trainings do.

    Args:
        segment: the action.
        seeing: how clips are seen.
        timing: how long before it the clip ends.
        crop, augment: of the clip.
        rng: consumed.

    Returns:
        (`Augmented` of one segment, seconds from its end to what is anticipated).

    Raises:
        DataError: it cannot be read.
    """
    seconds, point = rng.uniform(*timing.seconds), rng.uniform(*timing.points)
    drawn = draw_augmentation(crop, augment, rng)
    with open_footage(segment, _find_frames) as footage:
        indices = _choose(segment, footage, seeing, seconds, point, timing.anchor)
        needed = np.unique(indices)
        frames = dict(zip(needed, footage.read(needed)))
    check_shapes(segment, frames)
    return augment_segments(frames, indices[None], [drawn], crop), seconds


def _choose(segment: ActionSegment, footage: Footage, seeing: Seeing, seconds: float, point: float, anchor: str) -> np.ndarray:
    if footage.fps < seeing.fps:
        raise DataError("too slow", f"{segment.path} has {footage.fps:g} frames/s, fewer than the {seeing.fps:g} of a clip")
    indices = frames_before(
        segment.start, segment.stop, footage.fps, frames=seeing.frames, fps=seeing.fps, seconds=seconds, point=point, anchor=anchor
    )
    if indices[-1] >= footage.num_frames:
        raise DataError(
            "fewer frames than stated",
            f"{segment.source_id}: the clip ends at frame {indices[-1]}, the video has {footage.num_frames} frames",
        )
    return indices


class AnticipationPipeline(RowPipeline):
    """Make the batches of one process out of segments of actions.

    A batch is `{'video': uint8 [b, T, H, W, 3], 'seconds': float32 [b]}`, the classes 'verb', 'noun' and 'action', int32
    `[b]`, and with erasing 'erase_boxes' int32 `[b, 4]` and 'erase_seeds' uint32 `[b]`.

    Args:
        group: frames, batch size and name of the source.
        source: the segments. Ours: they are shuffled, while officially those of a video follow one another.
        seeing, timing, crop, augment: see `read_before_augmented`.
        seed: of the order, the times, crops and augmentation.
        max_bad_fraction: of the segments.
        process_index, process_count: which rows of each global batch are made here.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        group: GroupSpec,
        source: ActionSource,
        seeing: Seeing,
        timing: TimingSpec,
        crop: CropSpec,
        augment: AugmentSpec,
        *,
        seed: int,
        max_bad_fraction: float = MAX_BAD_FRACTION,
        process_index: int = 0,
        process_count: int = 1,
    ):
        check_specs([group], crop, augment, {group.name: None})
        check_process([group], process_index, process_count)
        make = _RowMaker(seeing, timing, crop, augment)
        mixture = Mixture(group, [source], make, seed=seed, max_bad_fraction=max_bad_fraction)
        super().__init__(group, mixture, process_index, process_count)


class _RowMaker:
    """Turn a segment into a row; a class so that workers can unpickle it."""

    def __init__(self, seeing: Seeing, timing: TimingSpec, crop: CropSpec, augment: AugmentSpec):
        self._specs, self._erases = (seeing, timing, crop, augment), augment.erase > 0

    def __call__(self, segment: ActionSegment, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        found, seconds = read_before_augmented(segment, *self._specs, rng)
        row = {"video": found.video[0], "seconds": np.float32(seconds)}
        row |= {output: np.int32(label) for output, label in zip(OUTPUTS, segment.labels, strict=True)}
        if self._erases:
            row |= {"erase_boxes": found.erase_boxes[0], "erase_seeds": found.erase_seeds[0]}
        return row
