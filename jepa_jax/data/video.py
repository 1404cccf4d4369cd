"""Decode chosen frames of encoded videos and images."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.codec.context import ThreadType
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from jepa_jax.data.errors import DataError

_JPEG_MAGIC, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PNG_MAGIC, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"


class VideoInfo(NamedTuple):
    """Describe a video: frames, frames per second, pixels."""

    num_frames: int
    fps: float
    height: int
    width: int


def open_video(data: bytes | str | os.PathLike) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a video for decoding on the calling thread.

    Args:
        data: the encoded file as bytes, or its path.

    Returns:
        The container (close it) and its first video stream.

    Raises:
        DataError: 'empty file', 'missing file', 'unreadable file', 'truncated',
            'not a video', 'no video stream' or 'unknown codec'.
    """
    name = f"{len(data)} bytes" if isinstance(data, bytes) else str(data)
    try:
        if not (len(data) if isinstance(data, bytes) else os.path.getsize(data)):
            raise DataError("empty file", f"{name}: the file is empty")
        container = av.open(io.BytesIO(data) if isinstance(data, bytes) else os.fspath(data))
    except FileNotFoundError as error:
        raise DataError("missing file", f"{name}: no such file") from error
    # Errors of FFmpeg are also OSErrors or ValueErrors, so they come first.
    except av.error.InvalidDataError as error:
        if _lacks_mp4_index(data):
            raise DataError("truncated", f"{name}: the file ends before its index (moov)") from error
        raise DataError("not a video", f"{name}: FFmpeg finds no known video format in it") from error
    except av.FFmpegError as error:
        raise DataError("not a video", f"{name}: {error.strerror}") from error
    except OSError as error:
        raise DataError("unreadable file", f"{name}: {error.strerror}") from error
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        container.close()
        raise DataError("no video stream", f"{name}: holds no video stream")
    if streams[0].codec_context is None:
        container.close()
        raise DataError("unknown codec", f"{name}: FFmpeg has no decoder for its video stream")
    streams[0].thread_type = ThreadType.NONE
    streams[0].codec_context.thread_count = 1
    return container, streams[0]


def _lacks_mp4_index(data: bytes | str | os.PathLike) -> bool:
    """Tell whether data starts like an mp4 or mov file: it was one, and was cut."""
    if isinstance(data, bytes):
        return data[4:8] == b"ftyp"
    with open(data, "rb") as file:
        return file.read(8)[4:8] == b"ftyp"


def stream_fps(stream: av.VideoStream) -> float:
    """Return the average frame rate of a stream, frames per second; 0.0 if unknown."""
    return float(stream.average_rate or stream.guessed_rate or 0.0)


def probe(data: bytes | str | os.PathLike) -> VideoInfo:
    """Count the frames of a video without decoding it.

    Args:
        data: the encoded file as bytes, or its path.

    Returns:
        Frame count, average rate (frames per second), height and width (pixels).

    Raises:
        DataError: as in `open_video`, or 'truncated'.
    """
    container, stream = open_video(data)
    with container:
        order = shown_packets(_demux(container, stream))
        return VideoInfo(len(order), stream_fps(stream), stream.codec_context.height, stream.codec_context.width)


def decode_frames(data: bytes | str | os.PathLike, indices: Sequence[int]) -> np.ndarray:
    """Decode the frames at `indices` into one array: `decode_frame_list`, stacked to uint8 `[T, H, W, 3]`."""
    return np.stack(decode_frame_list(data, indices))


def decode_frame_list(data: bytes | str | os.PathLike, indices: Sequence[int]) -> list[np.ndarray]:
    """Decode the frames at `indices` and no more than they need, as `visit_frames`.

    Args:
        data: the encoded file as bytes, or its path.
        indices: frame numbers in order of presentation; any order, repeats allowed.

    Returns:
        One uint8 `[H, W, 3]` RGB array per index, a repeated one being the same array.

    Raises:
        DataError: as in `visit_frames`.
        IndexError: an index is beyond the last frame.
    """
    converter = VideoReformatter()
    images: dict[int, np.ndarray] = {}
    visit_frames(data, indices, lambda frame, index: images.update({index: to_rgb(converter, frame, index)}))
    return [images[int(index)] for index in indices]


def visit_frames(
    data: bytes | str | os.PathLike, indices: Sequence[int], visit: Callable[[av.VideoFrame, int], None]
) -> None:
    """Decode the frames at `indices` and hand each one over, once, as it comes out of the decoder.

    All packets are read first; only those between the key frame before a wanted
    frame and the frame itself are decoded.

    Args:
        data: the encoded file as bytes, or its path.
        indices: frame numbers in order of presentation; any order, repeats allowed.
        visit: (frame, its index) -> None.

    Raises:
        DataError: as in `open_video`, or 'damaged', or 'truncated'.
        IndexError: an index is beyond the last frame.
    """
    wanted = sorted(set(int(index) for index in indices))
    if not wanted:
        raise ValueError("indices is empty; name at least one frame")
    container, stream = open_video(data)
    with container:
        packets = _demux(container, stream)
        shown = shown_packets(packets)
        if wanted[0] < 0 or wanted[-1] >= len(shown):
            raise IndexError(f"frames {wanted[0]}..{wanted[-1]} asked of a video with {len(shown)} frames")
        try:
            lost = _decode_wanted(stream.codec_context, packets, shown, wanted, visit)
        except av.FFmpegError as error:
            raise DataError("damaged", f"a slice cannot be decoded: {error.strerror}") from error
    if lost:
        raise DataError("damaged", f"frames {sorted(lost)[:5]} of {len(shown)} cannot be decoded")


