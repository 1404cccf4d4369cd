"""Pictures of what is in shards: a sheet of clips, and the spread of the numbers of robot trajectories."""

import os
import textwrap

import numpy as np
from matplotlib.ticker import MaxNLocator

from jepa_jax.data.tally import histogram
from jepa_jax.data.trajectories import KIND
from jepa_jax.viz import canvas

_COLUMNS = 6
_CAPTION_CHARACTERS = 30
_PANEL = 2.1
# A column of histograms per dimension; more dimensions make more rows.
_DIMENSION_COLUMNS = 7
_MAX_DIMENSIONS = 42
_CONTEXT_LINE = 95


def draw_contact_sheet(facts, title, subtitle):
    """Draw the middle frames of records with their names.

    Args:
      facts: list of `survey.Facts`, those with a picture.
      title, subtitle: lines above.

    Returns:
      matplotlib `Figure`.

    Raises:
      PictureError: if there is no picture at all.
    """
    if not facts:
        raise canvas.PictureError("no record could be decoded, so there is no contact sheet")
    columns = min(_COLUMNS, len(facts))
    rows = -(-len(facts) // columns)
    shape = np.median([fact.picture.shape[:2] for fact in facts], axis=0)
    width = max(6.5, _PANEL * columns + 0.3)
    height = (width - 0.3) / columns * min(1.4, shape[0] / shape[1])
    figure = canvas.make_figure(width, 0.9 + (height + 0.62) * rows, title, subtitle)
    grid = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for panel, fact in zip(grid, facts):
        canvas.show_image(panel, fact.picture)
        panel.set_xlabel(_caption(fact), fontsize=7, color=canvas.GREY, labelpad=3)
    for panel in grid[len(facts) :]:
        panel.set_axis_off()
    return figure


def _caption(fact):
    name = os.path.basename(fact.source_id.rstrip("/"))
    if fact.kind == KIND:
        # A trajectory is a folder, whose own name is often only a date.
        name = "/".join(fact.source_id.rstrip("/").split("/")[-2:])
    # Escapes are longer than what they stand for.
    name = canvas.legible(name)
    if len(name) > _CAPTION_CHARACTERS:
        # Names differ most at their end.
        name = "…" + name[1 - _CAPTION_CHARACTERS :]
    parts = [f"{fact.size[1]}x{fact.size[0]}"]
    if fact.kind != "image":
        parts += [f"{fact.seconds:.1f} s", f"{fact.fps:.3g} fps"]
    if fact.label is not None:
        parts.append(f"label {fact.label}")
    # A name is not a formula.
    name = name.replace("$", r"\$")
    return f"{name}\n{', '.join(parts)}"


def draw_dimensions(layout, tally, name):
    """Draw a histogram per dimension of states, and of actions and extras where they are stored.

    Args:
      layout: `motion.Layout`.
      tally: its `tally.MotionTally`.
      name: of the shards, for the title.

    Returns:
      matplotlib `Figure`.
    """
    blocks = [
        (kind, getattr(layout, kind), numbers.kept, color)
        for kind, color in (("states", canvas.BLUE), ("actions", canvas.ORANGE), ("extras", canvas.GREEN))
        if (numbers := tally.numbers(kind)) is not None and numbers.kept.size
    ]
    widths = [min(_MAX_DIMENSIONS, len(dimensions.names)) for _, dimensions, *_ in blocks]
    columns = min(_DIMENSION_COLUMNS, max(widths))
    heights = [-(-width // columns) for width in widths]
    subtitle = f"{len(tally.motions)} trajectories, {len(blocks[0][2])} rows counted; frame: {layout.frame}"
    subtitle += f", rotation: {layout.rotation}"
    if not any(kind == "actions" for kind, *_ in blocks):
        subtitle += "; actions are derived from the states"
    if hidden := sum(len(dimensions.names) for _, dimensions, *_ in blocks) - sum(widths):
        subtitle += f"; {hidden} more dimensions not shown"
    figure = canvas.make_figure(
        max(7.0, 1.95 * columns),
        1.0 + 1.75 * sum(heights),
        f"States and actions of {name}",
        textwrap.fill(subtitle, _CONTEXT_LINE + 15 * max(0, columns - 4)),
    )
    grid = figure.subplots(sum(heights), columns, squeeze=False)
    first = 0
    for (kind, dimensions, rows, color), width, height in zip(blocks, widths, heights):
        panels = grid[first : first + height].reshape(-1)
        first += height
        for number, panel in enumerate(panels):
            if number < width:
                name, unit = dimensions.names[number], dimensions.units[number]
                _draw_histogram(panel, rows[:, number], f"{kind[:-1]} {name}", unit, color)
            else:
                panel.set_axis_off()
    return figure


def _draw_histogram(panel, values, name, unit, color):
    counts, edges = histogram(values)
    panel.stairs(counts, edges, fill=True, color=color, alpha=0.85)
    panel.set_title(name, loc="left", fontsize=9)
    panel.set_xlabel(unit, fontsize=8, labelpad=1)
    panel.set_yticks([])
    panel.xaxis.set_major_locator(MaxNLocator(nbins=4))
    panel.tick_params(labelsize=7.5)
    panel.spines[["top", "right", "left"]].set_visible(False)
