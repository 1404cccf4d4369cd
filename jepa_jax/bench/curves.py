"""Compare the loss curves of runs that differ in how many processes they ran on: `bash launch/processes.sh`."""

import argparse
import json
import pathlib
import sys

from jepa_jax.bench import report
from jepa_jax.commandline import types
from jepa_jax.commandline.stdout import write_lines


def main(argv=None):
    """Run the command line.

    Args:
      argv: arguments without the program's name; those of the process if None.

    Returns:
      Exit status: 0; 1 if the curves differ by more than the tolerance; 2 when a run cannot be compared.
    """
    parser = argparse.ArgumentParser(prog="python -m jepa_jax.bench.curves", description=__doc__)
    parser.add_argument("runs", nargs="+", type=types.assignment, metavar="PROCESSES=WORKDIR", help="the first is compared with")
    parser.add_argument("--tolerance", type=types.positive_float, default=1e-6, help="relative (%(default)s)")
    parser.add_argument("--output", help="file of the record; by default under benchmarks/results")
    args = parser.parse_args(argv)
    try:
        record = compare({int(name): path for name, path in args.runs})
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    record["tolerance"] = args.tolerance
    name = f"processes-{'-'.join(name for name, _ in args.runs)}-{record['steps']}steps-cpu"
    path = report.write(record, args.output, name)
    lines = [f"{name} processes: largest relative difference of the loss {value:.3g}"
             for name, value in record["largest_difference"].items()]
    write_lines([*lines, f"record: {path}"])
    return int(max(record["largest_difference"].values()) > args.tolerance)


def compare(runs):
    """Compare the losses of runs, step by step.

    Args:
      runs: workdirs by number of processes; the first is the one to compare with.

    Returns:
      Record: the losses of every run, and its largest relative difference from the first.

    Raises:
      OSError: a run has no metrics.
      ValueError: runs do not hold the same steps, or not each of them once.
    """
    curves = {name: _losses(path) for name, path in runs.items()}
    first = next(iter(curves.values()))
    for name, curve in curves.items():
        if [step for step, _ in curve] != list(range(1, len(first) + 1)):
            raise ValueError(f"{runs[name]} does not hold the steps 1 to {len(first)}, each once; set --config.log.every_steps=1")
    losses = {name: [loss for _, loss in curve] for name, curve in curves.items()}
    reference = next(iter(losses.values()))
    largest = {name: max(abs(a - b) / abs(b) for a, b in zip(curve, reference)) for name, curve in losses.items()}
    return {"benchmark": "processes", "machine": report.machine(), "config": _config(runs), "steps": len(first),
            "loss": losses, "largest_difference": largest}


def _losses(workdir):
    rows = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["train/loss"]) for row in map(json.loads, rows)]


def _config(runs):
    """Return the config that all runs share, where they ran left out."""
    found = []
    for path in runs.values():
        config = json.loads((pathlib.Path(path) / "config.json").read_text())
        config["data"]["groups"] = {name: group for name, group in config["data"]["groups"].items() if group["batch_size"]}
        for group in config["data"]["groups"].values():
            del group["paths"]
        del config["data"]["root"], config["mesh"]["distributed"]
        found.append(config)
    if any(config != found[0] for config in found):
        raise ValueError("the runs have different configs; only the number of processes may differ")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
