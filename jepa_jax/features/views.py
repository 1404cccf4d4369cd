"""A video as a probe sees it: segments in time, square views in space."""

import numpy as np

from jepa_jax.data import clips, sampling, transforms
from jepa_jax.data.errors import DataError
from jepa_jax.data.stream import read_timeline, stream_frames


def read_views(path, protocol):
    """Read the segments and views of a video.

    Windows are centred in their part of the video, where training draws them at random.

    Args:
      path: a video file; an image stands still for the whole segment.
      protocol: `jepa_jax.weights.bundle.Protocol`.

    Returns:
      uint8 `[S, V, T, H, W, 3]`.

    Raises:
      DataError: if the file cannot be read.

    Source: evals/video_classification_frozen/utils.py, src/datasets/video_dataset.py.
    """
    if clips.is_image(path):
        still = _views(_shrink(clips.read_image(path), protocol)[None], protocol)
        return np.broadcast_to(still, (protocol.num_segments, len(still), protocol.frames, *still.shape[2:]))
    timeline = read_timeline(path)
    indices = sampling.sample_frame_indices(
        timeline.num_frames, timeline.fps, frames=protocol.frames, num_clips=protocol.num_segments,
        step=protocol.frame_step, allow_overlap=True, uniforms=np.full(protocol.num_segments, 0.5),
    )
    needed = np.unique(indices)
    # Resized at once: the frames of a long segment at full size would fill the memory.
    frames = {index: _shrink(frame, protocol) for index, frame in zip(needed, stream_frames(timeline, needed))}
    if len({frame.shape for frame in frames.values()}) > 1:
        raise DataError("changing shape", f"{path}: its frames change their shape")
    segments = [np.stack([frames[index] for index in segment]) for segment in indices]
    return np.stack([_views(segment, protocol) for segment in segments])


def read_single_view(path, preprocessing):
    """Read one clip spread over the whole video, for classifiers that name no protocol: uint8 `[1, 1, T, H, W, 3]`."""
    clip = clips.read_clip(path, preprocessing.frames, preprocessing.crop_size, short_side=preprocessing.short_side)
    return np.broadcast_to(clip, (preprocessing.frames, *clip.shape[1:]))[None, None]


def _short_side(protocol):
    return protocol.crop_size if protocol.num_views > 1 else clips.resized_side(protocol.crop_size)


def _shrink(frame, protocol):
    clips.check_elongation(*frame.shape[:2])
    return transforms.eval_resize(frame[None], _short_side(protocol))[0]


def _views(frames, protocol):
    """Cut frames of the right short side into views, uint8 `[V, T, H, W, 3]`."""
    if protocol.num_views > 1:
        return np.stack(transforms.spatial_views(frames, protocol.crop_size, protocol.num_views))
    return transforms.center_crop(frames, protocol.crop_size)[None]
