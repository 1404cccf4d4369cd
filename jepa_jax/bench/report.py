"""What every measurement records: machine, versions, spread of timings; written as JSON."""

import contextlib
import json
import os
import platform
import re
import resource
import statistics
import sys
import time
from importlib import metadata
from typing import NamedTuple

from jepa_jax.data.workers import usable_cores

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "av", "opencv-python-headless", "numpy", "torch",
             "transformers", "decord2")
DEFAULT_FOLDER = os.path.join("benchmarks", "results")


def machine():
    """Describe the host: processor, cores this process may use, Python and package versions."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        # Above `cores`, others were using the machine while we measured.
        "load_average_1min": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = re.findall(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def spread(values):
    """Summarise timings.

    Args:
      values: at least one number, in one unit.

    Returns:
      dict: median, min, max, median absolute deviation `mad`, and `num`.
    """
    median = statistics.median(values)
    return {
        "median": median,
        "min": min(values),
        "max": max(values),
        "mad": statistics.median(abs(value - median) for value in values),
        "num": len(values),
    }


class Times(NamedTuple):
    """Milliseconds of each call: by the clock, and of all threads of the process together.

    On a machine that others use too, the second is the steadier one.
    """

    wall_ms: list[float]
    cpu_ms: list[float]

    def measure(self, call):
        """Call and append both."""
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        self.wall_ms.append(1e3 * (time.perf_counter() - wall))
        self.cpu_ms.append(1e3 * (time.process_time() - cpu))


def peak_rss_bytes():
    """Return the largest resident memory of this process so far, or since `reset_peak_rss`, in bytes."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            # What getrusage says includes the process that started this one.
            return 1024 * int(re.search(r"^VmHWM:\s*(\d+) kB$", file.read(), re.MULTILINE)[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # Linux counts in kibibytes, macOS in bytes.
        return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_rss():
    """Let `peak_rss_bytes` count from now on; without effect where the system cannot do it."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def write(record, path, default_name):
    """Write a record as JSON.

    Args:
      record: JSON-able dict.
      path: file to write, or None for `default_name` under benchmarks/results.
      default_name: file name; characters that are awkward in one become '-'.

    Returns:
      The path written.
    """
    if path is None:
        path = os.path.join(DEFAULT_FOLDER, re.sub(r"[^A-Za-z0-9._-]+", "-", default_name) + ".json")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=2, allow_nan=False)
        file.write("\n")
    return path
