"""Files as sequences of windows, decoded in background threads ahead of the device."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import queue
import threading
from typing import NamedTuple

import numpy as np

from jepa_jax.data import clips
from jepa_jax.data.copies import local_copy
from jepa_jax.data.errors import DataError
from jepa_jax.data.stream import Timeline, read_timeline, stream_frames
from jepa_jax.data.workers import usable_cores
from jepa_jax.features.windows import Windows, plan_windows

# Files decoded at the same time, and windows of each that may wait for the device.
_MAX_FILES, _WINDOWS_AHEAD = 8, 2
# Seconds after which a waiting thread looks whether it is still wanted.
_PATIENCE = 0.2


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How files become windows.

    Attributes:
      frames: per window; an image is a window of one frame.
      stride: sampled frames from one window to the next.
      fps, step: the sampling rate, frames per second, or native frames from one to the next; one of them is None.
      crop_size: side of the central square, pixels; None keeps the aspect.
      short_side: frames are resized to it, pixels.
      multiple: patch size, pixels.
    """

    frames: int
    stride: int
    fps: float | None
    step: int | None
    crop_size: int | None
    short_side: int
    multiple: int

    def preprocess(self, frame):
        """Turn one frame uint8 `[H, W, 3]` into the size the encoder gets."""
        return clips.preprocess(frame[None], self.crop_size, self.short_side, self.multiple)[0]


class Source(NamedTuple):
    """A readable file and its windows.

    Attributes:
      path: the file.
      windows: `Windows`.
      times: float64 `[W, T]`, seconds from the first frame.
      fps: of the sampled frames, frames per second; 0.0 for an image.
      timeline: of a video; None for an image.
    """

    path: str
    windows: Windows
    times: np.ndarray
    fps: float
    timeline: Timeline | None

    def at(self, path):
        """Return the same source under another path."""
        return self._replace(path=path, timeline=self.timeline and dataclasses.replace(self.timeline, path=path))


def open_source(path, sampling):
    """Plan the windows of a file.

    Args:
      path: a video or image file.
      sampling: `Sampling`.

    Returns:
      `Source`.

    Raises:
      DataError: if the file cannot be read; for an image, only when its frames are.
    """
    if clips.is_image(path):
        return Source(path, plan_windows(1, 1, 1, 1), np.zeros((1, 1)), 0.0, None)
    timeline = read_timeline(path)
    step = clips.sampling_step(timeline, sampling.fps, sampling.step)
    windows = plan_windows(timeline.num_frames, step, sampling.frames, sampling.stride)
    return Source(path, windows, timeline.times[windows.frame_indices()], timeline.fps / step, timeline)


def read_frames(source, sampling):
    """Yield the sampled frames of a source, preprocessed, one by one.

    Yields:
      uint8 `[H, W, 3]`, all of one size.

    Raises:
      DataError: if a frame cannot be decoded, or the video changes its shape.
    """
    if source.timeline is None:
        yield sampling.preprocess(clips.read_image(source.path))
        return
    shape = None
    for frame in stream_frames(source.timeline, source.windows.sampled):
        frame = sampling.preprocess(frame)
        if shape not in (None, frame.shape):
            raise DataError("changing shape", f"{source.path}: its frames change from {shape} to {frame.shape} (rows, columns)")
        shape = frame.shape
        yield frame


def read_windows(source, frames):
    """Yield the windows of a source in order; every frame is decoded once, however much they overlap.

    Args:
      source: `Source`.
      frames: iterator over its sampled frames, as from `read_frames`.

    Yields:
      uint8 `[T, H, W, 3]`.
    """
    held = collections.deque()
    first = 0
    for positions in source.windows.positions():
        while first < positions[0]:
            held.popleft()
            first += 1
        while first + len(held) <= positions[-1]:
            held.append(next(frames))
        yield np.stack([held[position - first] for position in positions])


class Window(NamedTuple):
    """One window: which it is, and its frames, uint8 `[T, H, W, 3]`."""

    number: int
    frames: np.ndarray


class End(NamedTuple):
    """The end of a file: `error` is None, or the DataError that ended it early."""

    error: DataError | None


def read_ahead(paths, sampling):
    """Read files in background threads, each file by one thread.

    Args:
      paths: the files.
      sampling: `Sampling`.

    Yields:
      per file, in the order of the files: its `Source`, its `Window`s, and `End`; for one
      that cannot be opened only `End`.
    """
    stop = threading.Event()
    threads = max(2, min(_MAX_FILES, usable_cores()))
    paths = iter(paths)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(threads, "decode"))
        # Leaving the pool waits for its threads, which wait for this.
        stack.callback(stop.set)

        def start():
            for path in paths:
                # Room for a source and an end beside the windows.
                line = queue.Queue(_WINDOWS_AHEAD + 1)
                return pool.submit(_read_into, line, path, sampling, stop), line
            return None

        running = collections.deque(reader for reader in (start() for _ in range(threads)) if reader)
        while running:
            future, line = running.popleft()
            while True:
                event = _take(future, line)
                yield event
                if isinstance(event, End):
                    break
            if reader := start():
                running.append(reader)


def _take(future, line):
    while True:
        try:
            return line.get(timeout=_PATIENCE)
        except queue.Empty:
            # A thread that failed puts nothing more; this raises what it failed with.
            if future.done() and line.empty():
                future.result()


def _read_into(line, path, sampling, stop):
    def put(event):
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                line.put(event, timeout=_PATIENCE)
                return

    try:
        with local_copy(path) as copy:
            source = open_source(copy, sampling)
            put(source.at(path))
            for number, frames in enumerate(read_windows(source, _until(stop, read_frames(source, sampling)))):
                put(Window(number, frames))
    except DataError as error:
        put(End(error))
    else:
        put(End(None))


def _until(stop, frames):
    for frame in frames:
        if stop.is_set():
            # Nobody reads this; it ends the thread, which else would go on to the end of its window.
            raise DataError("stopped")
        yield frame
