"""Which frames of a video go into which window of an encoder."""

from typing import NamedTuple

import numpy as np


class Windows(NamedTuple):
    """The windows of one video. Positions count sampled frames, indices native ones.

    Attributes:
      sampled: int64 `[S]`, native index of every sampled frame, ascending.
      starts: int64 `[W]`, position of the first frame of every window, ascending.
      frames: frames per window, T.
    """

    sampled: np.ndarray
    starts: np.ndarray
    frames: int

    def positions(self):
        """Return int64 `[W, T]`: the sampled frame at every place; a short video repeats its last."""
        places = self.starts[:, None] + np.arange(self.frames)
        return np.minimum(places, len(self.sampled) - 1)

    def frame_indices(self):
        """Return int64 `[W, T]`: the native frame at every place."""
        return self.sampled[self.positions()]


def plan_windows(num_frames, step, frames, stride):
    """Cover a video with windows of one length.

    The last window is moved back so that it ends with the video, so every sampled frame
    is in a window. A video shorter than one window repeats its last sampled frame.

    Args:
      num_frames: native frames of the video.
      step: native frames from one sampled frame to the next.
      frames: sampled frames per window.
      stride: sampled frames from one window to the next; `frames` makes them abut.

    Returns:
      `Windows`.

    Raises:
      ValueError: if a number is below 1, or the stride leaves gaps.
    """
    if min(num_frames, step, frames, stride) < 1:
        raise ValueError(f"num_frames {num_frames}, step {step}, frames {frames} and stride {stride} must be at least 1")
    if stride > frames:
        raise ValueError(f"stride {stride} is above the {frames} frames of a window, so frames between windows would be lost")
    sampled = np.arange(0, num_frames, step)
    last = max(0, len(sampled) - frames)
    starts = np.append(np.arange(0, last, stride), last)
    return Windows(sampled, starts, frames)


def most_central(windows):
    """Choose for every sampled frame the window in whose middle it is nearest: it has most context there.

    Args:
      windows: `Windows`.

    Returns:
      (window, place): int64 `[S]` each; the earlier window where two are as good.
    """
    middles = windows.starts + (windows.frames - 1) / 2
    positions = np.arange(len(windows.sampled))
    right = np.searchsorted(middles, positions).clip(0, len(middles) - 1)
    left = np.maximum(right - 1, 0)
    window = np.where(np.abs(positions - middles[left]) <= np.abs(positions - middles[right]), left, right)
    return window, positions - windows.starts[window]
