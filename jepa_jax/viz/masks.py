"""The masks of a training batch, drawn over the very frames they hide."""

import math
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.patches import Patch

from jepa_jax.tasks import pretrain
from jepa_jax.viz import canvas

# What a token is to a mask strategy.
UNUSED, CONTEXT, TARGET = 0, 1, 2
TARGET_COLOR = (246, 140, 56)
UNUSED_COLOR = (203, 213, 224)
_TARGET_SHARE, _UNUSED_SHARE = 0.62, 0.75
_MAX_COLUMNS = 8


class MaskedClip(NamedTuple):
    """One clip of a batch and its masks.

    Attributes:
      group: name of its sub-batch.
      frames: uint8 `[t, H, W, 3]`, the first frame of every time step.
      roles: per strategy name int8 `[t, h, w]` of UNUSED, CONTEXT and TARGET.
    """

    group: str
    frames: np.ndarray
    roles: dict[str, np.ndarray]


def token_roles(grid, context_ids, target_ids):
    """Say what every token is.

    Args:
      grid: (t, h, w) tokens.
      context_ids, target_ids: int vectors of token ids.

    Returns:
      int8 `[t, h, w]` of UNUSED, CONTEXT and TARGET.
    """
    roles = np.full(np.prod(grid), UNUSED, np.int8)
    roles[context_ids], roles[target_ids] = CONTEXT, TARGET
    return roles.reshape(grid)


def paint_roles(frames, roles):
    """Tint targets, grey out unused tokens and leave the context as it is.

    Args:
      frames: uint8 `[t, H, W, 3]`.
      roles: int8 `[t, h, w]`; h and w divide H and W.

    Returns:
      uint8 `[t, H, W, 3]`, with a white line where a target region ends.
    """
    patch = frames.shape[1] // roles.shape[1], frames.shape[2] // roles.shape[2]
    pixels = roles.repeat(patch[0], axis=1).repeat(patch[1], axis=2)
    brightness = frames.astype(np.float32).mean(axis=-1, keepdims=True)
    # Colour is taken out first, so that tint and frame cannot be mistaken for each other.
    tinted = brightness * (1 - _TARGET_SHARE) + np.array(TARGET_COLOR) * _TARGET_SHARE
    greyed = brightness * (1 - _UNUSED_SHARE) + np.array(UNUSED_COLOR) * _UNUSED_SHARE
    painted = np.where(pixels[..., None] == TARGET, tinted, np.where(pixels[..., None] == UNUSED, greyed, frames))
    edge = np.ones((2 * max(1, patch[0] // 24) + 1,) * 2, np.uint8)
    for image, hidden in zip(painted, (pixels == TARGET).astype(np.uint8)):
        image[cv2.dilate(hidden, edge) != cv2.erode(hidden, edge)] = 255
    return painted.round().astype(np.uint8)


def read_masked_clips(config, step):
    """Make the first clip of every group of a training step, with its masks.

    Args:
      config: ConfigDict of the run; its shards are read.
      step: 0-based number of the batch.

    Returns:
      list of `MaskedClip`.

    Raises:
      FileNotFoundError: if shards of the run are missing.
      DataError: if they cannot be read.
    """
    groups = pretrain.make_groups(config)
    # As one of as many processes as clips: the others' clips need not be decoded.
    processes = math.gcd(*(group.spec.batch_size for group in groups))
    batch, _ = pretrain.make_pipeline(config, groups, process_count=processes).batch_at(step)
    clips = []
    for group in groups:
        rows = batch[group.spec.name]
        frames = rows["video"][0, :: config.model.tubelet_size]
        # Image groups carry one frame, which the model repeats.
        frames = np.repeat(frames, group.grid[0], axis=0) if len(frames) != group.grid[0] else frames
        ids = zip(group.strategies, rows["context_ids"], rows["target_ids"], strict=True)
        clips.append(MaskedClip(group.spec.name, frames, {
            name: token_roles(group.grid, context[0], target[0]) for name, context, target in ids
        }))
    return clips


def draw_masks(clips, name, step):
    """Draw clips and their masks: a row of frames, then a row per strategy; time goes to the right.

    Args:
      clips: list of `MaskedClip`.
      name: the run, for the title.
      step: 0-based number of the batch.

    Returns:
      matplotlib `Figure`.
    """
    rows = []
    for clip in clips:
        # Both ends are shown: lists cut to length lose their last tokens.
        shown = np.linspace(0, len(clip.frames) - 1, min(len(clip.frames), _MAX_COLUMNS)).round().astype(int)
        frames = canvas.enlarge(clip.frames[shown])
        rows.append((f"{clip.group}: frames", frames, shown))
        for strategy, roles in clip.roles.items():
            rows.append((_describe(strategy, roles), paint_roles(frames, roles[shown]), shown))
    columns = max(len(shown) for _, _, shown in rows)
    figure = canvas.make_figure(
        1.8 + 1.9 * columns, 1.3 + 1.9 * len(rows), f"Masks of {name}",
        f"first clip of batch {step}, as cropped for training; columns are time steps t of the token grid",
    )
    for row, (label, images, shown) in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for panel in row[len(images):]:
            panel.set_axis_off()
        for panel, image, time in zip(row, images, shown):
            canvas.show_image(panel, image)
            panel.set_title(f"t = {time}", fontsize=8, color=canvas.GREY, pad=2)
        canvas.label_row(row[0], label)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, frameon=False, fontsize=9.5)
    return figure


def _describe(strategy, roles):
    counts = {role: int((roles == role).sum()) for role in (CONTEXT, TARGET, UNUSED)}
    return (f"mask {strategy}\n{counts[CONTEXT]} context\n{counts[TARGET]} targets\n"
            f"{counts[UNUSED]} unused\nof {roles.size} tokens")


def _legend():
    tint = np.array(TARGET_COLOR) / 255
    return [
        Patch(facecolor="white", edgecolor="black", label="context: seen, in colour"),
        Patch(facecolor=tint, label="target: to be predicted"),
        Patch(facecolor=np.array(UNUSED_COLOR) / 255, label="unused: cut to a fixed length"),
    ]
