"""Pictures of what a probe gets right and wrong: confusions, recall by class, the worst examples."""

import math

import numpy as np
from matplotlib.ticker import MaxNLocator

from jepa_jax.viz import canvas

# Above this, names and numbers would not be legible.
_NAMED, _COUNTED = 60, 20
_SHOWN = 40
_COLUMNS = 4


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


def draw_worst(strips, captions, title, subtitle):
    """Draw videos that were taken for something else, a few frames of each.

    Args:
      strips: list of uint8 `[k, H, W, 3]`.
      captions: a text for each.
      title, subtitle: above the picture.

    Returns:
      matplotlib `Figure`.
    """
    rows = math.ceil(len(strips) / _COLUMNS)
    figure = canvas.make_figure(4.0 * _COLUMNS, 0.9 + 1.4 * rows, title, subtitle)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for panel, strip, caption in zip(panels, strips, captions):
        canvas.show_image(panel, np.concatenate(list(canvas.enlarge(strip, 128)), axis=1))
        panel.set_title(caption, fontsize=8.5, loc="left")
    for panel in list(panels):
        panel.set_visible(False)
    return figure
