"""Divide long videos into consecutive parts, so that a clip of one is read without reading all of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import av
import numpy as np

from jepa_jax.data.listing import Item, Scene
from jepa_jax.data.stream import read_timeline
from jepa_jax.data.video import open_video

# What is longer by less is not divided.
_SLACK_S = 1.0


class Piece(Scene):
    """Name a part that is not divided again."""


class Division(NamedTuple):
    """Say how a video is stored.

    Args:
        pieces: its parts in order, which together have every frame once; none if it is stored whole.
        indivisible: it is long, but its frames have no time stamps to find them by.
    """

    pieces: tuple[Piece, ...] = ()
    indivisible: bool = False


def divide(item: Item | Scene, max_seconds: float) -> Division:
    """Divide a video or a scene of one that is too long, at frames and into parts of about the same length.

    Args:
        item: a file of this host; the end of a scene may be infinite.
        max_seconds: length of the parts, seconds; 0 leaves videos whole.

    Returns:
        Its pieces, named like scenes: seconds from the first frame.

    Raises:
        DataError: as in `stream.read_timeline`.
    """
    start, end = (item.start, item.end) if isinstance(item, Scene) else (0.0, math.inf)
    open_ended = isinstance(item, Scene) and math.isinf(end)
    limit = max_seconds + _SLACK_S if max_seconds else math.inf
    if isinstance(item, Piece) or not 0 <= start < end:
        return Division()
    if not open_ended and _stated_seconds(item.path, start, end) <= limit:
        return Division()
    timeline = read_timeline(item.path)
    if timeline.stamps is None:
        return Division(indivisible=True)
    times = _times(item.path, timeline.stamps)
    last = float(times[-1]) + (1 / timeline.fps if timeline.fps else 0.0)
    times = times[(times >= start) & (times < end)]
    end = min(end, last) if math.isinf(end) else end
    if not len(times) or end > last + _SLACK_S or (end - times[0] <= limit and not open_ended):
        return Division()
    count = math.ceil((end - times[0]) / max_seconds) if end - times[0] > limit else 1
    # By time, not by number: the rate of frames may vary.
    places = np.searchsorted(times, np.linspace(times[0], end, count + 1)[1:-1])
    starts = [float(times[place]) for place in sorted({0, *places.tolist()}) if place < len(times)]
    spans = zip(starts, [*starts[1:], end], strict=True)
    return Division(tuple(Piece(item.path, *span, item.label) for span in spans))


def _stated_seconds(path: str, start: float, end: float) -> float:
    """Return how long the part of a file is, as far as its header says, or else infinity."""
    if not math.isinf(end):
        return end - start
    container, stream = open_video(path)
    with container:
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base) - start
        return container.duration / av.time_base - start if container.duration else math.inf


def _times(path: str, stamps: np.ndarray) -> np.ndarray:
    """Say when frames are shown, seconds, counted as `scenes.read_scene` counts."""
    container, stream = open_video(path)
    with container:
        return np.maximum(0.0, (stamps - (stream.start_time or 0)) * float(stream.time_base))
