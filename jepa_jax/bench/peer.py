"""Run the PyTorch step beside ours: same weights, same batches, same rates, in turn."""

import jax
import numpy as np

from jepa_jax.bench import report
from jepa_jax.bench.torch_setup import choose_device, import_peer, make_fast

_LOSS_TOLERANCE = {"float32": 1e-4}
_HALF_LOSS_TOLERANCE = 2e-2


class Comparison:
    """Own the peer of one run; calling it makes one step and returns the loss.

    Args:
      config: as in `measure_step`.
      groups, encoder, predictor: of our step.
      params: our initial parameters.
      batches: host arrays, used in turn as ours are.
      schedules: `optim.Schedules`.
      num_steps: steps that will be made.
      compiled: pass the PyTorch networks through its compiler.

    Raises:
      MissingTorch: if PyTorch is missing or sees no GPU where we use one.
      ValueError: if the config has an option that the peer lacks.
    """

    def __init__(self, config, groups, encoder, predictor, params, batches, schedules, *, num_steps, compiled):
        if config.optim.accumulate > 1:
            raise ValueError(f"the PyTorch peer does not accumulate; optim.accumulate is {config.optim.accumulate}")
        torch, device = import_peer("torch"), choose_device(jax.default_backend())
        make_fast(device)
        from jepa_jax.bench.torch_peer import Rates, TorchPeer

        self._torch, self._device, self._compiled = torch, device, compiled
        self._dtype = str(config.model.dtype)
        self._peer = TorchPeer(
            encoder, predictor, jax.tree.map(np.asarray, params), groups, config.optim,
            half=self._dtype == "bfloat16", device=device, compiled=compiled,
        )
        self._batches = [self._peer.put(batch) for batch in batches]
        # All rates beforehand, so that no timed step waits for them.
        self._rates = [Rates(*(float(schedule(k)) for schedule in schedules)) for k in range(1, num_steps + 1)]
        self._count = 0
        self._differences = []

    def __call__(self):
        loss = self._peer.step(self._batches[self._count % len(self._batches)], self._rates[self._count])
        self._count += 1
        return loss

    def check_losses(self, ours):
        """Make as many steps as ours made and compare the losses.

        Raises:
          ValueError: if a loss differs by more than rounding explains.
        """
        tolerance = _LOSS_TOLERANCE.get(self._dtype, _HALF_LOSS_TOLERANCE)
        theirs = [self() for _ in ours]
        self._differences = [abs(a / b - 1) for a, b in zip(ours, theirs)]
        if max(self._differences) > tolerance:
            raise ValueError(f"the two steps are not the same: losses {ours} (ours) and {theirs} (PyTorch) "
                             f"differ by more than {tolerance:g}")

    def record(self, ours, theirs):
        """Summarise the comparison as a JSON-able dict.

        Args:
          ours, theirs: `report.Times` of each side.
        """
        wall, cpu = report.spread(theirs.wall_ms), report.spread(theirs.cpu_ms)
        return {
            "torch": {
                "step_ms": wall,
                "step_cpu_ms": cpu,
                "compiled": self._compiled,
                "device": self._device,
                "threads": self._torch.get_num_threads(),
                "device_peak_bytes": self._torch.cuda.max_memory_allocated() if self._device == "cuda" else None,
                "max_relative_loss_difference": max(self._differences),
                "checked_steps": len(self._differences),
            },
            "time_over_torch": report.spread(ours.wall_ms)["median"] / wall["median"],
            "time_over_torch_pairs": report.spread([a / b for a, b in zip(ours.wall_ms, theirs.wall_ms)]),
            "cpu_time_over_torch": report.spread(ours.cpu_ms)["median"] / cpu["median"],
        }
