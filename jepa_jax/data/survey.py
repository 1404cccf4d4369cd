"""Look at records of shards one by one: what each holds, and whether all of it can be decoded."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from jepa_jax.data.errors import DataError
from jepa_jax.data.latents import Origin, all_finite
from jepa_jax.data.motion import Motion, measure_motion
from jepa_jax.data.records import ClipRecord, Record, ShardSource
from jepa_jax.data.stream import same_rate, whole_frames
from jepa_jax.data.trajectories import KIND, TrajectoryRecord, View
from jepa_jax.data.video import decode_image, open_video, stream_fps, to_rgb

# Short side of the picture kept of a record, pixels.
THUMBNAIL = 160
_OPEN_SHARDS = 8


class Span(NamedTuple):
    """Name records of one shard, and those of them that a picture is wanted of."""

    path: str
    indices: tuple[int, ...]
    pictured: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name the records in messages."""
        return f"{self.path}#{self.indices[0]}..{self.indices[-1]}"


class FeatureFacts(NamedTuple):
    """Say what is stored of the frames of a record: by what it was made, frames of all views, bytes."""

    origin: Origin
    frames: int
    num_bytes: int


class Facts(NamedTuple):
    """Hold what is known of a record; everything after `damage` is None or empty for one that cannot be read."""

    location: str
    damage: tuple[str, str] | None = None
    kind: str | None = None
    num_bytes: int = 0
    num_frames: int = 0
    seconds: float = 0.0
    fps: float = 0.0
    size: tuple[int, int] = (0, 0)
    label: int | None = None
    source_id: str | None = None
    notes: tuple[str, ...] = ()
    motion: Motion | None = None
    features: FeatureFacts | None = None
    picture: np.ndarray | None = None


@dataclass(frozen=True)
class SurveySpec:
    """Look at records as the item of `conversion.convert_all` says: every frame is decoded."""

    kind: ClassVar[str] = "survey"

    def convert(self, item: Span) -> list[Facts]:
        """Look at the records of a span; damage is part of the facts.

        Raises:
            DataError: the shard cannot be opened.
        """
        source = _open_shard(item.path)
        return [_look(source, index, index in item.pictured) for index in item.indices]


@functools.lru_cache(_OPEN_SHARDS)
def _open_shard(path: str) -> ShardSource:
    return ShardSource([path], "any")


def _look(source: ShardSource, index: int, pictured: bool) -> Facts:
    location = source.locate(index)
    try:
        record = source[index]
    except DataError as error:
        return Facts(location, (error.reason, str(error)))
    damage, picture = None, None
    try:
        picture = check_record(record, pictured)
    except DataError as error:
        damage = (error.reason, f"{location} ({record.source_id}): {error}")
    is_clip = isinstance(record, ClipRecord)
    return Facts(
        location, damage, record.kind, _encoded_bytes(record), record.num_frames, record.seconds, record.fps,
        (record.height, record.width) if is_clip else (record.views[0].height, record.views[0].width),
        record.label if is_clip else None, record.source_id, record.notes,
        None if is_clip else measure_motion(record), None if is_clip else _feature_facts(record), picture,
    )  # fmt: skip


def _encoded_bytes(record: Record) -> int:
    if isinstance(record, ClipRecord):
        return len(record.data)
    return sum(len(view.data) + (view.latents.num_bytes if view.latents else 0) for view in record.views)


def _feature_facts(record: TrajectoryRecord) -> FeatureFacts | None:
    stored = [view.latents for view in record.views if view.latents]
    if not stored:
        return None
    return FeatureFacts(stored[0].origin, record.num_features, sum(latents.num_bytes for latents in stored))


def check_record(record: Record, pictured: bool = False) -> np.ndarray | None:
    """Decode all of a record and compare it with what the record says of itself.

    Args:
        record: a clip or a trajectory.
        pictured: return its middle frame, of the first view that has frames.

    Returns:
        uint8 `[H, W, 3]`, its short side THUMBNAIL or less, or None.

    Raises:
        DataError: 'frame count', 'size' or 'frame rate' where they disagree, 'not finite' features, or
            as in `video.open_video`, 'damaged', 'not an image'.
    """
    if record.kind == KIND:
        found = [_check_view(record, view, pictured) for view in record.views]
        return next((picture for picture in found if picture is not None), None)
    if record.kind == "video":
        return _check_video(
            record.data, record.num_frames, (record.height, record.width), record.fps, "video", pictured
        )
    image = decode_image(record.data)
    _check_equal("size", "image", image.shape[:2], (record.height, record.width))
    return _thumbnail(image) if pictured else None


def _check_view(record: TrajectoryRecord, view: View, pictured: bool) -> np.ndarray | None:
    name = f"view {view.name!r}"
    if view.latents and not all_finite(view.latents.rows(view.latents.frames)):
        raise DataError("not finite", f"{name}: features are not finite")
    if not view.data:
        return None
    return _check_video(view.data, record.num_frames, (view.height, view.width), record.fps, name, pictured)


def _check_video(
    data: bytes, num_frames: int, size: tuple[int, int], fps: float, name: str, pictured: bool
) -> np.ndarray | None:
    container, stream = open_video(data)
    picture, count = None, 0
    with container:
        rate = stream_fps(stream)
        for frame in whole_frames(container, stream, name):
            _check_equal("size", f"{name}: frame {count}", (frame.height, frame.width), size)
            if pictured and count == num_frames // 2:
                picture = _thumbnail(to_rgb(VideoReformatter(), frame, count))
            count += 1
    _check_equal("frame count", name, count, num_frames)
    if rate and not same_rate(rate, fps):
        raise DataError("frame rate", f"{name}: the file says {rate:g} frames/s, the record {fps:g}")
    return picture


def _check_equal(reason: str, name: str, found, stated) -> None:
    if found != stated:
        raise DataError(reason, f"{name}: decoded {found}, the record says {stated}")


def _thumbnail(image: np.ndarray) -> np.ndarray:
    scale = THUMBNAIL / min(image.shape[:2])
    if scale >= 1:
        return image
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
