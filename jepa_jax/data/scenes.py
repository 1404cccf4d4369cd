"""Cut a part out of a long video, reading and decoding no more of it than the part needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av

from jepa_jax.data.encoding import upright
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import Scene
from jepa_jax.data.stream import read_timeline, settled_rate
from jepa_jax.data.video import open_video, stream_fps

# A scene may end this many seconds after the video's last frame: detectors count in rounded times.
_SLACK = 0.5
# How many seconds before a scene to look for a key frame that its first frame can be decoded from.
_LOOK_BACK = (0.0, 1.0, 10.0, 60.0, math.inf)


class Cut(NamedTuple):
    """Hold a scene.

    Args:
        num_frames: how many frames it has.
        rate: frames per second, measured between its frames.
        header_fps: frames per second as the file states, 0.0 if it does not.
        frames: decoded as they are asked for.
    """

    num_frames: int
    rate: Fraction
    header_fps: float
    frames: Iterator[av.VideoFrame]


def with_end(scene: Scene, path: str) -> Scene:
    """Give a scene whose end is infinite that of its video.

    Args:
        scene: of any end.
        path: the video, on this host.

    Raises:
        DataError: as in `stream.read_timeline`.
    """
    return scene._replace(end=read_timeline(path).seconds) if math.isinf(scene.end) else scene


def read_scene(path: str, start: float, end: float) -> Cut:
    """Find the frames of a scene and decode them lazily.

    Args:
        path: the video file.
        start, end: seconds from its first frame; a frame shown at `end` is left out.

    Returns:
        The scene.

    Raises:
        DataError: as in `video.open_video`, or 'empty scene', 'scene beyond the end', 'no
            time stamps', 'truncated'; while decoding 'damaged'.
    """
    name = f"{path} {start:g}..{end:g} s"
    if not 0 <= start < end:
        raise DataError("empty scene", f"{name}: expected 0 <= start < end")
    container, stream = open_video(path)
    with container:
        base, unit = stream.start_time or 0, stream.time_base
        # Rounded inwards: a frame at the start belongs to the scene, one at the end does not.
        low, high = base + math.ceil(start / unit - 1e-6), base + math.ceil(end / unit - 1e-6)
        stamps, ended = _stamps(container, stream, low, high, name)
        header_fps = stream_fps(stream)
    nominal = Fraction(header_fps).limit_denominator(1001)
    short = (high - max(stamps, default=low)) * float(unit)
    if ended and (not stamps or short > _SLACK + (1 / nominal if nominal else 0)):
        raise DataError("scene beyond the end", f"{name}: its last {short:.3g} s lie after the last frame of the video")
    rate = nominal
    if len(stamps) > 1:
        rate = settled_rate(Fraction(len(stamps) - 1) / ((max(stamps) - min(stamps)) * unit), nominal)
    return Cut(len(stamps), rate, header_fps, _frames(path, low, set(stamps), name))


def _stamps(container, stream, low: int, high: int, name: str) -> tuple[list[int], bool]:
    """List the time stamps in low .. high - 1, and tell whether the video ended before `high`."""
    found = []
    try:
        for packet in _from_key_frame(container, stream, low):
            if packet.is_corrupt:
                raise DataError("truncated", f"{name}: the file ends inside the packet at {packet.pts}")
            if packet.pts is None:
                raise DataError("no time stamps", f"{name}: its frames have no time stamps; cut the file first")
            if packet.dts is not None and packet.dts >= high:
                return found, False
            if low <= packet.pts < high and not packet.is_discard:
                found.append(packet.pts)
    except av.FFmpegError as error:
        raise DataError("truncated", f"{name}: {error.strerror} while reading") from error
    return found, True


def _from_key_frame(container, stream, low: int) -> Iterator[av.Packet]:
    """Demux from a key frame that is shown at or before `low`, or from the beginning."""
    base = stream.start_time or 0
    for seconds in _LOOK_BACK:
        target = base if math.isinf(seconds) else max(base, low - math.ceil(seconds / stream.time_base))
        container.seek(target, stream=stream)
        packets = (packet for packet in container.demux(stream) if packet.size)
        first = next(packets, None)
        if first is None:
            continue
        early = first.is_keyframe and first.pts is not None and first.pts <= low
        if early or target == base:
            yield first
            yield from packets
            return


def _frames(path: str, low: int, wanted: set[int], name: str) -> Iterator[av.VideoFrame]:
    container, stream = open_video(path)
    with container:
        # Unlike whole files, scenes are not decoded with err_detect=explode: it refuses to begin
        # at key frames that do not reset the decoder. A dropped frame is missed by its time stamp.
        missing = set(wanted)
        try:
            for frame in _decoded(container, stream, low):
                if frame.pts not in missing:
                    continue
                if frame.is_corrupt:
                    raise DataError("damaged", f"{name}: the frame at {frame.time} s has damaged slices")
                missing.discard(frame.pts)
                yield upright(frame)
                if not missing:
                    return
        except av.FFmpegError as error:
            raise DataError("damaged", f"{name}: {error.strerror} while decoding") from error
    raise DataError("damaged", f"{name}: {len(missing)} of {len(wanted)} frames cannot be decoded")


def _decoded(container, stream, low: int) -> Iterator[av.VideoFrame]:
    for packet in _from_key_frame(container, stream, low):
        try:
            yield from stream.codec_context.decode(packet)
        except av.FFmpegError:
            # Frames before the scene may depend on others that were not read.
            if packet.pts >= low:
                raise
    yield from stream.codec_context.decode(None)
