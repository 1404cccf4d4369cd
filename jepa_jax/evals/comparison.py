"""Several rollout reports side by side, such as those of a trained encoder and of its controls, each with several seeds."""

import json

import numpy as np

from jepa_jax.evals.readout import TRUE_LATENTS
from jepa_jax.evals.rollouts import MODEL, ONE_STEP, OPEN_LOOP

_RATIOS = (
    ("one_step_to_copy_last", "one-step error / copying"), ("open_loop_to_copy_last", "open loop at {steps} / copying"),
    ("shuffled_to_true_one_step", "shuffled actions / true"),
)


def read_reports(groups):
    """Read reports that can stand in one table.

    Args:
      groups: dict from a name to paths of `report.json` files.

    Returns:
      dict from the name to the reports.

    Raises:
      ValueError: a file is no rollout report, or looks differently far ahead, or at other positions, than the first.
    """
    found, first = {}, None
    for name, paths in groups.items():
        for path in paths:
            with open(path, encoding="utf-8") as file:
                report = json.load(file)
            if not isinstance(report, dict) or not {"ratios", "errors", "positions"} <= set(report):
                raise ValueError(f"{path} is no report of `evaluate rollout`")
            kind = _steps(report), sorted(report["positions"])
            first = first or (path, kind)
            if kind != first[1]:
                raise ValueError(f"{path} is about {_kind(kind)}, {first[0]} about {_kind(first[1])}: they cannot be compared")
            found.setdefault(name, []).append(report)
    return found


def compare(groups):
    """Lay groups of reports out as a table in Markdown, and say how much nearer positions of the first group are.

    Args:
      groups: dict from a name to reports, as `read_reports` returns it; of several reports a cell shows the lowest and the highest.

    Returns:
      Lines of text.
    """
    columns = _columns(next(iter(groups.values()))[0])
    lines = ["| | reports | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 2)]
    for name, reports in groups.items():
        cells = [_range([read(report) for report in reports], digits) for read, digits in columns.values()]
        lines.append(f"| {name} | {len(reports)} | " + " | ".join(cells) + " |")
    return [*lines, "", *_gains(groups, columns)]


def _columns(report):
    """Return {heading: (function of a report, digits)}."""
    steps = _steps(report)
    columns = {text.format(steps=steps): (lambda found, key=key: found["ratios"][key]["value"], 2) for key, text in _RATIOS}
    for name in report["positions"]:
        columns[f"{name} at {steps}, cm"] = lambda found, name=name: found["positions"][name]["errors"][OPEN_LOOP]["value"][-1], 1
        # One number for all frames of the true future.
        columns[f"{name} in true latents, cm"] = (
            lambda found, name=name: float(np.mean(found["positions"][name]["errors"][TRUE_LATENTS]["value"])), 1)
    return columns


def _gains(groups, columns):
    """Say by how much the mean error of the first group is below those of the others."""
    (first, reports), *others = groups.items()
    centimetres = {heading: read for heading, (read, _) in columns.items() if heading.endswith("cm")}
    for name, rivals in others:
        parts = []
        for heading, read in centimetres.items():
            own, other = (np.mean([read(report) for report in some]) for some in (reports, rivals))
            parts.append(f"{1 - own / other:.0%} {heading.removesuffix(', cm')}")
        if parts:
            yield f"* errors of {first} are below those of {name} by " + ", ".join(parts)


def _steps(report):
    return len(report["errors"][ONE_STEP][MODEL]["value"])


def _kind(kind):
    steps, positions = kind
    return f"{steps} steps" + (f" and {', '.join(positions)}" if positions else "")


def _range(values, digits):
    low, high = (f"{number:.{digits}f}" for number in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"
