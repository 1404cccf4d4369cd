"""Several reports of one kind side by side, such as those of a trained encoder and of its controls, each with several seeds."""

import functools
import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jepa_jax.evals.closed_loop.report import describe_world, lay_out
from jepa_jax.evals.readout import TRUE_LATENTS
from jepa_jax.evals.rollouts import MODEL, ONE_STEP, OPEN_LOOP
from jepa_jax.weights.bundle import Protocol

_RATIOS = (
    ("one_step_to_copy_last", "one-step error / copying"), ("open_loop_to_copy_last", "open loop at {steps} / copying"),
    ("shuffled_to_true_one_step", "shuffled actions / true"),
)
_ACCURACIES = (("top1", "top-1"), ("top5", "top-5"), ("class_mean", "mean over classes"))


class _Column(NamedTuple):
    """A number of a report.

    Attributes:
      read: report -> number.
      digits: that follow its point.
      gain: (mean of the first group, mean of another) -> text; None where nothing is to be said of it.
    """

    read: Callable
    digits: int
    gain: Callable | None = None


class _Kind(NamedTuple):
    """What can be compared of one kind of report.

    Attributes:
      command: subcommand of `evaluate` that writes it.
      fields: by which it is known.
      about: report -> text; reports are compared where it is the same.
      lay_out: groups of reports -> lines of text, a table in Markdown and what is to be said of it.
    """

    command: str
    fields: frozenset
    about: Callable
    lay_out: Callable


def read_reports(groups):
    """Read reports that can stand in one table.

    Args:
      groups: dict from a name to paths of reports, `report.json`, `probe.json` or `robot.json` files.

    Returns:
      dict from the name to the reports.

    Raises:
      ValueError: a file is no such report, or of another kind or about something else than the first.
    """
    found, first = {}, None
    for name, paths in groups.items():
        for path in paths:
            report = _read(path)
            about = _kind(report, path).about(report)
            first = first or (path, about)
            if about != first[1]:
                raise ValueError(f"{path} is about {about}, {first[0]} about {first[1]}: they cannot be compared")
            found.setdefault(name, []).append(report)
    return found


def compare(groups):
    """Lay groups of reports out as a table in Markdown, and say how much better the first group is.

    Args:
      groups: dict from a name to reports, as `read_reports` returns it; of several reports a cell shows the lowest and the highest,
        or what their episodes come to together.

    Returns:
      Lines of text.
    """
    return _kind(next(iter(groups.values()))[0]).lay_out(groups)


def _lay_out_numbers(groups, *, columns, said):
    """Lay out reports of numbers.

    Args:
      groups: as in `compare`.
      columns: report -> dict from a heading to `_Column`.
      said: how a line of gains begins, with `first` and `other`.
    """
    columns = columns(next(iter(groups.values()))[0])
    lines = ["| | reports | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 2)]
    for name, reports in groups.items():
        cells = [_range(map(column.read, reports), column.digits) for column in columns.values()]
        lines.append(f"| {name} | {len(reports)} | " + " | ".join(cells) + " |")
    return [*lines, "", *_gains(groups, columns, said)]


def _gains(groups, columns, said):
    """Say how much better the mean of the first group is than those of the others."""
    (first, reports), *others = groups.items()
    mean = lambda column, some: np.mean([column.read(report) for report in some])
    for name, rivals in others:
        if parts := [column.gain(mean(column, reports), mean(column, rivals)) for column in columns.values() if column.gain]:
            yield "* " + said.format(first=first, other=name) + ", ".join(parts)


def _rollout_columns(report):
    columns = {heading.format(steps=_steps(report)): _Column(lambda found, key=key: found["ratios"][key]["value"], 2) for key, heading in _RATIOS}
    for name in report["positions"]:
        read = lambda found, name=name: found["positions"][name]["errors"][OPEN_LOOP]["value"][-1]
        columns |= _error(f"{name} at {_steps(report)}", read)
        # Nothing is predicted there, so all steps say the same.
        read = lambda found, name=name: float(np.mean(found["positions"][name]["errors"][TRUE_LATENTS]["value"]))
        columns |= _error(f"{name} in true latents", read)
    return columns


def _error(heading, read):
    """Return the column of an error in cm by its heading."""
    return {f"{heading}, cm": _Column(read, 1, lambda mean, other: f"{1 - mean / other:.0%} {heading}")}


def _rollout_about(report):
    positions = sorted(report["positions"])
    return f"{_steps(report)} steps" + (f" and {', '.join(positions)}" if positions else "")


def _probe_columns(report):
    del report
    return {f"{heading}, %": _accuracy(key, heading) for key, heading in _ACCURACIES}


def _accuracy(key, heading):
    return _Column(lambda found: found["probes"][found["best"]][key], 1, lambda mean, other: f"{mean - other:.1f} {heading}")


def _probe_about(report):
    # What could not be read is left out, and would be a reason to compare with care, not to refuse.
    return f"{report['n'] + report['skipped']} videos of {report['classes']} classes seen as {Protocol(**report['protocol']).describe()}"


_KINDS = (
    _Kind("rollout", frozenset({"ratios", "errors", "positions"}), _rollout_about, functools.partial(
        _lay_out_numbers, columns=_rollout_columns, said="errors of {first} are below those of {other} by ")),
    _Kind("probe", frozenset({"probes", "best", "classes", "protocol"}), _probe_about, functools.partial(
        _lay_out_numbers, columns=_probe_columns, said="points of {first} above {other}: ")),
    _Kind("robot", frozenset({"rows", "settings"}), describe_world, lay_out),
)


def _kind(report, path=None):
    """Return the `_Kind` of a report; ValueError, which names its path, if it has none."""
    for kind in _KINDS:
        if isinstance(report, dict) and kind.fields <= set(report):
            return kind
    raise ValueError(f"{path} is no report of {' or '.join(f'`evaluate {kind.command}`' for kind in _KINDS)}")


def _read(path):
    """Return what a JSON file holds, None where it is something else."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError:
        return None


def _steps(report):
    return len(report["errors"][ONE_STEP][MODEL]["value"])


def _range(values, digits):
    values = sorted(values)
    low, high = (f"{number:.{digits}f}" for number in (values[0], values[-1]))
    return low if low == high else f"{low}-{high}"
