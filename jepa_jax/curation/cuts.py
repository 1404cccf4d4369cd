"""Cut videos into scenes where the picture changes at once."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import cv2
import numpy as np

from jepa_jax.data.copies import local_copy
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import Item, Rejected, Scene
from jepa_jax.data.scenes import with_end
from jepa_jax.data.stream import Timeline, read_timeline, stream_frames

# Frames are compared at this width, pixels: cuts show in small pictures too.
_COMPARED_WIDTH = 256
# Two cuts closer than this, in s, are one: a flash or a dissolve.
_SHORTEST_CUT = 0.6
# Kinetics names its clips after the video and the seconds that were taken from it.
_CLIP_TIMES = re.compile(r"_\d{6}_\d{6}$")


class Cuts(NamedTuple):
    """Hold the scenes of a video.

    Args:
        path: the file.
        seconds: its length.
        scenes: (start, end), seconds from its first frame.
        short: scenes that were dropped because they are short.
        short_seconds: how long those are together.
    """

    path: str
    seconds: float
    scenes: list[tuple[float, float]]
    short: int
    short_seconds: float


@dataclass(frozen=True)
class CutSpec:
    """Say how videos are cut into scenes; the detector is PySceneDetect's adaptive one.

    Args:
        min_seconds: shorter scenes are dropped.
        threshold: how many times the change around it a change must be, to be a cut.
        min_change: and how large, mean over hue, saturation and brightness in 0..255.
    """

    kind: ClassVar[str] = "scenes"
    min_seconds: float = 4.0
    threshold: float = 3.0
    min_change: float = 15.0

    def convert(self, item: Item | Scene) -> Cuts:
        """Cut a video; a scene that is listed already is taken as it is.

        Raises:
            DataError: as in `stream.read_timeline`, `stream.stream_frames` and `copies.local_copy`, or 'no frame rate'.
        """
        if isinstance(item, Scene):
            if math.isinf(item.end):
                with local_copy(item.path, reused=True) as path:
                    item = with_end(item, path)
            found, seconds = [(item.start, item.end)], max(0.0, item.end - item.start)
        else:
            # Its scenes will be embedded next.
            with local_copy(item.path, reused=True) as path:
                timeline = read_timeline(path)
                if not timeline.fps > 0:
                    raise DataError("no frame rate", f"{path}: states no frame rate")
                found = find_scenes(timeline, self)
            seconds = found[-1][1]
        long = [scene for scene in found if scene[1] - scene[0] >= self.min_seconds]
        lost = sum(end - start for start, end in found) - sum(end - start for start, end in long)
        return Cuts(item.path, seconds, long, len(found) - len(long), lost)


def find_scenes(timeline: Timeline, spec: CutSpec) -> list[tuple[float, float]]:
    """Find all scenes of a video; every frame is in one.

    Args:
        timeline: of the video, with a frame rate.
        spec: how to cut.

    Returns:
        (start, end) in seconds from the first frame: a scene starts with the frame shown
        at its start and ends before the one at its end.

    Raises:
        DataError: as in `stream.stream_frames`.
    """
    detector, frame_number = _detector(spec), 0
    timecode = _timecode_class()
    cuts: list[int] = []
    for frame_number, frame in enumerate(stream_frames(timeline, range(timeline.num_frames), max_threads=1)):
        found = detector.process_frame(timecode(frame_number, timeline.fps), _small_bgr(frame))
        cuts += [cut.frame_num for cut in found]
    cuts += [cut.frame_num for cut in detector.post_process(timecode(frame_number, timeline.fps))]
    # Times of the file, not frame numbers over a rate: the rate may vary.
    borders = [0.0, *(float(timeline.times[cut]) for cut in sorted(set(cuts)) if cut)]
    borders.append(timeline.seconds)
    return list(itertools.pairwise(borders))


def _small_bgr(frame: np.ndarray) -> np.ndarray:
    scale = min(1.0, _COMPARED_WIDTH / frame.shape[1])
    size = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    return cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR), cv2.COLOR_RGB2BGR)


def _detector(spec: CutSpec):
    detectors = _scenedetect().detectors
    return detectors.AdaptiveDetector(
        adaptive_threshold=spec.threshold, min_scene_len=_SHORTEST_CUT, min_content_val=spec.min_change
    )


def _timecode_class() -> type:
    return _scenedetect().FrameTimecode


def _scenedetect():
    try:
        import scenedetect
    except ImportError as error:
        raise MissingLibraryError(
            "cutting videos into scenes needs PySceneDetect: pip install 'jepa_jax[curate]'"
        ) from error
    return scenedetect


class MissingLibraryError(Exception):
    """Say which extra is not installed."""


def check_library() -> None:
    """Raise MissingLibraryError unless scenes can be found."""
    _scenedetect()


def video_key(path: str) -> str:
    """Name a video by its file name, without ending and without the times that Kinetics puts there."""
    return _CLIP_TIMES.sub("", os.path.splitext(os.path.basename(path.strip()))[0])


def exclude(items: Sequence[Item | Scene | Rejected], lines: Iterable[str]) -> list[Item | Scene | Rejected]:
    """Replace videos that are listed elsewhere, such as in a validation set, by a `Rejected`, reason 'excluded'.

    Args:
        items: the pool.
        lines: paths or names of videos; only the file name counts (`video_key`).

    Returns:
        As many items, in the same order.
    """
    keys = {video_key(line) for line in lines if line.strip()}
    return [
        Rejected(item.name, "excluded", f"{item.name} is on the list of excluded videos")
        if not isinstance(item, Rejected) and video_key(item.path) in keys
        else item
        for item in items
    ]
