"""The rollout report: numbers with intervals, what they mean in words, and a table of them."""

import numpy as np

from jepa_jax.commandline.skipped import count_reasons
from jepa_jax.evals import readout
from jepa_jax.evals.intervals import Bootstrap, Estimate
from jepa_jax.evals.rollouts import COPY_LAST, MEAN_ACTION, MODEL, ONE_STEP, OPEN_LOOP, SHUFFLED

LABELS = {
    MODEL: "model", SHUFFLED: "shuffled actions", MEAN_ACTION: "mean action", COPY_LAST: "copy last frame",
    ONE_STEP: "one step from true frames", OPEN_LOOP: "open loop",
    readout.TRUE_LATENTS: "true latents", readout.MEAN_POSITION: "mean position",
}
# A dimension that moves predictions by less, in errors of copying the last frame, is ignored.
IGNORED = 0.01
# Errors that differ by less are the same in practice.
_SAME = 0.02
# With a smaller loss from wrong actions, planning has little to go by.
_CLEARLY = 1.2
_MAX_COLUMNS = 10
_LABEL_WIDTH = 28


def summarize(measured, samples, robot, *, decoded=None, seed=0):
    """Turn measurements into numbers with 95 % intervals over trajectories.

    Args:
      measured: `jepa_jax.evals.rollouts.Measured`.
      samples: the `Samples` it was measured on.
      robot: `RobotSpec`.
      decoded: dict from the name of a position to its `readout.Decoded`.
      seed: of the bootstrap.

    Returns:
      JSON-able dict: `errors` by mode and row, `ratios`, `sensitivity` of every action dimension,
      `positions` (cm), `verdicts` (sentences).
    """
    bootstrap, errors = Bootstrap(samples.trajectory, seed), measured.errors
    ratios = _ratios(bootstrap, errors)
    sensitivity = _sensitivity(bootstrap, measured, robot)
    positions = {name: _positions(found, samples, seed) for name, found in (decoded or {}).items()}
    return {
        "samples": len(samples), "trajectories": samples.trajectories, "skipped": count_reasons(samples.skips),
        "errors": {mode: {row: bootstrap.mean(values).to_json() for row, values in rows.items()} for mode, rows in errors.items()},
        "ratios": {name: ratio.to_json() for name, ratio in ratios.items()},
        "sensitivity": sensitivity,
        "positions": positions,
        "verdicts": [*_verdicts(ratios, errors[ONE_STEP][MODEL].shape[1]), *_dimension_verdicts(sensitivity),
                     *(_position_verdict(name, found) for name, found in positions.items())],
    }


def describe(report):
    """Lay out the result of `summarize` as lines of text."""
    some = report["errors"][ONE_STEP][MODEL]["value"]
    shown = np.unique(np.linspace(0, len(some) - 1, min(len(some), _MAX_COLUMNS)).round().astype(int))
    lines = [_row("latent error (L1), step", [f"{step + 1}" for step in shown])]
    for mode, rows in report["errors"].items():
        lines.append(LABELS[mode])
        lines += [_row(f"  {LABELS[row]}", [f"{found['value'][step]:.4f}" for step in shown]) for row, found in rows.items()]
    lines += ["", f"{'sensitivity to actions':{_LABEL_WIDTH}}   change by        moves the prediction by, in copy-last errors"]
    for entry in report["sensitivity"]:
        change = f"{entry['deviation']:.3g} {entry['unit']}"
        found = "does not vary" if entry["relative"] is None else _interval(entry["relative"], 3)
        lines.append(f"{'  ' + entry['name']:{_LABEL_WIDTH}}   {change:<14}   {found}")
    for name, found in report["positions"].items():
        lines += ["", _row(f"{name}, median error (cm), step", [f"{step + 1}" for step in shown])]
        lines += [_row(f"  {LABELS[row]}", [f"{values['median'][step]:.2f}" for step in shown])
                  for row, values in found["errors"].items()]
    return [*lines, "", *(f"* {verdict}" for verdict in report["verdicts"])]


def _ratios(bootstrap, errors):
    one, far = errors[ONE_STEP], {row: values[:, -1] for row, values in errors[OPEN_LOOP].items()}
    one = {row: values.mean(1) for row, values in one.items()}
    return {
        "one_step_to_copy_last": bootstrap.ratio(one[MODEL], one[COPY_LAST]),
        "open_loop_to_copy_last": bootstrap.ratio(far[MODEL], far[COPY_LAST]),
        "shuffled_to_true_one_step": bootstrap.ratio(one[SHUFFLED], one[MODEL]),
        "shuffled_to_true_open_loop": bootstrap.ratio(far[SHUFFLED], far[MODEL]),
        "mean_action_to_true_one_step": bootstrap.ratio(one[MEAN_ACTION], one[MODEL]),
    }


