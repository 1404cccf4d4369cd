"""A video as a probe sees it: segments in time, square views in space."""

import numpy as np

from jepa_jax.data import clips, segments
from jepa_jax.data.labelled import LabelledFile


def read_views(path, protocol):
    """Read the segments and views of a video.

    Windows are centred in their part of the video, where training draws them at random.

    Args:
      path: a video file; an image stands still for the whole segment.
      protocol: `jepa_jax.weights.bundle.Protocol`.

    Returns:
      (uint8 `[S, V, T, H, W, 3]`, int32 `[S, T]`): the views, and which frames of the video they show.

    Raises:
      DataError: if the file cannot be read.
    """
    return segments.read_views(LabelledFile(path, None), protocol, np.full(protocol.num_segments, 0.5))


def read_single_view(path, preprocessing):
    """Read one clip spread over the whole video, for classifiers that name no protocol: uint8 `[1, 1, T, H, W, 3]`."""
    clip = clips.read_clip(path, preprocessing.frames, preprocessing.crop_size, short_side=preprocessing.short_side)
    return np.broadcast_to(clip, (preprocessing.frames, *clip.shape[1:]))[None, None]