def _demux(container: av.container.InputContainer, stream: av.VideoStream) -> list[av.Packet]:
    """Read every packet of a stream, in decode order."""
    try:
        packets = [packet for packet in container.demux(stream) if packet.size]
    except av.FFmpegError as error:
        raise DataError("truncated", f"the file ends early or its index is wrong: {error.strerror}") from error
    if not packets:
        raise DataError("truncated", "the video stream holds no frames")
    if any(packet.is_corrupt for packet in packets) or len(packets) < stream.frames:
        raise DataError("truncated", f"the file ends after {len(packets)} of {stream.frames} frames")
    return packets


def shown_packets(packets: list[av.Packet]) -> list[int]:
    """List packet numbers in order of presentation; the position is the frame index.

    Works for variable rates and reordered (B) frames. Packets that an edit list
    marks as not shown are decoded but have no index.
    """
    shown = [number for number, packet in enumerate(packets) if not packet.is_discard]
    if any(packets[number].pts is None for number in shown):
        return shown
    return sorted(shown, key=lambda number: packets[number].pts)


def _decode_wanted(
    decoder: av.VideoCodecContext,
    packets: list[av.Packet],
    shown: list[int],
    wanted: list[int],
    visit: Callable[[av.VideoFrame, int], None],
) -> set[int]:
    """Decode the wanted frame indices (ascending); return those that did not come out."""
    stamps = [packets[number].pts for number in shown]
    if None in stamps or len(set(stamps)) < len(stamps):
        return _decode_counting(decoder, packets, set(wanted), visit)
    index_of = {stamp: index for index, stamp in enumerate(stamps)}
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    missing = set(wanted)
    fed = 0
    for index in wanted:
        if index not in missing:
            continue
        start = max((k for k in keys if k <= shown[index] and packets[k].pts <= stamps[index]), default=0)
        if start > fed:
            # Nothing between here and that key frame is needed.
            decoder.flush_buffers()
            fed = start
        while index in missing and fed <= len(packets):
            # After the last packet, None drains the frames the decoder holds back.
            for frame in decoder.decode(packets[fed] if fed < len(packets) else None):
                found = index_of.get(frame.pts)
                if found in missing:
                    visit(frame, found)
                    missing.discard(found)
            fed += 1
    return missing


def _decode_counting(
    decoder: av.VideoCodecContext,
    packets: list[av.Packet],
    missing: set[int],
    visit: Callable[[av.VideoFrame, int], None],
) -> set[int]:
    """Decode from the start and count frames, for files without usable time stamps."""
    count = 0
    for packet in [*packets, None]:
        for frame in decoder.decode(packet):
            if count in missing:
                visit(frame, count)
                missing.discard(count)
            count += 1
        if not missing:
            break
    return missing


def to_rgb(converter: VideoReformatter, frame: av.VideoFrame, index: int) -> np.ndarray:
    """Convert a decoded frame to uint8 `[H, W, 3]`; raise 'damaged' for one that is not whole."""
    if frame.is_corrupt:
        raise DataError("damaged", f"frame {index} has damaged slices")
    # The default starts one thread per core for every frame.
    return converter.reformat(frame, format="rgb24", threads=1).to_ndarray()


def read_file(path: str | os.PathLike) -> bytes:
    """Read a whole file.

    Raises:
        DataError: 'missing file' or 'unreadable file'.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise DataError("missing file", f"{path}: no such file") from error
    except OSError as error:
        raise DataError("unreadable file", f"{path}: {error.strerror}") from error


def decode_image(data: bytes) -> np.ndarray:
    """Decode a still image, turned upright as its EXIF data say.

    Args:
        data: an encoded jpeg, png or other image that OpenCV reads.

    Returns:
        uint8 `[H, W, 3]` RGB.

    Raises:
        DataError: 'empty file', 'truncated' or 'not an image'.
    """
    if not data:
        raise DataError("empty file", "the image file is empty")
    # OpenCV fills the lost part of a cut image with grey and reports success.
    if data.startswith(_JPEG_MAGIC) and data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
        raise DataError("truncated", f"the jpeg ends after {len(data)} bytes without its end marker")
    if data.startswith(_PNG_MAGIC) and _PNG_END not in data[-64:]:
        raise DataError("truncated", f"the png ends after {len(data)} bytes without its end chunk")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise DataError("not an image", f"OpenCV refuses it: {error.err}") from error
    if image is None:
        raise DataError("not an image", f"{len(data)} bytes in no image format that OpenCV reads")
    return image
