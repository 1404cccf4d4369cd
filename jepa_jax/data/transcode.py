"""Turn any video or image file into the small, quickly decoded form that shards hold."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from jepa_jax.data.errors import DataError
from jepa_jax.data.records import ClipRecord
from jepa_jax.data.stream import quarter_turns
from jepa_jax.data.video import decode_image, open_video

JPEG_QUALITY = 95
# Faster presets cost bytes, slower ones cost minutes; decoding speed hardly changes.
_PRESET = "veryfast"
# A rate beyond this is a broken header, not a camera.
_MAX_FPS = 1000
# A measured rate this close to the stated one is the stated one.
_SAME_RATE = 0.01
# Sound may go on after the picture; a file that misses more than this was cut.
_WHOLE = 0.8


@dataclass(frozen=True)
class VideoSpec:
    """Say how videos are stored.

    Args:
        size: short side, pixels; smaller videos keep their size.
        gop: frames from one key frame to the next.
        crf: x264 quality; lower is better and larger.
        min_frames: videos with fewer frames are skipped.
    """

    size: int = 256
    gop: int = 12
    crf: int = 18
    min_frames: int = 8


@dataclass(frozen=True)
class ImageSpec:
    """Say how images are stored: `size` is the short side in pixels; smaller ones are kept as they are."""

    size: int = 256


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
        DataError: the file cannot be used; see `video.open_video` for reasons,
            or 'truncated', 'damaged', 'too short', 'no frame rate', 'cannot encode'.
    """
    container, stream = open_video(path)
    with container:
        # Otherwise FFmpeg drops a frame whose header it cannot read, and goes on.
        stream.codec_context.options = {"err_detect": "explode"}
        rate, stated = _stated_length(container, stream, path)
        frames = _upright_frames(container, stream, path)
        first = next(frames, None)
        if first is None:
            raise DataError("truncated", f"{path}: no frame can be decoded")
        height, width = stored_size(first.height, first.width, spec.size)
        encoder = _Encoder(height, width, rate, spec, first)
        encoder.add(first)
        for frame in frames:
            encoder.add(frame)
        _check_length(encoder.count, stated, spec.min_frames, path)
    data = encoder.finish()
    return ClipRecord("video", data, float(rate), encoder.count, height, width, path, label)


def stored_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Choose the stored (height, width): short side at most `short_side`, both even (H.264 4:2:0 needs it)."""
    scale = min(1.0, short_side / min(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def _stated_length(
    container: av.container.InputContainer, stream: av.VideoStream, path: str
) -> tuple[Fraction, int]:
    """Return the average frame rate (frames per second) and the least number of frames a whole file has."""
    rate, stated = stream.average_rate or stream.guessed_rate, stream.frames
    if "mp4" not in container.format.name:
        # Only mp4 and mov hold a table of frames. AVI counts time slots, empty ones
        # too, and others state a nominal rate, so the packets are counted instead.
        rate, stated = _measured_length(path, rate)
    if not rate or not 0 < rate <= _MAX_FPS:
        raise DataError("no frame rate", f"{path}: the average frame rate is {rate}, expected 0..{_MAX_FPS} frames/s")
    # The encoder's time base has 32-bit parts; 1001 keeps the television rates exact.
    return Fraction(rate).limit_denominator(1001), stated


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
        rate = Fraction(len(known) - 1) / ((max(known) - min(known)) * stream.time_base)
        if nominal and abs(rate / nominal - 1) < _SAME_RATE:
            rate = Fraction(nominal)
        seconds = (container.duration or 0) / av.time_base
    return rate, int(_WHOLE * seconds * rate)


def _upright_frames(
    container: av.container.InputContainer, stream: av.VideoStream, path: str
) -> Iterator[av.VideoFrame]:
    """Yield decoded frames, turned as the file says."""
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise DataError("truncated", f"{path}: the file ends inside the packet at {packet.pts}")
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise DataError("damaged", f"{path}: the frame at {frame.time} s has damaged slices")
                yield _upright(frame)
    except av.FFmpegError as error:
        raise DataError("damaged", f"{path}: {error.strerror} while decoding") from error


def _upright(frame: av.VideoFrame) -> av.VideoFrame:
    turns = quarter_turns(frame)
    if not turns:
        return frame
    turned = np.rot90(frame.to_ndarray(format="rgb24"), turns)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="rgb24")


def _check_length(decoded: int, stated: int, minimum: int, path: str) -> None:
    if decoded < stated:
        raise DataError("truncated", f"{path}: {decoded} frames can be read, its header promises {stated} or more")
    if decoded < minimum:
        raise DataError("too short", f"{path}: {decoded} frames; at least {minimum} are wanted (--min-frames)")


class _Encoder:
    """Write frames to an mp4 in memory, one thread, so that the bytes are the same every time."""

    def __init__(self, height: int, width: int, rate: Fraction, spec: VideoSpec, like: av.VideoFrame):
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._time_base = 1 / rate
        self._scaler = VideoReformatter()
        self.count = 0
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = self._time_base
        context.thread_count = 1
        # Colours are stored as they came, so their description must come along.
        if like.format.name != "rgb24":
            context.colorspace, context.color_range = like.colorspace, like.color_range
        context.options = {
            "preset": _PRESET,
            # No CABAC and no deblocking: half the decoding time.
            "tune": "fastdecode",
            "crf": str(spec.crf),
            "g": str(spec.gop),
            "keyint_min": str(spec.gop),
            "sc_threshold": "0",
            "bf": "0",
            # mbtree reads memory that x264 never wrote when the width is no multiple
            # of 16: one run in fifty gave other bytes.
            "x264-params": "threads=1:lookahead-threads=1:mbtree=0",
        }

    def add(self, frame: av.VideoFrame) -> None:
        """Encode one frame, whatever its size and time stamp."""
        context = self._stream.codec_context
        scaled = self._scaler.reformat(
            frame, context.width, context.height, "yuv420p", interpolation="AREA", threads=1
        )
        scaled.pts, scaled.time_base = self.count, self._time_base
        # Otherwise the source's own key frames would be key frames here too.
        scaled.pict_type = 0
        self._mux(scaled)
        self.count += 1

    def finish(self) -> bytes:
        """Return the whole file."""
        self._mux(None)
        self._container.close()
        return self._buffer.getvalue()

    def _mux(self, frame: av.VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except av.FFmpegError as error:
            size = f"{self._stream.codec_context.width}x{self._stream.codec_context.height}"
            raise DataError("cannot encode", f"frame {self.count} at {size}: {error.strerror}") from error


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
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise DataError("missing file", f"{path}: no such file") from error
    except OSError as error:
        raise DataError("unreadable file", f"{path}: {error.strerror}") from error
    image = decode_image(data)
    height, width = image.shape[:2]
    if min(height, width) > spec.size:
        scale = spec.size / min(height, width)
        height, width = round(height * scale), round(width * scale)
        # Area averaging: stored pictures should not alias.
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    return ClipRecord("image", data, 0.0, 1, height, width, os.fspath(path), label)
