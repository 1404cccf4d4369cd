"""Turn one video or image file into the small, quickly decoded form that shards hold."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import av
import cv2

from jepa_jax.data import pieces, scenes, tars
from jepa_jax.data.conversion import Noted, Split
from jepa_jax.data.copies import local_copy
from jepa_jax.data.encoding import (
    Encoded,
    Encoding,
    encode_video,
    storable_rate,
    upright,
)
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import Ambiguous, Item, Scene
from jepa_jax.data.records import ClipRecord
from jepa_jax.data.stream import settled_rate, whole_frames
from jepa_jax.data.video import decode_image, open_video, read_file

JPEG_QUALITY = 95
# Sound may go on after the picture; a file that misses more than this was cut.
_WHOLE = 0.8
_LABELS = ("listed with different labels, so stored without one",)


@dataclass(frozen=True)
class VideoSpec(Encoding):
    """Say how videos are stored.

    Args:
        size: short side, pixels; smaller videos keep their size.
        gop: frames from one key frame to the next.
        crf: x264 quality; lower is better and larger.
        min_frames: videos with fewer frames are skipped.
        max_seconds: longer videos and scenes are stored in parts, since whoever reads a clip reads
            all of its record; 0 stores them whole.
    """

    kind: ClassVar[str] = "video"
    min_frames: int = 8
    max_seconds: float = 0.0

    def convert(self, item: Item | Scene) -> ClipRecord | Noted | Split:
        """Make the record of a video file or of a scene in one; as `transcode_video` and `transcode_scene`.

        Raises:
            DataError: as there, or as in `copies.local_copy` and `pieces.divide`.
        """
        notes = _LABELS if isinstance(item, Ambiguous) else ()
        with local_copy(item.path, reused=isinstance(item, Scene)) as path:
            here = item._replace(path=path)
            division = pieces.divide(here, self.max_seconds)
            if division.pieces:
                return Split(tuple(piece._replace(path=item.path) for piece in division.pieces))
            if isinstance(item, Scene):
                record = transcode_scene(here, self)
            else:
                record = transcode_video(path, self, item.label)
        if division.indivisible:
            notes += ("longer than --max-seconds, but stored whole, as its frames have no time stamps",)
        record = record._replace(source_id=item.name)
        return Noted(record, notes) if notes else record


@dataclass(frozen=True)
class ImageSpec:
    """Say how images are stored: `size` is the short side in pixels; smaller ones are kept as they are."""

    kind: ClassVar[str] = "image"
    size: int = 256

    def convert(self, item: Item | tars.Member) -> ClipRecord | Noted:
        """Make the record of an image file or of a member of a tar; as `store_image`."""
        if isinstance(item, tars.Member):
            return store_image_bytes(tars.read_member(item), self, item.name, item.label)
        with local_copy(item.path) as path:
            record = store_image(path, self, item.label)._replace(source_id=item.name)
        return Noted(record, _LABELS) if isinstance(item, Ambiguous) else record


def transcode_video(path: str, spec: VideoSpec, label: int | None = None) -> ClipRecord:
    """Read a video file and encode it again as H.264 with close key frames.

    Every frame is kept, in order, at the average rate of the source; phone
    videos are turned upright. The bytes depend on the file and the spec only.

    Args:
        path: the file.
        spec: size, key frames, quality.
        label: stored in the record.

    Returns:
        A 'video' record with `path` as its source id.

    Raises:
        DataError: as in `encode_file`, or 'too short'.
    """
    video, rate = encode_file(path, spec)
    _check_minimum(video.num_frames, spec, path)
    return ClipRecord("video", video.data, float(rate), video.num_frames, video.height, video.width, path, label)


def transcode_scene(scene: Scene, spec: VideoSpec) -> ClipRecord:
    """Read a part of a video file, decoding no more than it needs, and encode it as `transcode_video` does.

    Args:
        scene: the file and the seconds from its first frame; a frame shown at the end is not part of it.
        spec: size, key frames, quality.

    Returns:
        A 'video' record with the scene's name as its source id.

    Raises:
        DataError: as in `encode_file`, or 'empty scene', 'scene beyond the end', 'no time stamps', 'too short'.
    """
    cut = scenes.read_scene(scene.path, scene.start, scene.end)
    _check_minimum(cut.num_frames, spec, scene.name)
    rate = storable_rate(cut.rate, scene.name)
    video = encode_video(cut.frames, rate, spec, scene.name)
    return ClipRecord(
        "video", video.data, float(rate), video.num_frames, video.height, video.width, scene.name, scene.label
    )


def encode_file(
    path: str, spec: Encoding, rate: float | None = None, limit: int | None = None
) -> tuple[Encoded, Fraction]:
    """Encode the frames of a video file.

    Args:
        path: the file.
        spec: size, key frames, quality.
        rate: frames per second of the result; the average rate of the source if None.
        limit: first frames to keep; all if None.

    Returns:
        The mp4 file, and the average rate of the source, frames per second.

    Raises:
        DataError: the file cannot be used; see `video.open_video` for reasons,
            or 'truncated', 'damaged', 'no frame rate', 'cannot encode'.
    """
    container, stream = open_video(path)
    with container:
        own_rate, stated = _stated_length(container, stream, path)
        frames = itertools.islice(map(upright, whole_frames(container, stream, path)), limit)
        video = encode_video(frames, storable_rate(rate, path) if rate else own_rate, spec, path)
    stated = stated if limit is None else min(stated, limit)
    if video.num_frames < stated:
        raise DataError(
            "truncated", f"{path}: {video.num_frames} frames can be read, its header promises {stated} or more"
        )
    return video, own_rate


def _stated_length(
    container: av.container.InputContainer, stream: av.VideoStream, path: str
) -> tuple[Fraction, int]:
    """Return the average frame rate (frames per second) and the least number of frames a whole file has."""
    rate, stated = stream.average_rate or stream.guessed_rate, stream.frames
    if "mp4" not in container.format.name:
        # Only mp4 and mov hold a table of frames. AVI counts time slots, empty ones
        # too, and others state a nominal rate, so the packets are counted instead.
        rate, stated = _measured_length(path, rate)
    return storable_rate(rate, path), stated


def _measured_length(path: str, nominal: Fraction | None) -> tuple[Fraction | None, int]:
    """Read all packets for the true average rate, and the frame count that the stated duration promises."""
    container, stream = open_video(path)
    with container:
        try:
            stamps = [packet.pts for packet in container.demux(stream) if packet.size]
        except av.FFmpegError as error:
            raise DataError("truncated", f"{path}: {error.strerror} while reading") from error
        known = [stamp for stamp in stamps if stamp is not None]
        if len(known) < 2 or len(known) < len(stamps) or max(known) == min(known):
            return nominal, 0
        measured = Fraction(len(known) - 1) / ((max(known) - min(known)) * stream.time_base)
        rate = settled_rate(measured, Fraction(nominal or 0))
        seconds = (container.duration or 0) / av.time_base
    return rate, int(_WHOLE * seconds * rate)


def _check_minimum(decoded: int, spec: VideoSpec, name: str) -> None:
    if decoded < spec.min_frames:
        raise DataError("too short", f"{name}: {decoded} frames; at least {spec.min_frames} are wanted (--min-frames)")


def store_image(path: str, spec: ImageSpec, label: int | None = None) -> ClipRecord:
    """Read an image file; shrink it to jpeg if it is larger than the spec, else keep its bytes.

    Args:
        path: the file.
        spec: size.
        label: stored in the record.

    Returns:
        An 'image' record with `path` as its source id.

    Raises:
        DataError: 'missing file', 'unreadable file', 'empty file', 'truncated' or
            'not an image'.
    """
    return store_image_bytes(read_file(path), spec, os.fspath(path), label)


def store_image_bytes(data: bytes, spec: ImageSpec, name: str, label: int | None = None) -> ClipRecord:
    """Make the record of an encoded image; as `store_image`, with `name` as its source id."""
    try:
        image = decode_image(data)
    except DataError as error:
        raise DataError(error.reason, f"{name}: {error}") from error
    height, width = image.shape[:2]
    if min(height, width) > spec.size:
        scale = spec.size / min(height, width)
        height, width = round(height * scale), round(width * scale)
        # Area averaging: stored pictures should not alias.
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    return ClipRecord("image", data, 0.0, 1, height, width, name, label)
