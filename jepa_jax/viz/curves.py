"""Curves of a run over its steps, from the metrics in its workdir."""

import json
import os

import numpy as np
from matplotlib.ticker import MaxNLocator

from jepa_jax.training.metrics import FILE
from jepa_jax.viz import canvas

# With more points than this a running mean is drawn over them.
_SMOOTH_FROM = 120
_SMOOTH_SHARE = 40
_LEGEND_COLUMNS = 3
_LOSS = "train/loss"
# Logged by world models alone: the error of predicting no change.
_COPY_LAST = "train/copy_last"
_FORCED = "train/loss/teacher_forcing"
_OVER_COPY = "train/loss/teacher_forcing / train/copy_last"


def read_metrics(workdir):
    """Read the metrics of a run.

    Args:
      workdir: folder of the run.

    Returns:
      `{name: float64 [n]}`, one value per logged step, NaN where a row lacks it; has `step`.

    Raises:
      PictureError: if nothing has been logged.
    """
    path = os.path.join(workdir, FILE)
    if not os.path.isfile(path):
        raise canvas.PictureError(f"no metrics at {path}; give --workdir the folder that training wrote to")
    rows = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                # A line cut short by a kill; the run writes that step again when it resumes.
                continue
    if not rows:
        raise canvas.PictureError(f"{path} holds no metrics yet; the first row comes after log.every_steps steps")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, np.nan) for row in rows], np.float64) for name in names}


def is_world_model(metrics):
    """Tell from its metrics whether a run trained an action-conditioned predictor."""
    return _COPY_LAST in metrics


def draw_curves(metrics, name):
    """Draw loss, collapse monitors, schedules, gradients and speed as small multiples.

    Args:
      metrics: result of `read_metrics`.
      name: the run, for the title.

    Returns:
      matplotlib `Figure`.
    """
    if is_world_model(metrics):
        metrics = metrics | {_OVER_COPY: metrics[_FORCED] / metrics[_COPY_LAST]}
    figure = canvas.make_figure(14, 7, f"Training curves of {name}", _subtitle(metrics))
    axes = figure.subplots(2, 4).reshape(-1)
    for panel, (title, unit, curves, options) in zip(axes, _panels(metrics), strict=True):
        _draw_panel(panel, metrics, title, unit, curves, **options)
    for panel in axes[4:]:
        panel.set_xlabel("step")
    return figure


def _subtitle(metrics):
    loss = metrics[_LOSS]
    parts = [f"{int(metrics['step'][-1]):,} steps", f"loss {loss[0]:.3f} to {loss[-1]:.3f}"]
    skipped = metrics.get("guard/skipped", np.zeros(1))[-1]
    return ", ".join(parts + [f"{int(skipped)} updates skipped by the guard"])


def _panels(metrics):
    """List the panels: title, unit of the vertical axis, {metric: (label, style)}, options."""
    losses = [name for name in metrics if name.startswith(f"{_LOSS}/") and name != _OVER_COPY]
    groups = {name.split("/")[-2] for name in losses}
    # One group needs no name in a legend.
    parts = {name: (" ".join(name.split("/")[-min(2, len(groups)):]), {"linewidth": 1.0}) for name in losses}
    gradients = {name: (name.removeprefix("optim/grad_norm_"), {})
                 for name in metrics if name.startswith("optim/grad_norm_")}
    both = (("target", canvas.BLUE), ("prediction", canvas.ORANGE))
    ranks = {f"collapse/{side}_rank": (side, {"color": color}) for side, color in both}
    spreads = {f"collapse/{side}_std": (side, {"color": color}) for side, color in both}
    spreads["collapse/target_std_min"] = "least of target", {"linewidth": 1.0, "linestyle": ":", "color": canvas.BLUE}
    return [
        ("Loss", "mean |prediction - target|", {_LOSS: ("all", {"color": "black", "linewidth": 2})} | parts, {}),
        ("Effective rank (RankMe)", "dimensions in use", ranks, {"low": 0}),
        ("Spread of the latents", "std over tokens, per dimension", spreads, {"low": 0}),
        ("Agreement", "cosine(prediction, target)", {"collapse/cosine": ("mean over tokens", {})}, {"high": 1}),
        ("Learning rate", "per step", {"optim/lr": ("AdamW", {})}, {"low": 0}),
        ("Error against copying the last frame", "ratio; below 1 is better", {_OVER_COPY: ("one step", {})}, {"low": 0, "mark": 1})
        if is_world_model(metrics)
        else ("EMA of the target encoder", "momentum", {"ema/momentum": ("momentum", {})}, {}),
        ("Gradient norms", "L2 norm, log scale", gradients, {"log": True}),
        ("Speed", "clips per second", {"perf/clips_per_s": ("trained on", {})}, {"low": 0}),
    ]


def _draw_panel(panel, metrics, title, unit, curves, *, low=None, high=None, mark=None, log=False):
    step, shown = metrics["step"], [name for name in curves if name in metrics]
    for number, name in enumerate(shown):
        label, style = curves[name]
        style = {"color": canvas.COLORS[number % len(canvas.COLORS)], "linewidth": 1.6} | style
        values = metrics[name]
        smooth = _running_mean(values)
        if smooth is not values:
            panel.plot(step, values, color=style["color"], alpha=0.25, linewidth=0.6)
        # A lone point draws no line.
        marker = {"marker": "o", "markersize": 4} if len(step) == 1 else {}
        panel.plot(step, smooth, label=label, **style, **marker)
    if log:
        panel.set_yscale("log")
    else:
        panel.ticklabel_format(axis="y", useOffset=False)
    if mark is not None:
        panel.axhline(mark, color=canvas.GREY, linestyle=":", linewidth=1.2)
    if low is not None or high is not None:
        panel.set_ylim(bottom=low, top=high)
    legend_rows = -(-len(shown) // _LEGEND_COLUMNS) if len(shown) > 1 else 0
    panel.set_title(title, loc="left", fontsize=10.5, pad=6 + 13 * legend_rows)
    panel.set_ylabel(unit, fontsize=9)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    panel.tick_params(labelsize=8.5)
    panel.grid(color="#e2e8f0", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    if len(shown) > 1:
        # Above the panel, where no curve can run through it.
        legend = panel.legend(fontsize=8, frameon=False, ncols=_LEGEND_COLUMNS, loc="lower left",
                              bbox_to_anchor=(-0.02, 0.99), borderaxespad=0, columnspacing=1.2, handlelength=1.5)
        # A wide legend must not squeeze the panels.
        legend.set_in_layout(False)
    if not shown:
        panel.text(0.5, 0.5, "not logged", transform=panel.transAxes, ha="center", color=canvas.GREY)


def _running_mean(values):
    """Average over neighbours, fewer at the ends; short curves are returned as they are."""
    if len(values) < _SMOOTH_FROM:
        return values
    window = np.ones(2 * (len(values) // _SMOOTH_SHARE // 2) + 1)
    known = np.isfinite(values)
    sums = np.convolve(np.where(known, values, 0.0), window, "same")
    counts = np.convolve(known.astype(np.float64), window, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
