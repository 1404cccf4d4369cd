"""Frames of video files of any length, one after the other, in constant memory."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import av
import numpy as np
from av.codec.context import ThreadType
from av.video.reformatter import VideoReformatter

from jepa_jax.data.errors import DataError
from jepa_jax.data.video import open_video, shown_packets, stream_fps, to_rgb
from jepa_jax.data.workers import usable_cores

# Rates that differ by a smaller part are the same.
_SAME_RATE = 0.01
# Sound may go on after the picture; a file that misses more than this share was cut.
_WHOLE = 0.8
# More threads decode one video hardly faster.
_MAX_THREADS = 8


_Rate = TypeVar("_Rate", float, Fraction)


@dataclass(frozen=True)
class Timeline:
    """Say when the frames of a video file are shown, and where they lie in it.

    Args:
        path: the file.
        times: float64 `[n]`, seconds from the first frame, by frame index.
        fps: average rate, frames per second; 0.0 if unknown.
        starts: int32 `[n]`, the packet from which decoding gives that frame.
        stamps: int64 `[n]`, time stamps of the frames, or None where they are unusable.
        packets: int32 `[n]`, the packet that holds the frame.
    """

    path: str
    times: np.ndarray
    fps: float
    starts: np.ndarray
    stamps: np.ndarray | None
    packets: np.ndarray

    @property
    def num_frames(self) -> int:
        """Count the frames."""
        return len(self.times)

    @property
    def seconds(self) -> float:
        """Return when the last frame ends, seconds from the first one."""
        return float(self.times[-1]) + (1 / self.fps if self.fps else 0.0)


def read_timeline(path: str | os.PathLike) -> Timeline:
    """Read a video file once, without decoding it.

    Args:
        path: the file.

    Returns:
        Its timeline.

    Raises:
        DataError: as in `video.open_video`, or 'truncated'.
    """
    path = os.fspath(path)
    container, stream = open_video(path)
    with container:
        packets = _read_headers(container, stream, path)
        stated, time_base, nominal = stream.frames, stream.time_base, stream_fps(stream)
        seconds = (container.duration or 0) / av.time_base
        is_mp4, is_avi = ("mp4" in container.format.name), ("avi" in container.format.name)
    if len(packets) < stated and is_mp4:
        # Other formats state slots or estimates.
        raise DataError("truncated", f"{path}: the file ends after {len(packets)} of {stated} frames")
    order = np.array(shown_packets(packets), np.int32)
    if not len(order):
        raise DataError("truncated", f"{path}: the video stream holds no frames")
    stamps = [packets[number].pts for number in order]
    # AVI has no time stamps; FFmpeg makes some up, in the wrong order where frames are reordered.
    if is_avi or None in stamps or len(set(stamps)) < len(stamps):
        # Such frames can only be counted, from the start.
        times = _stored_times(packets, order, time_base, nominal)
        return Timeline(path, times, _average_rate(times, nominal), np.zeros_like(order), None, order)
    stamps = np.array(stamps, np.int64)
    times = (stamps - stamps[0]) * float(time_base)
    fps = _average_rate(times, nominal)
    if not is_mp4 and fps and times[-1] + 1 / fps < _WHOLE * seconds:
        raise DataError("truncated", f"{path}: frames end at {times[-1]:.1f} s of the {seconds:.1f} s it states")
    return Timeline(path, times, fps, _start_packets(packets, order), stamps, order)


@dataclass(frozen=True)
class _Header:
    """Keep what is known of a packet when its data are gone."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_discard: bool


def _read_headers(container: av.container.InputContainer, stream: av.VideoStream, path: str) -> list[_Header]:
    headers = []
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise DataError("truncated", f"{path}: the file ends inside the packet at {packet.pts}")
            if packet.size:
                headers.append(_Header(packet.pts, packet.dts, packet.is_keyframe, packet.is_discard))
    except av.FFmpegError as error:
        raise DataError("truncated", f"{path}: it ends early or its index is wrong: {error.strerror}") from error
    return headers


def _stored_times(packets: list[_Header], order: np.ndarray, time_base, nominal: float) -> np.ndarray:
    """Time the frames by when they are decoded, or at the nominal rate where that is not stated either."""
    stored = [packets[number].dts for number in order]
    if None in stored or len(set(stored)) < len(stored):
        return np.arange(len(order)) / (nominal or 1.0)
    return (np.sort(np.array(stored, np.int64)) - min(stored)) * float(time_base)


def _average_rate(times: np.ndarray, nominal: float) -> float:
    if len(times) < 2 or times[-1] <= 0:
        return nominal
    measured = (len(times) - 1) / float(times[-1])
    return settled_rate(measured, nominal)


def same_rate(measured: float, stated: float) -> bool:
    """Tell whether a measured rate is, but for rounding, the stated one; 0 for one that is not stated."""
    return bool(stated) and abs(measured / stated - 1) < _SAME_RATE


def settled_rate(measured: _Rate, stated: _Rate) -> _Rate:
    """Return the stated rate if the measured one is the same, else the measured one."""
    return stated if same_rate(measured, stated) else measured


def _start_packets(packets: list[_Header], order: np.ndarray) -> np.ndarray:
    """Find for every shown frame the last key frame that is neither stored nor shown after it."""
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe and packet.pts is not None]
    starts = np.zeros_like(order)
    for place, number in enumerate(order):
        key = np.searchsorted(keys, number, side="right") - 1
        # Frames stored after a key frame but shown before it need the one before.
        while key >= 0 and packets[keys[key]].pts > packets[number].pts:
            key -= 1
        starts[place] = keys[key] if key >= 0 else 0
    return starts


