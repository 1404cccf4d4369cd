"""What episodes amount to: rates of success with intervals, and a table of them."""

import numpy as np

from jepa_jax.evals.intervals import wilson
from jepa_jax.sim.tasks import TASKS

_CENTIMETRES = 100.0
# Settings that make episodes other ones, and what they are where a report of before does not say.
_EPISODES = {"world": "tabletop", "range": None, "waypoints": None, "steps": None, "lift": None, "nuisance": None}
_COLUMNS = ("policy", "encoder", "success at the end, %", "ever, %", "final distance, cm", "ms per plan")


def summarize(episodes, policy, sight="", milliseconds=None, settings=()):
    """Count what a policy got done.

    Args:
      episodes: `Episodes`.
      policy: its name.
      sight: name of how it sees; "" if it does not look.
      milliseconds: per plan of one robot, or None where it does not plan.
      settings: dict or pairs of what else is to be known about it.

    Returns:
      JSON-able dict: counts, rates with 95 % intervals (Wilson) over all seeds and the rate of each seed,
      quartiles of the final distance (cm), median energy before every step.
    """
    end, ever = episodes.success[:, -1], episodes.success.any(1)
    seeds = np.unique(episodes.seed)
    # A policy without an opinion has no energies.
    known = np.isfinite(episodes.energy).all()
    return {
        "policy": policy, "encoder": sight, "settings": dict(settings),
        "episodes": len(end), "excluded_starts": int(episodes.excluded.sum()), "unsolved_starts": int(episodes.unsolved.sum()),
        "end": wilson(int(end.sum()), len(end)).to_json(), "ever": wilson(int(ever.sum()), len(ever)).to_json(),
        "end_by_seed": {str(seed): float(end[episodes.seed == seed].mean()) for seed in seeds},
        "ever_by_seed": {str(seed): float(ever[episodes.seed == seed].mean()) for seed in seeds},
        "final_cm_quartiles": np.round(_CENTIMETRES * np.percentile(episodes.distance[:, -1], (25, 50, 75)), 3).tolist(),
        "energy_median": np.round(np.median(episodes.energy, 0), 6).tolist() if known else None,
        "milliseconds_per_plan": milliseconds, "seconds": round(episodes.seconds, 2),
    }


def describe_starts(row):
    """Say in words which episodes a result of `summarize` is about."""
    said = f"{row['episodes']} episodes, 95 % intervals"
    left_out = (("excluded_starts", "that had the task done already"), ("unsolved_starts", "from which the expert did not get there"))
    return "; ".join([said, *(f"{row[name]} starts left out {why}" for name, why in left_out if row[name])])


def describe(rows):
    """Lay out results of `summarize` as a table: lines of text."""
    cells = [list(_COLUMNS)]
    for row in rows:
        wait = row["milliseconds_per_plan"]
        cells.append([row["policy"], row["encoder"] or "-", _rate(row["end"]), _rate(row["ever"]),
                      f"{row['final_cm_quartiles'][1]:.1f}", "-" if wait is None else f"{wait:.3g}"])
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["   ".join(f"{cell:{width}}" for cell, width in zip(line, widths)).rstrip() for line in cells]


def describe_world(report):
    """Say what the episodes of a report, as `evaluate robot` writes it, are like: reports can be compared where that is the same."""
    return ", ".join(f"{name} {report['settings'].get(name) or default}" for name, default in _EPISODES.items())


def lay_out(groups):
    """Lay reports of `evaluate robot` out as a table in Markdown.

    Args:
      groups: dict from a name to reports.

    Returns:
      Lines of text: a row for each name and policy. A cell holds the success at the end over all episodes of the reports with its
      interval, and at some step, %; of several reports also that of each.
    """
    rows = {}
    for name, reports in groups.items():
        for row in (row for report in reports for row in report["rows"]):
            label = f"{name}: {row['policy']}" + (f", encoder {row['encoder']}" if row["encoder"] else "")
            rows.setdefault(label, {}).setdefault(row["task"], []).append(row)
    tasks = [task for task in TASKS if any(task in found for found in rows.values())]
    lines = ["| at the end, % [95 %] (ever) | " + " | ".join(tasks) + " |", "|" + "---|" * (len(tasks) + 1)]
    return [*lines, *(f"| {label} | " + " | ".join(_pool(found.get(task, [])) for task in tasks) + " |" for label, found in rows.items())]


def _pool(rows):
    """Say what the episodes of several rows come to together; "" of none."""
    if not rows:
        return ""
    trials = sum(row["episodes"] for row in rows)
    end, ever = (wilson(round(sum(row["episodes"] * row[name]["value"] for row in rows)), trials).to_json() for name in ("end", "ever"))
    each = [f"{100 * row['end']['value']:.0f}" for row in rows]
    each = f", each {', '.join(each)}" if len(rows) > 1 else ""
    return f"{_rate(end).strip()} ({100 * ever['value']:.0f}) of {trials}{each}"


def _rate(estimate):
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:3.0f} [{low:.0f}, {high:.0f}]"
