"""Pictures of what a probe gets right and wrong: confusions, recall by class, the worst examples."""

import math

import cv2
import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from jepa_jax.viz import canvas

# Above this, names and numbers would not be legible.
_NAMED, _COUNTED = 60, 20
_SHOWN = 40
_COLUMNS = 4
_HEAT = "inferno"
# A few tokens may get many times what the others do; the scale ends where this part of the tokens is below.
_BRIGHT = 0.995


def draw_confusion(matrix, recall, names, title, subtitle):
    """Draw how often a class is taken for another, and the recall of every class.

    Args:
      matrix: int `[C, C]`, rows are true classes.
      recall: float `[C]`, nan where a class does not occur.
      names: of the classes.
      title, subtitle: above the picture.

    Returns:
      matplotlib `Figure`.
    """
    count = len(matrix)
    side = min(12.0, max(4.5, 0.33 * count))
    figure = canvas.make_figure(side + 5.2, side + 1.4, title, subtitle)
    left, right = figure.subplots(1, 2, width_ratios=(side, 4.0))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = left.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    left.set_xlabel("taken for")
    left.set_ylabel("true class")
    if count <= _NAMED:
        left.set_xticks(range(count), names, rotation=90, fontsize=8)
        left.set_yticks(range(count), names, fontsize=8)
    if count <= _COUNTED:
        for row, column in zip(*np.nonzero(matrix)):
            left.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=7.5,
                      color="white" if shares[row, column] > 0.5 else "#1a202c")
    figure.colorbar(image, ax=left, shrink=0.6, label="share of the true class")
    _draw_recall(right, recall, names)
    return figure


def _draw_recall(panel, recall, names):
    order = [int(index) for index in np.argsort(recall, kind="stable") if not np.isnan(recall[index])]
    shown = order if len(order) <= _SHOWN else order[: _SHOWN // 2] + order[-(_SHOWN // 2) :]
    panel.barh(range(len(shown)), [100 * recall[index] for index in shown], color=canvas.BLUE, height=0.7)
    panel.set_yticks(range(len(shown)), [names[index] for index in shown], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlim(0, 100)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5))
    panel.axvline(100 * np.nanmean(recall), color=canvas.ORANGE, linestyle=":", linewidth=1.4)
    left_out = f", the {_SHOWN // 2} worst and best" if len(shown) < len(order) else ""
    panel.set_title(f"Recall by class{left_out}\n(dotted: mean)", loc="left", fontsize=10.5)
    panel.set_xlabel("recall, %")
    panel.grid(axis="x", color="#e2e8f0", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def draw_attention(strips, maps, captions, title, subtitle):
    """Draw where a probe looks: frames of videos, each above the same frame lit by the attention it gets.

    Args:
      strips: list of uint8 `[k, H, W, 3]`.
      maps: list of float `[k, h, w]`, the attention that each frame's tokens get, in multiples of an even share.
      captions: a text for each.
      title, subtitle: above the picture.

    Returns:
      matplotlib `Figure`.
    """
    columns = max(1, min(_COLUMNS, len(strips)))
    rows = max(1, math.ceil(len(strips) / columns))
    figure = canvas.make_figure(4.0 * columns + 1.0, 1.0 + 2.4 * rows, title, subtitle)
    panels = figure.subplots(rows, columns, squeeze=False)
    top = max(2.0, *(float(np.quantile(part, _BRIGHT)) for part in maps))
    for panel, strip, share, caption in zip(panels.flat, strips, maps, captions):
        frames = canvas.enlarge(strip, 128)
        size = frames.shape[2], frames.shape[1]
        heat = np.stack([cv2.resize(np.float32(part), size, interpolation=cv2.INTER_LINEAR) for part in share])
        grey = frames.mean(-1, keepdims=True).repeat(3, -1) / 255
        strength = np.clip(heat / top, 0, 1)[..., None]
        lit = (1 - 0.75 * strength) * 0.6 * grey + 0.75 * strength * matplotlib.colormaps[_HEAT](strength[..., 0])[..., :3]
        wide = lambda images: np.concatenate(list(images), axis=1)
        canvas.show_image(panel, np.concatenate([wide(frames / 255), wide(lit)]))
        panel.set_title(caption, fontsize=8.5, loc="left")
    for panel in list(panels.flat)[len(strips):]:
        panel.set_visible(False)
    scale = ScalarMappable(Normalize(0, top), _HEAT)
    figure.colorbar(scale, ax=panels, shrink=0.6, label="attention, in even shares")
    return figure


def draw_worst(strips, captions, title, subtitle):
    """Draw videos that were taken for something else, a few frames of each.

    Args:
      strips: list of uint8 `[k, H, W, 3]`.
      captions: a text for each.
      title, subtitle: above the picture.

    Returns:
      matplotlib `Figure`.
    """
    rows = max(1, math.ceil(len(strips) / _COLUMNS))
    figure = canvas.make_figure(4.0 * _COLUMNS, 0.9 + 1.4 * rows, title, subtitle)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for panel, strip, caption in zip(panels, strips, captions):
        canvas.show_image(panel, np.concatenate(list(canvas.enlarge(strip, 128)), axis=1))
        panel.set_title(caption, fontsize=8.5, loc="left")
    for panel in list(panels):
        panel.set_visible(False)
    return figure
