"""Picture of a plan: what is seen, where to go, how the energy fell, and the actions."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from jepa_jax.viz import canvas

_WIDTH, _HEIGHT = 14.0, 4.4


def draw_plan(scene, output, spec, robot, *, before, still, name):
    """Draw a plan.

    Args:
      scene: `planning.observations.Scene`.
      output: `PlanOutput`, on the host.
      spec: `PlanSpec`.
      robot: `RobotSpec`.
      before: energy of what is seen now.
      still: energy that the model predicts if nothing moves.
      name: of model and planner, for the title.

    Returns:
      matplotlib `Figure`.
    """
    subtitle = (f"{spec.horizon} {'action' if spec.horizon == 1 else 'actions'} ahead, {spec.evaluations} calls of the model; energy "
                f"{before:.4f} now, {float(output.cost):.4f} predicted after the plan, {still:.4f} if nothing moves")
    figure = canvas.make_figure(_WIDTH, _HEIGHT, f"Plan of {name}", subtitle)
    panels = figure.subplots(1, 4, width_ratios=[1, 1, 1.5, 1.2])
    for panel, frame, title in zip(panels, (scene.now, scene.goal), ("now", "goal")):
        canvas.show_image(panel, canvas.enlarge(frame[None])[0])
        panel.set_title(title, loc="left", fontsize=10.5)
    _draw_energy(panels[2], output.trace, still)
    _draw_actions(panels[3], output.actions, spec, robot)
    return figure


def _draw_energy(panel, trace, still):
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
        panel.plot(later, descent.min(1), color=canvas.ORANGE, linewidth=1.8, label="the best of the descent", **mark(len(descent)))
    panel.axhline(still, color=canvas.PURPLE, linewidth=1.2, linestyle=":", label="if nothing moves")
    panel.set_title("Energy during the search", loc="left", fontsize=10.5)
    panel.set_xlabel("iteration" + (", then gradient step" if len(costs) and len(descent) else ""))
    panel.set_ylabel("predicted distance to the goal", fontsize=9)
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
    panel.set_title("Actions" + (", one colour per step" if spec.horizon > 1 else ""), loc="left", fontsize=10.5)
    panel.set_xlabel("share of the bounds")
    _finish(panel)


def _finish(panel):
    panel.tick_params(labelsize=8.5)
    panel.grid(color="#e2e8f0", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
