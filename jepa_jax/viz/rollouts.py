"""Picture of a rollout report: error curves, what each action dimension does, and one sample seen and predicted."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from jepa_jax.evals import readout, rollouts
from jepa_jax.evals.rollout_report import IGNORED, LABELS
from jepa_jax.features.pca import fit_colors
from jepa_jax.viz import canvas, features

# Color, line, width: what lies behind is wider, so that curves that coincide are all seen.
_STYLES = {
    rollouts.MODEL: (canvas.BLUE, "-", 1.6), rollouts.SHUFFLED: (canvas.ORANGE, "-", 3.6),
    rollouts.MEAN_ACTION: (canvas.PURPLE, "--", 2.4), rollouts.COPY_LAST: (canvas.GREY, ":", 2.0),
}
_POSITION_STYLES = {
    readout.TRUE_LATENTS: (canvas.GREEN, "-", 1.8), rollouts.ONE_STEP: (canvas.PURPLE, "--", 1.8),
    rollouts.OPEN_LOOP: (canvas.BLUE, "-", 1.8), readout.COPY_LAST: (canvas.GREY, ":", 2.0),
    readout.MEAN_POSITION: (canvas.GREY, "--", 1.4),
}
_WIDTH, _CURVES_HEIGHT, _FRAME_HEIGHT = 15.0, 4.3, 1.5
# For every readout after the first.
_MORE_WIDTH = 3.0
# The context frame and so many steps of the sample.
_COLUMNS = 9
_ERROR_COLORS = "magma"


def draw_report(report, example, frames, *, grid, context, step_seconds, name):
    """Draw a rollout report.

    Args:
      report: as `evals.rollout_report.summarize` returns it.
      example: `evals.rollouts.Example`.
      frames: uint8 `[F, S, S, 3]` of that sample; None where only latents are stored.
      grid: (h, w) of the latents.
      context: frames before the first prediction.
      step_seconds: from a frame to the next, in truth.
      name: of the model, for the title.

    Returns:
      matplotlib `Figure`.
    """
    rows = _sample_rows(example, frames, grid, context)
    subtitle = (f"{report['samples']} samples of {report['trajectories']} held-out trajectories, {context} context "
                f"{'frame' if context == 1 else 'frames'}, {1 / step_seconds:.3g} frames/s; bands: 95 % intervals over trajectories\n"
                + "; ".join(report["verdicts"][2:3]))
    width = _WIDTH + _MORE_WIDTH * max(0, len(report["positions"]) - 1)
    figure = canvas.make_figure(width, 0.9 + _CURVES_HEIGHT + 0.5 + _FRAME_HEIGHT * len(rows), f"Rollouts of {name}", subtitle)
    upper, lower = figure.subfigures(2, 1, height_ratios=[_CURVES_HEIGHT, 0.5 + _FRAME_HEIGHT * len(rows)])
    panels = upper.subplots(1, 3 + len(report["positions"]), squeeze=False)[0]
    top = 1.08 * max(max(found["high"]) for rows_ in report["errors"].values() for found in rows_.values())
    for panel, (mode, errors) in zip(panels, report["errors"].items()):
        _draw_errors(panel, errors, LABELS[mode], top)
    _draw_sensitivity(panels[2], report["sensitivity"])
    for panel, (position, found) in zip(panels[3:], report["positions"].items()):
        _draw_position(panel, found, position)
    _draw_sample(lower, rows, context, step_seconds)
    return figure


def _draw_errors(panel, errors, title, top):
    # The model is drawn last, on top.
    for row, found in reversed(errors.items()):
        _draw_curve(panel, found["value"], LABELS[row], _STYLES[row], (found["low"], found["high"]))
    _finish_curves(panel, title[0].upper() + title[1:], "latent error, mean |difference|", top)


def _draw_position(panel, found, name):
    for row, values in found["errors"].items():
        _draw_curve(panel, values["median"], LABELS[row], _POSITION_STYLES[row])
    title = f"Readout of {name.replace('_', ' ')}\non {found['tested_trajectories']} other trajectories"
    _finish_curves(panel, title, "median error, cm", None)


def _draw_curve(panel, values, label, style, band=None):
    color, line, width = style
    steps = np.arange(1, len(values) + 1)
    # A lone point draws no line.
    marker = {"marker": "o", "markersize": 2 * width} if len(values) == 1 else {}
    panel.plot(steps, values, color=color, linestyle=line, linewidth=width, label=label, **marker)
    if band is not None:
        panel.fill_between(steps, *band, color=color, alpha=0.15, linewidth=0)


def _finish_curves(panel, title, unit, top):
    panel.set_title(title, loc="left", fontsize=10.5)
    panel.set_xlabel("step after the context")
    panel.set_ylabel(unit, fontsize=9)
    panel.set_ylim(0, top)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    panel.tick_params(labelsize=8.5)
    panel.grid(color="#e2e8f0", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panel.get_legend_handles_labels()
    panel.legend(handles[::-1], labels[::-1], fontsize=8, frameon=False, loc="best")


def _draw_sensitivity(panel, rows):
    places = np.arange(len(rows))
    found = [row["relative"] or {"value": 0.0, "low": 0.0, "high": 0.0} for row in rows]
    values = np.array([entry["value"] for entry in found])
    spread = [np.abs(values - [entry[end] for entry in found]) for end in ("low", "high")]
    panel.barh(places, values, xerr=spread, color=canvas.BLUE, ecolor="#1a202c", capsize=2, height=0.62)
    for place, row in zip(places, rows):
        if row["relative"] is None:
            panel.text(0, place, " does not vary", va="center", fontsize=8.5, color=canvas.GREY)
    panel.set_yticks(places, [f"{row['name']}\n±{row['deviation']:.2g} {row['unit']}".rstrip() for row in rows], fontsize=8.5)
    panel.invert_yaxis()
    # Next to nothing has to look like it.
    panel.set_xlim(0, max(1.05 * (values + spread[1]).max(), 5 * IGNORED))
    panel.axvline(IGNORED, color=canvas.ORANGE, linewidth=1.2, linestyle=":", label=f"less than {IGNORED:.0%} is ignored")
    panel.legend(fontsize=8, frameon=False, loc="lower right")
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5))
    panel.set_title("What one action number changes\nby one standard deviation", loc="left", fontsize=10.5)
    panel.set_xlabel("change, in errors of copying")
    panel.tick_params(axis="x", labelsize=8.5)
    panel.grid(axis="x", color="#e2e8f0", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _sample_rows(example, frames, grid, context):
    """List the rows of pictures of the sample, from the last context frame on: (label, pictures, largest value)."""
    height, width = frames.shape[1:3] if frames is not None else (16 * side for side in grid)
    true = example.true[context - 1 :]
    predicted = np.concatenate([true[:1], example.predicted])
    mapping = fit_colors([true])
    shape = lambda latents: latents.reshape(len(latents), *grid, -1)
    colored = lambda latents: [features.enlarge_colors(image, height, width) for image in mapping.apply(shape(latents))]
    errors = [np.abs(guess - true).mean(-1).reshape(-1, *grid) for guess in (predicted, true[:1])]
    most = max(error.max() for error in errors)
    rows = [("frames", frames[context - 1 :], None)] if frames is not None else []
    rows += [(features.share_label("true latents", mapping.share), colored(true), None), ("predicted\nin open loop", colored(predicted), None)]
    return rows + [(label, error, most) for label, error in zip(("error of the\nprediction", "error of copying\nthe last frame"), errors)]


def _draw_sample(figure, rows, context, step_seconds):
    shown = features.shown_places(len(rows[0][1]), _COLUMNS)
    figure.suptitle("One sample, the one with the largest actions; colours: principal components of its true latents; "
                    "errors: dark is none, one scale for both rows", x=0.01, ha="left", fontsize=10.5)
    # As many columns as fit, so that few pictures stay together.
    panels = figure.subplots(len(rows), _COLUMNS, squeeze=False)
    for panel in panels[:, len(shown) :].flat:
        panel.set_axis_off()
    for line, (label, pictures, most) in zip(panels, rows):
        for panel, place in zip(line, shown):
            canvas.show_image(panel, pictures[place])
            if most is not None:
                (image,) = panel.get_images()
                # The context frame was given, not predicted.
                image.set(cmap=_ERROR_COLORS, clim=(0, most), visible=bool(place))
        canvas.label_row(line[0], label)
    for panel, place in zip(panels[0], shown):
        caption = f"step {place}, +{place * step_seconds:.3g} s" if place else "context" if context == 1 else "last context frame"
        panel.set_title(caption, fontsize=8.5, color=canvas.GREY, pad=3)
