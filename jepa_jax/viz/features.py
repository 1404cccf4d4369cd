"""What an encoder tells apart in a real clip: principal components of its latents as colours."""

import os
from typing import NamedTuple

import cv2
import jax
import numpy as np

from jepa_jax.data import ShardSource, sampling, transforms, video
from jepa_jax.data.clips import whole_patches
from jepa_jax.features.pca import fit_colors
from jepa_jax.models import normalize_pixels, token_grid
from jepa_jax.tasks import pretrain
from jepa_jax.viz import canvas

# Records looked at to find a video.
_SEARCHED = 64
# Short side of the clip, in training crops: a finer token grid than in training shows more.
DETAIL = 2.0
_MAX_COLUMNS = 8
# White pixels between a frame and its colours.
_GAP = 8
_MIN_INCHES = 6.5


class Clip(NamedTuple):
    """Frames to encode.

    Attributes:
      frames: uint8 `[T, H, W, 3]`, whole tubelets and patches.
      fps: frames per second of `frames`.
      name: where they come from.
    """

    frames: np.ndarray
    fps: float
    name: str


def read_clip(config, path=None, detail=DETAIL):
    """Read the middle of a video at the frame rate of training, undistorted.

    Args:
      config: ConfigDict of the run.
      path: a video file; the first video of the run's shards if None.
      detail: short side of the result, in sides of a training crop.

    Returns:
      `Clip`.

    Raises:
      DataError: if the video cannot be read.
      FileNotFoundError: if shards of the run are missing.
      ValueError: if `detail` leaves less than a patch.
    """
    group = _video_group(config)
    section = config.data.groups[group]
    data, name = (path, str(path)) if path is not None else _first_video(config, group)
    info = video.probe(data)
    # A video slower than the training rate is taken frame by frame.
    step = max(1, sampling.frame_step(info.fps, frames=section.frames, fps=section.fps))
    indices = sampling.sample_frame_indices(
        info.num_frames, info.fps, frames=section.frames, step=step, uniforms=np.array([0.5])
    )[0]
    frames = video.decode_frames(data, indices)
    patch = config.model.patch_size
    short_side = round(detail * config.data.size / patch) * patch
    if short_side < patch:
        raise ValueError(f"detail {detail} of {config.data.size} pixels is less than one patch of {patch} pixels")
    frames = whole_patches(transforms.eval_resize(frames, short_side), patch)
    return Clip(frames, info.fps / step, os.path.basename(name))


def _video_group(config):
    groups = sorted(config.data.groups.items())
    videos = [name for name, section in groups if section.batch_size and section.kind == "video"]
    if not videos:
        raise canvas.PictureError("this run has no video group, so it has no clip to show; give one with --video FILE")
    return videos[0]


def _first_video(config, group):
    sources = pretrain.make_sources(config.data.root, config.data.groups[group], f"data.groups.{group}")
    paths = [path for source in sources for path in source.paths]
    source = ShardSource(paths, cache=pretrain.make_cache(config.data))
    for index in range(min(len(source), _SEARCHED)):
        record = source[index]
        if record.kind == "video":
            return record.data, record.source_id
    raise canvas.PictureError(f"no video among the first {_SEARCHED} records of {source.files[0]}; give --video FILE")


def encode_clip(encoder, params, frames):
    """Encode a clip of any size.

    Args:
      encoder: `VideoEncoder`.
      params: its parameters.
      frames: uint8 `[T, H, W, 3]`.

    Returns:
      float32 `[t, h, w, D]`.
    """
    grid = token_grid(*frames.shape[:3], encoder.patch_size, encoder.tubelet_size)
    latents = jax.jit(encoder.apply)({"params": params}, normalize_pixels(frames)[None])
    return np.asarray(latents[0], np.float32).reshape(*grid, -1)


def pca_colors(latents):
    """Turn latents into colours by their first three principal components over the whole clip.

    Args:
      latents: float `[t, h, w, D]`, D at least 3.

    Returns:
      (colors, share): float64 `[t, h, w, 3]` in 0..1, and the share of the variance that the
      three components hold.
    """
    colors = fit_colors([latents])
    return colors.apply(latents), colors.share


def shown_places(count, columns=_MAX_COLUMNS):
    """Choose which of `count` pictures are shown in a row: all, or some evenly spaced with both ends."""
    return np.linspace(0, count - 1, min(count, columns)).round().astype(int)


def share_label(label, share):
    """Say what a row of colours is: its name, and how much of the variance the colours hold."""
    return f"{label}\n({share:.0%} of variance\nin the 3 colours)"


def draw_features(clip, rows, name):
    """Draw frames and below them the colours of latents, time to the right.

    Args:
      clip: `Clip`.
      rows: dict from label to latents `[t, h, w, D]`.
      name: the run, for the title.

    Returns:
      matplotlib `Figure`.
    """
    time_steps = next(iter(rows.values())).shape[0]
    tubelet = len(clip.frames) // time_steps
    shown = shown_places(time_steps)
    pictures = []
    for label, latents in rows.items():
        colors, share = pca_colors(latents)
        pictures.append((share_label(label, share), colors[shown]))
    height, width = clip.frames.shape[1:3]
    return draw_strip(
        clip.frames[shown * tubelet], [f"{time * tubelet / clip.fps:.2f} s" for time in shown], pictures,
        f"Features of {name}",
        f"{clip.name}, {width} x {height} pixels, {clip.fps:.3g} frames/s\n"
        "colours: first three principal components of the latents, one fit per row",
    )


def draw_strip(frames, captions, rows, title, subtitle):
    """Draw a row of frames and rows of colours below it.

    Args:
      frames: uint8 `[k, H, W, 3]`.
      captions: k texts above the frames.
      rows: list of (label, colours float `[k, h, w, 3]` in 0..1).
      title, subtitle: lines above.

    Returns:
      matplotlib `Figure`.
    """
    height, width = frames[0].shape[:2]
    pictures = [("frames", frames)]
    pictures += [(label, [enlarge_colors(image, height, width) for image in images]) for label, images in rows]
    panel_width = 1.9 * panel_stretch(height, width)
    figure = canvas.make_figure(
        # A single narrow column still has to hold the title.
        max(_MIN_INCHES, 1.9 + panel_width * len(frames)),
        1.2 + (panel_width * height / width + 0.1) * len(pictures), title, subtitle,
    )
    grid = figure.subplots(len(pictures), len(frames), squeeze=False)
    for row, (label, images) in zip(grid, pictures):
        for panel, image in zip(row, images):
            canvas.show_image(panel, image)
        canvas.label_row(row[0], label)
    for panel, caption in zip(grid[0], captions):
        panel.set_title(caption, fontsize=8.5, color=canvas.GREY, pad=3)
    return figure


def panel_stretch(height, width):
    """Return how much wider than a square one a picture is drawn, so that wide frames stay large enough."""
    return min(2.0, max(1.0, width / height))


def beside(frame, colors):
    """Put a frame and the colours of its tokens side by side, large enough to look at.

    Args:
      frame: uint8 `[H, W, 3]`.
      colors: float `[h, w, 3]` in 0..1.

    Returns:
      uint8 `[kH, 2 * kW + gap, 3]`, the frame left.
    """
    left = canvas.enlarge(frame[None])[0]
    height, width = left.shape[:2]
    right = (enlarge_colors(colors, height, width) * 255).round().astype(np.uint8)
    return np.concatenate([left, np.full((height, _GAP, 3), 255, np.uint8), right], axis=1)


def enlarge_colors(image, height, width):
    """Enlarge a token grid to the frame: cubic, which overshoots, so it is cut to 0..1."""
    return np.clip(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
