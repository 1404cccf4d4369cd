"""Where numbers go: JSON lines and TensorBoard files in the workdir, and the terminal."""

import json
import pathlib
import resource
import sys
import tempfile
import time

import jax
from absl import logging
from etils import epath
from tqdm import tqdm

FILE = "metrics.jsonl"


def memory_gib():
    """Return (name, GiB): peak device memory, or the peak of this process where the device does not say."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return "perf/device_memory_gib", stats["peak_bytes_in_use"] / 2**30
    scale = 1 if sys.platform == "darwin" else 1024
    return "perf/process_memory_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


class MetricWriter:
    """Append metrics to the workdir; only process 0 writes.

    Objects in a bucket cannot be appended to: there, files grow in a folder of this host, and `publish`
    copies them.

    Args:
      workdir: folder of the run.
      start_step: metrics beyond it, left by an interrupted run, are dropped.
    """

    def __init__(self, workdir, start_step):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        # It imports PyTorch where that is installed, which takes seconds.
        from tensorboardX import SummaryWriter

        workdir, self._remote, self._here = epath.Path(workdir), None, None
        kept = (workdir / FILE).read_text().splitlines() if (workdir / FILE).exists() else []
        if "://" in str(workdir):
            self._here = tempfile.TemporaryDirectory(prefix="jepa_jax-")
            self._remote, workdir = workdir, pathlib.Path(self._here.name)
        self._local = workdir
        with open(workdir / FILE, "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in kept if _step_of(line, start_step + 1) <= start_step)
        self._file = open(workdir / FILE, "a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step, metrics):
        """Write a flat dict of floats for `step`."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step} | metrics) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def publish(self):
        """Copy what was written to a workdir in a bucket; elsewhere it is there already."""
        if not self._active or self._remote is None:
            return
        self._board.flush()
        for path in filter(pathlib.Path.is_file, self._local.rglob("*")):
            there = self._remote / path.relative_to(self._local).as_posix()
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(path.read_bytes())

    def close(self):
        """Flush and close the files, and publish them."""
        if self._active:
            self._file.close()
            self._board.close()
            self.publish()
            if self._here is not None:
                self._here.cleanup()


def _step_of(line, default):
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        # A line cut short by a kill.
        return default


class Progress:
    """A progress bar on a terminal, plain log lines elsewhere.

    Args:
      start_step, total_steps: where the run is and where it ends.
    """

    def __init__(self, start_step, total_steps):
        self._bar = None
        self._total = total_steps
        self._began, self._first = time.monotonic(), start_step
        if jax.process_index() == 0 and sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True)

    def advance(self):
        """Count one step."""
        if self._bar is not None:
            self._bar.update()

    def show(self, step, metrics):
        """Show the main numbers of a metrics dict."""
        if jax.process_index() != 0:
            return
        parts = [f"loss {metrics['train/loss']:.4f}", f"lr {metrics['optim/lr']:.2e}"]
        if "ema/momentum" in metrics:
            parts.append(f"ema {metrics['ema/momentum']:.5f}")
        if "train/copy_last" in metrics:
            parts.append(f"of copying {metrics['train/loss/teacher_forcing'] / metrics['train/copy_last']:.2f}")
        if "train/best_accuracy" in metrics:
            parts.append(f"best probe {metrics['train/best_accuracy']:.1%}")
        if "train/best_top5_action" in metrics:
            parts.append(f"best probe, action among 5 {metrics['train/best_top5_action']:.1%}")
        if "probe/knn" in metrics:
            parts.append(f"nearest neighbours {metrics['probe/knn']:.1%}, linear head {metrics['probe/linear']:.1%}")
        # Of many probes, norms would fill the line.
        parts += [f"|g| {name.removeprefix('optim/grad_norm_')} {value:.2g}"
                  for name, value in metrics.items() if name.startswith("optim/grad_norm") and "train/best_loss" not in metrics]
        parts += [f"rank {metrics['collapse/target_rank']:.1f}", f"{metrics['perf/clips_per_s']:.1f} clips/s",
                  f"data wait {metrics['data/wait_share']:.0%}", f"mem {memory_gib()[1]:.1f} GiB"]
        if "perf/utilisation" in metrics:
            parts.append(f"util {metrics['perf/utilisation']:.0%}")
        if metrics["guard/skipped"]:
            parts.append(f"skipped updates {metrics['guard/skipped']:.0f}")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts))
            return
        seconds = (time.monotonic() - self._began) / max(1, step - self._first) * (self._total - step)
        eta = time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86400 else f"{seconds / 86400:.1f} days"
        logging.info("step %d/%d  %s  ETA %s", step, self._total, "  ".join(parts), eta)

    def close(self):
        """Leave the bar as it is and release the terminal."""
        if self._bar is not None:
            self._bar.close()
