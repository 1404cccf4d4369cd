"""Look at records of shards one by one: what each holds, and whether all of it can be decoded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from jepa_jax.data.errors import DataError
from jepa_jax.data.latents import Origin, all_finite
from jepa_jax.data.poses import rotation_steps
from jepa_jax.data.records import ClipRecord, Record, ShardSource
from jepa_jax.data.trajectories import KIND, TrajectoryRecord, View
from jepa_jax.data.video import decode_image, open_video, stream_fps, to_rgb

# Rows of a trajectory that histograms count, evenly spaced: all rows of very many would not fit in memory.
ROWS_KEPT = 32
# A step this many times the trajectory's 95th percentile, and at least this long, is a gap: rows are missing.
GAP_FACTOR, GAP_LENGTH = 4.0, 0.02
# Short side of the picture kept of a record, pixels.
THUMBNAIL = 160
# A file's own rate may differ from the record's by this part.
_SAME_RATE = 0.01
_OPEN_SHARDS = 8
_RADIANS = "rad"


class Span(NamedTuple):
    """Name records of one shard, and those of them that a picture is wanted of."""

    path: str
    indices: tuple[int, ...]
    pictured: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name the records in messages."""
        return f"{self.path}#{self.indices[0]}..{self.indices[-1]}"


class Layout(NamedTuple):
    """Say what the numbers of a trajectory mean; those of one layout are counted together."""

    state_names: tuple[str, ...]
    state_units: tuple[str, ...]
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    frame: str
    rotation: str

    def angles(self) -> np.ndarray:
        """Tell which dimensions of the state are angles, bool `[S]`."""
        found = np.array([unit == _RADIANS for unit in self.state_units], bool)
        if self.rotation != "none":
            found[3:6] = True
        return found


class Motion(NamedTuple):
    """Hold what is counted of a trajectory.

    Args:
        layout: what its numbers mean.
        states, actions: float32 `[<= ROWS_KEPT, S]` and `[.., A]`; no rows if there are no actions.
        bounds: float32 `[2, S]`, least and greatest state over all rows.
        control_rate, header_fps: rows per second, in truth and as stated.
        gaps: steps that are far longer than the others.
        wraps: jumps of an angle by more than pi.
        idle: part of the steps in which no number changes.
        turn: fastest turn of the end effector, rad/s; None where the state holds no orientation.
        views: cameras.
        with_extrinsics: views whose camera pose is known.
    """

    layout: Layout
    states: np.ndarray
    actions: np.ndarray
    bounds: np.ndarray
    control_rate: float
    header_fps: float
    gaps: int
    wraps: int
    idle: float
    turn: float | None
    views: tuple[str, ...]
    with_extrinsics: tuple[str, ...]


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
    return sum(len(view.data) + (len(view.latents.tokens) if view.latents else 0) for view in record.views)


def _feature_facts(record: TrajectoryRecord) -> FeatureFacts | None:
    stored = [view.latents for view in record.views if view.latents]
    if not stored:
        return None
    return FeatureFacts(stored[0].origin, record.num_features, sum(len(latents.tokens) for latents in stored))


def check_record(record: Record, pictured: bool = False) -> np.ndarray | None:
    """Decode all of a record and compare it with what the record says of itself.

    Args:
        record: a clip or a trajectory.
        pictured: return its middle frame, of the first view.

    Returns:
        uint8 `[H, W, 3]`, its short side THUMBNAIL or less, or None.

    Raises:
        DataError: 'frame count', 'size' or 'frame rate' where they disagree, 'not finite' features, or
            as in `video.open_video`, 'damaged', 'not an image'.
    """
    if record.kind == KIND:
        return [_check_view(record, view, pictured) for view in record.views][0]
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
        # Otherwise FFmpeg drops a frame whose header it cannot read, and goes on.
        stream.codec_context.options = {"err_detect": "explode"}
        rate = stream_fps(stream)
        try:
            for packet in container.demux(stream):
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise DataError("damaged", f"{name}: frame {count} has damaged slices")
                    _check_equal("size", f"{name}: frame {count}", (frame.height, frame.width), size)
                    if pictured and count == num_frames // 2:
                        picture = _thumbnail(to_rgb(VideoReformatter(), frame, count))
                    count += 1
        except av.FFmpegError as error:
            raise DataError("damaged", f"{name}: {error.strerror} while decoding frame {count}") from error
    _check_equal("frame count", name, count, num_frames)
    if rate and abs(rate / fps - 1) > _SAME_RATE:
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


def layout_of(record: TrajectoryRecord) -> Layout:
    """Return what the numbers of a trajectory mean."""
    return Layout(*(getattr(record, name) for name in Layout._fields))


def measure_motion(record: TrajectoryRecord) -> Motion:
    """Count what a trajectory's numbers do.

    Args:
        record: a trajectory.

    Returns:
        Its motion.
    """
    states, layout = record.states.astype(np.float64), layout_of(record)
    steps = np.diff(states, axis=0)
    angles = layout.angles()
    poses = record.rotation != "none"
    turn = None
    if poses:
        turn = float(rotation_steps(states[:, 3:6]).max(initial=0.0) * record.control_rate)
    moved = _step_lengths(steps, layout)
    return Motion(
        layout, _evenly(record.states), _evenly(record.actions if record.actions is not None else np.zeros((0, 0))),
        np.stack([record.states.min(0), record.states.max(0)]), record.control_rate, record.header_fps,
        len(gap_places(moved)), int((np.abs(steps[:, angles]) > np.pi).sum()),
        float((steps == 0).all(axis=1).mean()) if len(steps) else 0.0, turn,
        tuple(view.name for view in record.views),
        tuple(view.name for view in record.views if view.extrinsics is not None),
    )  # fmt: skip


def _step_lengths(steps: np.ndarray, layout: Layout) -> np.ndarray:
    """Measure steps by what has one unit: positions, or else angles, which may wrap."""
    metres = [unit == "m" for unit in layout.state_units]
    if any(metres):
        return np.linalg.norm(steps[:, metres], axis=1)
    turns = steps[:, layout.angles()]
    return np.linalg.norm((turns + np.pi) % (2 * np.pi) - np.pi, axis=1)


def gap_places(moved: np.ndarray) -> np.ndarray:
    """Find the steps that are far longer than the others, as where rows are missing.

    Args:
        moved: float `[n]`, lengths of steps, m or rad.

    Returns:
        int64, their places.
    """
    usual = np.percentile(moved, 95) if len(moved) else 0.0
    return np.flatnonzero(moved > max(GAP_LENGTH, GAP_FACTOR * usual))


def _evenly(rows: Sequence) -> np.ndarray:
    places = np.linspace(0, len(rows) - 1, min(len(rows), ROWS_KEPT)).round().astype(int)
    return np.asarray(rows, np.float32)[places]
