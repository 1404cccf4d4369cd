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
            report = _read(path)
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
    first = next(iter(groups.values()))[0]
    ratios, positions = _ratios(first), _positions(first)
    headings = [*ratios, *(f"{heading}, cm" for heading in positions)]
    lines = ["| | reports | " + " | ".join(headings) + " |", "|" + "---|" * (len(headings) + 2)]
    for name, reports in groups.items():
        cells = [_range(map(read, reports), digits) for columns, digits in ((ratios, 2), (positions, 1)) for read in columns.values()]
        lines.append(f"| {name} | {len(reports)} | " + " | ".join(cells) + " |")
    return [*lines, "", *(_gains(groups, positions) if positions else ())]


def _ratios(report):
    """Return functions of a report by heading."""
    return {heading.format(steps=_steps(report)): lambda found, key=key: found["ratios"][key]["value"] for key, heading in _RATIOS}


def _positions(report):
    """Return functions of a report by heading; their results are in cm."""
    columns = {}
    for name in report["positions"]:
        columns[f"{name} at {_steps(report)}"] = lambda found, name=name: found["positions"][name]["errors"][OPEN_LOOP]["value"][-1]
        # Nothing is predicted there, so all steps say the same.
        columns[f"{name} in true latents"] = lambda found, name=name: float(np.mean(found["positions"][name]["errors"][TRUE_LATENTS]["value"]))
    return columns


def _gains(groups, positions):
    """Say by how much the mean errors of the first group are below those of the others."""
    (first, reports), *others = groups.items()
    mean = lambda read, some: np.mean([read(report) for report in some])
    for name, rivals in others:
        parts = [f"{1 - mean(read, reports) / mean(read, rivals):.0%} {heading}" for heading, read in positions.items()]
        yield f"* errors of {first} are below those of {name} by " + ", ".join(parts)


def _read(path):
    """Return what a JSON file holds, None where it is something else."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError:
        return None


def _steps(report):
    return len(report["errors"][ONE_STEP][MODEL]["value"])


def _kind(kind):
    steps, positions = kind
    return f"{steps} steps" + (f" and {', '.join(positions)}" if positions else "")


def _range(values, digits):
    values = sorted(values)
    low, high = (f"{number:.{digits}f}" for number in (values[0], values[-1]))
    return low if low == high else f"{low}-{high}"
