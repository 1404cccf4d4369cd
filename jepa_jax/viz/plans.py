"""Pictures of planning: one plan, and what planners reach for how many calls of the model."""

import json
import os

import numpy as np
from matplotlib.ticker import MaxNLocator

from jepa_jax.planning.spec import LAST
from jepa_jax.viz import canvas

_WIDTH, _HEIGHT = 14.0, 4.4


def draw_plan(scene, output, spec, robot, *, energies, name):
    """Draw a plan.

    Args:
      scene: `planning.observations.Scene`.
      output: `PlanOutput`, on the host.
      spec: `PlanSpec`.
      robot: `RobotSpec`.
      energies: floats `now` of what is seen, `planned` and `still`: predicted after the plan, and if nothing moves, None if
        that is not known.
      name: of model and planner, for the title.

    Returns:
      matplotlib `Figure`.
    """
    still = "" if energies["still"] is None else f", {energies['still']:.4f} if nothing moves"
    subtitle = (f"{spec.horizon} {'action' if spec.horizon == 1 else 'actions'} ahead, {spec.evaluations} calls of the model; energy "
                f"{energies['now']:.4f} now, {energies['planned']:.4f} predicted after the plan{still}")
    figure = canvas.make_figure(_WIDTH, _HEIGHT, f"Plan of {name}", subtitle)
    panels = figure.subplots(1, 4, width_ratios=[1, 1, 1.5, 1.2])
    for panel, frame, title in zip(panels, (scene.now, scene.goal), ("now", "goal")):
        canvas.show_image(panel, canvas.enlarge(frame[None])[0])
        panel.set_title(title, loc="left", fontsize=10.5)
    # What the search lowers may be more than the energy of the last state.
    pure = spec.cost == LAST and not any(spec.action_penalty)
    _draw_energy(panels[2], output.trace, energies["still"], pure)
    _draw_actions(panels[3], output.actions, spec, robot)
    return figure


def read_record(path):
    """Read what `python -m jepa_jax.bench plan --model` has written.

    Raises:
      ValueError: if the file holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error
    found = record.get("benchmark") if isinstance(record, dict) else None
    if found != "planners":
        raise ValueError(f"{path}: is not a comparison of planners (benchmark: {found}); `python -m jepa_jax.bench plan --model` makes one")
    return record


def draw_planners(record):
    """Draw mean energy over calls of the model, a line for each planner of a record of `bench.planners`.

    Returns:
      matplotlib `Figure`.
    """
    subtitle = (f"{record['states']} test states, {record['apart']} steps from their goals, {record['horizon']} ahead; in brackets: "
                f"states where the plan is no worse than that of {record['reference']}")
    figure = canvas.make_figure(9.0, 4.8, f"Planners of {os.path.basename(os.path.normpath(record['model']))}", subtitle)
    panel = figure.subplots()
    # The reference comes first, and the others keep their colors whatever it is.
    colors = dict(zip(record["planners"], ("#1a202c", *canvas.COLORS)))
    for name, row in record["planners"].items():
        color = colors.get(name, canvas.GREY)
        panel.plot(row["evaluations"], row["energy"], color=color, linewidth=1.8, marker="o", markersize=3,
                   label=f"{name} ({row['share_no_worse']:.0%})")
        panel.plot(row["evaluations_per_plan"], np.mean(row["final"]), marker="D", markersize=7, color=color, markerfacecolor="white")
    panel.plot(record["planners"][record["reference"]]["evaluations_per_plan"], np.mean(record["again"]["final"]), marker="x", markersize=7,
               linestyle="none", color=colors[record["reference"]], label=f"{record['reference']}, other draws ({record['again']['share_no_worse']:.0%})")
    panel.plot([], [], marker="D", linestyle="none", markersize=7, color=canvas.GREY, markerfacecolor="white", label="the plan that is answered")
    panel.set_xscale("log")
    panel.set_xlabel("calls of the model (with gradient: 3)")
    panel.set_ylabel("mean energy of the best so far")
    panel.legend(fontsize=8.5, frameon=False)
    _finish(panel)
    return figure


def _draw_energy(panel, trace, still, pure):
    """Draw best and middle candidates over the iterations, and the descent after them."""
    costs, descent = np.asarray(trace.costs), np.asarray(trace.descent)
    steps = np.arange(1, len(costs) + 1)
    mark = lambda count: {"marker": "o", "markersize": 3.5} if count < 40 else {}
    if len(costs):
        low, middle, high = np.quantile(costs, (0.1, 0.5, 0.9), axis=1)
        panel.fill_between(steps, low, high, color=canvas.GREY, alpha=0.2, linewidth=0, label="10 to 90 % of the candidates")
        panel.plot(steps, middle, color=canvas.GREY, linewidth=1.6, label="the middle one")
        panel.plot(steps, costs.min(1), color=canvas.BLUE, linewidth=1.8, label="the best one", **mark(len(costs)))
    if len(descent):
        later = len(costs) + np.arange(1, len(descent) + 1)
        panel.plot(later, descent, color=canvas.ORANGE, linewidth=1.8, label="the best of the descent", **mark(len(descent)))
    if pure and still is not None:
        panel.axhline(still, color=canvas.PURPLE, linewidth=1.2, linestyle=":", label="if nothing moves")
    panel.set_title("Energy during the search", loc="left", fontsize=10.5)
    panel.set_xlabel("iteration" + (", then gradient step" if len(costs) and len(descent) else ""))
    panel.set_ylabel("predicted distance to the goal" if pure else "cost: distances of all steps, penalties", fontsize=9)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    panel.legend(fontsize=8, frameon=False)
    _finish(panel)


def _draw_actions(panel, actions, spec, robot):
    """Draw every planned number of every step, in halves of its bounds."""
    actions = np.asarray(actions)
    half = (np.array(spec.high) - np.array(spec.low)) / 2
    units = (actions - (np.array(spec.high) + np.array(spec.low)) / 2) / np.where(half > 0, half, 1)
    labels = []
    for at, place in enumerate(robot.planned_dims):
        offsets = at + (np.arange(spec.horizon) - (spec.horizon - 1) / 2) * 0.7 / spec.horizon
        for step, offset in enumerate(offsets):
            panel.barh(offset, units[step, at], height=0.6 / spec.horizon, color=canvas.COLORS[step % 4], linewidth=0)
        labels.append(f"{robot.action_names[place]}\n{actions[0, at]:+.3g} {robot.action_units[place]}".rstrip())
    panel.set_yticks(range(len(labels)), labels, fontsize=8.5)
    panel.invert_yaxis()
    panel.set_xlim(-1.05, max(1.05, 1.05 * np.abs(units).max()))
    panel.axvline(0, color="#1a202c", linewidth=0.8)
    panel.set_title("Actions" + (", one color per step" if spec.horizon > 1 else ""), loc="left", fontsize=10.5)
    panel.set_xlabel("share of the bounds")
    _finish(panel)


def _finish(panel):
    panel.tick_params(labelsize=8.5)
    panel.grid(color="#e2e8f0", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
