"""The middle of a scene, as an encoder takes it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jepa_jax.data import clips, scenes
from jepa_jax.data.copies import local_copy
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import Item, Scene


@dataclass(frozen=True)
class FrameSpec:
    """Say which frames of a scene are embedded.

    Args:
        frames: 1 for the middle frame, as in the paper; more for a clip around the middle.
        fps: frames per second of a clip.
        size: side of the central square, pixels.
    """

    kind: ClassVar[str] = "frames"
    frames: int
    fps: float
    size: int

    def convert(self, item: Item | Scene) -> np.ndarray:
        """Read the middle of a scene, of a whole video, or an image.

        Returns:
            uint8 `[frames, size, size, 3]`; an image is one frame. Short scenes repeat their last frame.

        Raises:
            DataError: it cannot be read; the reason is that of the reader.
        """
        with local_copy(item.path, reused=isinstance(item, Scene)) as path:
            if isinstance(item, Scene):
                return clips.preprocess(self._scene(scenes.with_end(item, path), path), self.size, clips.resized_side(self.size))
            if self.frames == 1:
                return clips.read_clip(path, 1, self.size, step=1)
            return clips.read_clip(path, self.frames, self.size, fps=self.fps)

    def _scene(self, scene: Scene, path: str) -> np.ndarray:
        span = (self.frames - 1) / self.fps
        start = max(scene.start, (scene.start + scene.end - span) / 2)
        cut = scenes.read_scene(path, start, scene.end)
        step = max(1, round(float(cut.rate) / self.fps)) if self.frames > 1 else 1
        chosen = itertools.islice(cut.frames, 0, step * (self.frames - 1) + 1, step)
        images = [frame.to_ndarray(format="rgb24") for frame in chosen]
        if not images:
            raise DataError("empty scene", f"{scene.name}: no frame is shown at {start:g} s or later")
        return np.stack([images[min(place, len(images) - 1)] for place in range(self.frames)])