def _sensitivity(bootstrap, measured, robot):
    """List what every action dimension does, in errors of copying the last frame for one step."""
    copied = measured.errors[ONE_STEP][COPY_LAST][:, 0]
    rows = []
    for place, (name, unit) in enumerate(zip(robot.action_names, robot.action_units)):
        deviation = float(measured.deviations[place])
        # Float32 actions of a number that never changes differ by rounding.
        varies = deviation > 1e-6
        relative = bootstrap.ratio(measured.sensitivity[:, place], copied).to_json() if varies else None
        rows.append({"name": name, "unit": unit, "deviation": deviation, "relative": relative})
    return rows


def _positions(decoded, samples, seed):
    bootstrap = Bootstrap(samples.trajectory[decoded.tested], seed)
    errors = {
        row: bootstrap.mean(values).to_json() | {"median": np.median(values, 0).round(4).tolist()}
        for row, values in decoded.errors.items()
    }
    last = {row: values[:, -1] for row, values in decoded.errors.items()}
    pairs = {"open_loop_to_copy_last": (OPEN_LOOP, readout.COPY_LAST),
             "true_latents_to_mean_position": (readout.TRUE_LATENTS, readout.MEAN_POSITION)}
    return {
        "unit": "cm", "fitted_trajectories": decoded.fitted_trajectories, "tested_trajectories": decoded.tested_trajectories,
        "fitted_frames": decoded.fitted_frames, "errors": errors,
        "ratios": {name: bootstrap.ratio(last[a], last[b]).to_json() for name, (a, b) in pairs.items()},
    }


def _verdicts(ratios, horizon):
    shuffled = ratios["shuffled_to_true_one_step"]
    where = f"open loop, step {horizon}"
    far = _times(ratios["shuffled_to_true_open_loop"])
    return [
        _compared("one step", ratios["one_step_to_copy_last"]),
        _compared(where, ratios["open_loop_to_copy_last"]),
        f"the model {_use(shuffled)}: with shuffled actions its one-step error is {_times(shuffled)} as large",
        f"{where}: with shuffled actions, and states that follow from them, its error is {far} as large",
    ]


def _compared(what, ratio):
    if ratio.high < 1 - _SAME:
        said = "predicts change"
    elif ratio.low > 1 + _SAME:
        said = "worse than predicting no change"
    else:
        said = "no better than predicting no change"
    return f"{what}: {said}; its error is {_times(ratio)} that of copying the last frame"


def _use(ratio):
    if ratio.low > 1 + _SAME:
        return "uses actions" if ratio.value >= _CLEARLY else "uses actions, but weakly"
    return "hardly uses actions" if ratio.low > 1 else "ignores actions"


def _dimension_verdicts(sensitivity):
    ignored = [entry["name"] for entry in sensitivity if entry["relative"] and entry["relative"]["high"] < IGNORED]
    constant = [entry["name"] for entry in sensitivity if entry["relative"] is None]
    lines = []
    if ignored:
        lines.append(f"the model ignores {_names(ignored)}: one standard deviation moves the prediction by less than {IGNORED:.0%} "
                     "of the error of copying the last frame")
    if constant:
        lines.append(f"cannot be judged: {_names(constant)} does not vary in these data")
    return lines


def _position_verdict(name, found):
    read, moved = (Estimate(**found["ratios"][key]) for key in ("true_latents_to_mean_position", "open_loop_to_copy_last"))
    median = {row: values["median"][-1] for row, values in found["errors"].items()}
    if read.high > 1 - _SAME:
        return f"{name}: the readout does not find it in the true latents, so predictions cannot be judged by it"
    if moved.high < 1 - _SAME:
        said = "predictions beat copying the last frame"
    else:
        said = "predictions are " + ("worse" if moved.low > 1 + _SAME else "no better") + " than copying the last frame"
    steps = len(found["errors"][OPEN_LOOP]["median"])
    return (f"{name}: {said}; {median[OPEN_LOOP]:.1f} cm after {steps} steps in open loop, against {median[readout.COPY_LAST]:.1f} cm "
            f"(mean position {median[readout.MEAN_POSITION]:.1f} cm, readout of true latents {median[readout.TRUE_LATENTS]:.1f} cm)")


def _names(names):
    return ("dimension " if len(names) == 1 else "dimensions ") + ", ".join(map(repr, names))


def _times(ratio):
    return f"{ratio.value:.2f} times ({ratio.low:.2f} to {ratio.high:.2f})"


def _interval(found, digits):
    return f"{found['value']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def _row(label, cells):
    return f"{label:{_LABEL_WIDTH}}" + "".join(f"{cell:>8}" for cell in cells)
