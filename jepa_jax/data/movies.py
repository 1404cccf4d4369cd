"""Write frames as an mp4 that plays everywhere."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

_PARTIAL = ".partial"
_CRF = 18
# ITU-R BT.709, as players assume for most sizes; FFmpeg's number for primaries, transfer and matrix.
_BT709 = 1


def write_mp4(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float) -> int:
    """Write H.264 in 4:2:0, with even sides, readable before it is fully loaded.

    The file appears under its name when it is complete; one already there is replaced.

    Args:
        path: of the file; its folder is made.
        frames: uint8 `[H, W, 3]` RGB, all of one size. Odd sides get one more row or
            column, a copy of the last.
        fps: frames per second, above 0.

    Returns:
        The number of frames written.

    Raises:
        ValueError: no frames, frames of several sizes or not uint8 RGB, or no rate.
        OSError: the file cannot be written.
    """
    if not fps > 0:
        raise ValueError(f"fps is {fps}; it must be above 0 frames per second")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"no frames to write to {path}")
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        count = _encode(path + _PARTIAL, itertools.chain([first], frames), first.shape, Fraction(fps).limit_denominator(1001))
        os.replace(path + _PARTIAL, path)
    finally:
        if os.path.exists(path + _PARTIAL):
            os.remove(path + _PARTIAL)
    return count


def _encode(path: str, frames: Iterable[np.ndarray], shape: tuple[int, ...], rate: Fraction) -> int:
    converter = VideoReformatter()
    count = 0
    # The index goes first, so that a browser need not load the whole file to start.
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate)
        context = stream.codec_context
        context.height, context.width = (side + side % 2 for side in shape[:2])
        context.pix_fmt, context.time_base = "yuv420p", 1 / rate
        context.options = {"crf": str(_CRF), "preset": "medium"}
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = int(ColorRange.MPEG)
        for image in frames:
            if image.shape != shape or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"frame {count} is {image.dtype} {list(image.shape)}; all must be uint8 like the first, {list(shape)}")
            image = np.pad(image, [(0, side % 2) for side in shape[:2]] + [(0, 0)], mode="edge")
            frame = converter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"), format="yuv420p",
                dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG,
            )
            frame.pts, frame.time_base = count, 1 / rate
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode(None))
    return count
