"""The numbers of a run that belong beside its pictures."""

import json

import jax
import numpy as np
from etils import epath

FILE = "summary.json"
_ENDS = {
    "loss": "train/loss", "target_rank": "collapse/target_rank", "prediction_rank": "collapse/prediction_rank",
    "target_std": "collapse/target_std", "prediction_std": "collapse/prediction_std", "cosine": "collapse/cosine",
}


def summarize(run, metrics):
    """Collect the main numbers of a run.

    Args:
      run: `LoadedRun`.
      metrics: result of `curves.read_metrics`.

    Returns:
      JSON-able dict: steps, parameter counts, first and last values of loss and collapse
      monitors, median speed (clips per second, milliseconds per step) and its spread.
    """
    summary = {"model": run.config.model.size, "checkpoint_step": run.step, "logged_steps": int(metrics["step"][-1])}
    summary["parameters"] = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in sorted(run.params.items())
    }
    for name, metric in _ENDS.items():
        if metric in metrics:
            values = metrics[metric]
            summary[name] = {"first": _number(values[0]), "last": _number(values[-1])}
    for name, metric in (("clips_per_s", "perf/clips_per_s"), ("step_ms", "perf/step_ms"),
                         ("data_wait_share", "data/wait_share")):
        if metric in metrics:
            quartiles = np.nanpercentile(metrics[metric], (25, 50, 75))
            summary[name] = dict(zip(("quarter", "median", "three_quarters"), map(_number, quartiles)))
    if "guard/skipped" in metrics:
        summary["skipped_updates"] = int(metrics["guard/skipped"][-1])
    return summary


def _number(value):
    """Round to what is worth reading; JSON has no NaN, so that becomes null."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def write_summary(summary, folder):
    """Write `FILE` into a folder and return its path."""
    path = epath.Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=2) + "\n")
    return str(path)