def stream_frames(timeline: Timeline, indices: Sequence[int], max_threads: int = _MAX_THREADS) -> Iterator[np.ndarray]:
    """Decode chosen frames in order; what lies between them is skipped where key frames allow it.

    Args:
        timeline: of the file.
        indices: distinct ascending frame indices.
        max_threads: decode with no more; 1 where many videos are decoded at the same time.

    Yields:
        uint8 `[H, W, 3]` RGB per index, turned upright as the file says.

    Raises:
        DataError: as in `video.open_video`, 'damaged', or 'truncated'.
        IndexError: an index is beyond the last frame.
        ValueError: the indices do not ascend.
    """
    wanted = np.asarray(indices, np.int64)
    if not len(wanted) or (np.diff(wanted) <= 0).any():
        raise ValueError(f"frame indices must be some, distinct and ascending, got {wanted[:10].tolist()}")
    if wanted[0] < 0 or wanted[-1] >= timeline.num_frames:
        raise IndexError(f"frames {wanted[0]}..{wanted[-1]} asked of a video with {timeline.num_frames} frames")
    container, stream, packets = _open_near(timeline, int(timeline.starts[wanted[0]]))
    with container:
        if av.logging.get_level() is None:
            # With PyAV's logging on, a decoding thread that reports an error waits for the
            # interpreter lock, whose holder may be waiting for that thread.
            stream.thread_type = ThreadType.AUTO
            stream.codec_context.thread_count = min(max_threads, usable_cores())
        try:
            yield from _decode(stream, packets, timeline, wanted)
        except av.FFmpegError as error:
            raise DataError("damaged", f"{timeline.path}: {error.strerror} while decoding") from error


def _open_near(timeline: Timeline, start: int):
    """Open a file so that its next packet lies at or shortly before `start`: (container, stream, iterator over (number, packet)).

    Without a seek, reading a clip out of a long video would take all that lies before it.
    """
    container, stream = open_video(timeline.path)
    place = np.flatnonzero(timeline.packets == start)
    if start > 0 and len(place) and timeline.stamps is not None:
        try:
            container.seek(int(timeline.stamps[place[0]]), stream=stream)
            packets = _filled(container, stream)
            first = next(packets, None)
        except av.FFmpegError:
            first = None
        landed = None if first is None else _index_of(timeline.stamps, first.pts)
        if landed is not None and timeline.packets[landed] <= start:
            return container, stream, enumerate(itertools.chain([first], packets), int(timeline.packets[landed]))
        # Where it landed is not known, so it is read from the start.
        container.close()
        container, stream = open_video(timeline.path)
    return container, stream, enumerate(_filled(container, stream))


def _filled(container, stream) -> Iterator[av.Packet]:
    return (packet for packet in container.demux(stream) if packet.size)


def _decode(stream, packets, timeline, wanted) -> Iterator[np.ndarray]:
    converter = VideoReformatter()
    missing, shown = deque(wanted), 0
    for frame in _fed_frames(stream, packets, timeline, missing):
        index = shown if timeline.stamps is None else _index_of(timeline.stamps, frame.pts)
        shown += 1
        if index is None or index < missing[0]:
            continue
        if index > missing[0]:
            break
        missing.popleft()
        yield np.ascontiguousarray(np.rot90(to_rgb(converter, frame, index), quarter_turns(frame)))
        if not missing:
            return
    raise DataError("damaged", f"{timeline.path}: frame {missing[0]} cannot be decoded")


def _fed_frames(stream, packets, timeline, missing) -> Iterator[av.VideoFrame]:
    """Decode packets, but not those that the first missing frame does not need; the caller keeps `missing`."""
    decoder = stream.codec_context
    skipping = False
    for number, packet in packets:
        if number < timeline.starts[missing[0]]:
            skipping = True
            continue
        if skipping:
            # What the decoder still holds lies before the gap.
            decoder.flush_buffers()
            skipping = False
        yield from decoder.decode(packet)
    yield from decoder.decode(None)


def whole_frames(container: av.container.InputContainer, stream: av.VideoStream, name: str) -> Iterator[av.VideoFrame]:
    """Decode every frame of a video, and accept none that is not whole.

    Args:
        container, stream: of `video.open_video`.
        name: of the video, for messages.

    Yields:
        The frames, not turned.

    Raises:
        DataError: 'truncated' or 'damaged'.
    """
    # Otherwise FFmpeg drops a frame whose header it cannot read, and goes on.
    stream.codec_context.options = {"err_detect": "explode"}
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise DataError("truncated", f"{name}: the file ends inside the packet at {packet.pts}")
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise DataError("damaged", f"{name}: the frame at {frame.time} s has damaged slices")
                yield frame
    except av.FFmpegError as error:
        raise DataError("damaged", f"{name}: {error.strerror} while decoding") from error


def _index_of(stamps: np.ndarray, stamp: int | None) -> int | None:
    if stamp is None:
        return None
    place = int(np.searchsorted(stamps, stamp))
    return place if place < len(stamps) and stamps[place] == stamp else None


def quarter_turns(frame: av.VideoFrame) -> int:
    """Return how often to turn a decoded frame by 90 degrees, counter-clockwise, to see it upright."""
    return round((frame.rotation or 0) / 90) % 4
