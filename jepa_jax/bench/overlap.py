"""How much of a device's time goes by without data, while workers prepare batches ahead of it."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.bench import report
from jepa_jax.training import sharding

_CALLS_ALONE = 5


class _SleepingStep:
    """A step that occupies the device for a known time and the processor for none.

    As with a real one, its batch has to be on the device, and the caller goes on while it runs;
    a thread sees to that, since JAX on a CPU waits for steps that call back.
    """

    def __init__(self, seconds):
        self._seconds = seconds
        self._thread = ThreadPoolExecutor(1)
        self._step = jax.jit(self._on_device)

    def start(self, batch):
        """Begin a step; the future ends when the device has done it."""
        return self._thread.submit(lambda: self._step(batch).block_until_ready())

    def close(self):
        """End the thread."""
        self._thread.shutdown()

    def _on_device(self, batch):
        first = sum(jnp.ravel(leaf)[0].astype(jnp.float32) for leaf in jax.tree.leaves(batch))
        return jax.pure_callback(self._sleep, jax.ShapeDtypeStruct((), jnp.float32), first)

    def _sleep(self, first):
        time.sleep(self._seconds)
        return np.asarray(first)


def measure_overlap(batches, steps, step_s):
    """Run fake steps on batches as the train loop does and see how long the device has none.

    While a step runs, the next batch is taken from the iterator and put on the device.

    Args:
      batches: iterator of at least `steps` + 1 (batch, notes).
      steps: how many are timed.
      step_s: duration of a step, seconds; above 0.

    Returns:
      dict: `wait_share` of the whole time is what the steps took beyond their own duration;
      `fetch_ms` is how long the host took for a batch, most of it while the device was busy.
    """
    mesh, step = sharding.make_mesh(), _SleepingStep(step_s)
    with contextlib.closing(step):
        batch = sharding.put_batch(next(batches)[0], mesh)
        alone = report.Times([], [])
        # The first call compiles.
        step.start(batch).result()
        for _ in range(_CALLS_ALONE):
            alone.measure(lambda: step.start(batch).result())
        fetches, began = report.Times([], []), time.perf_counter()
        for _ in range(steps):
            running = step.start(batch)
            ahead = []
            fetches.measure(lambda: ahead.append(sharding.put_batch(next(batches)[0], mesh)))
            running.result()
            batch = ahead.pop()
        seconds = time.perf_counter() - began
    own_ms = report.spread(alone.wall_ms)["median"]
    return {
        "device": jax.devices()[0].device_kind,
        "steps": steps,
        "step_ms": own_ms,
        "step_with_data_ms": 1e3 * seconds / steps,
        "wait_share": max(0.0, 1.0 - steps * own_ms / (1e3 * seconds)),
        "fetch_ms": report.spread(fetches.wall_ms),
    }
