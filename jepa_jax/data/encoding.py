"""Encode frames the way shards hold them: H.264 in mp4, close key frames, the same bytes every time."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from jepa_jax.data.errors import DataError
from jepa_jax.data.stream import quarter_turns

# Faster presets cost bytes, slower ones cost minutes; decoding speed hardly changes.
_PRESET = "veryfast"
# A rate beyond this is a broken header, not a camera.
_MAX_FPS = 1000


@dataclass(frozen=True)
class Encoding:
    """Say how videos are stored.

    Args:
        size: short side, pixels; smaller videos keep their size.
        gop: frames from one key frame to the next.
        crf: x264 quality; lower is better and larger.

    Attributes:
        pixel_format: FFmpeg's name of how colors are stored; here at half the resolution, as cameras do.
    """

    pixel_format: ClassVar[str] = "yuv420p"
    size: int = 256
    gop: int = 12
    crf: int = 18


class Encoded(NamedTuple):
    """Hold an mp4 file and what is in it: frames, pixels."""

    data: bytes
    num_frames: int
    height: int
    width: int


def encode_video(frames: Iterable[av.VideoFrame], rate: Fraction, spec: Encoding, name: str) -> Encoded:
    """Encode all frames, in order, at a constant rate.

    Args:
        frames: decoded, upright; the first one decides the stored size.
        rate: frames per second.
        spec: size, key frames, quality.
        name: of the source, for messages.

    Returns:
        The mp4 file.

    Raises:
        DataError: 'truncated' when there is no frame, 'cannot encode', or what `frames` raises.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise DataError("truncated", f"{name}: no frame can be decoded")
    height, width = stored_size(first.height, first.width, spec.size)
    encoder = _Encoder(height, width, rate, spec, first)
    encoder.add(first)
    for frame in frames:
        encoder.add(frame)
    return Encoded(encoder.finish(), encoder.count, height, width)


def stored_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Choose the stored (height, width): short side at most `short_side`, both even (H.264 4:2:0 needs it)."""
    scale = min(1.0, short_side / min(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def storable_rate(rate: Fraction | float | None, name: str) -> Fraction:
    """Turn a frame rate into one that an mp4 can state exactly.

    Args:
        rate: frames per second; None or 0 if the source states none.
        name: of the source, for messages.

    Returns:
        The rate, frames per second, its denominator at most 1001.

    Raises:
        DataError: 'no frame rate'.
    """
    if not rate or not 0 < rate <= _MAX_FPS:
        raise DataError("no frame rate", f"{name}: the average frame rate is {rate}, expected 0..{_MAX_FPS} frames/s")
    # The encoder's time base has 32-bit parts; 1001 keeps the television rates exact.
    return Fraction(rate).limit_denominator(1001)


def upright(frame: av.VideoFrame) -> av.VideoFrame:
    """Turn a decoded frame as its file says; most are returned as they are."""
    turns = quarter_turns(frame)
    return rgb_frame(np.rot90(frame.to_ndarray(format="rgb24"), turns)) if turns else frame


def rgb_frame(image: np.ndarray) -> av.VideoFrame:
    """Wrap uint8 `[H, W, 3]` RGB as a frame for `encode_video`."""
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")


def rgb_frames(images: Iterable[np.ndarray]) -> Iterator[av.VideoFrame]:
    """Wrap pictures one at a time, so that no more than one is held."""
    return (rgb_frame(image) for image in images)


class _Encoder:
    """Write frames to an mp4 in memory, one thread, so that the bytes are the same every time."""

    def __init__(self, height: int, width: int, rate: Fraction, spec: Encoding, like: av.VideoFrame):
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._time_base = 1 / rate
        self._scaler = VideoReformatter()
        self.count = 0
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, spec.pixel_format
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
            frame, context.width, context.height, context.pix_fmt, interpolation="AREA", threads=1
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
