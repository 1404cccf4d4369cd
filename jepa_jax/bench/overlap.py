"""How much of a device's time goes by without data, while workers prepare batches ahead of it."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.bench import report
from jepa_jax.training import sharding


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
        """Begin a step; the future says when the device had done it, by `time.perf_counter`."""
        return self._thread.submit(self._run, batch)

    def close(self):
        """End the thread."""
        self._thread.shutdown()

    def _run(self, batch):
        self._step(batch).block_until_ready()
        return time.perf_counter()

    def _on_device(self, batch):
        first = sum(jnp.ravel(leaf)[0].astype(jnp.float32) for leaf in jax.tree.leaves(batch))
        return jax.pure_callback(self._sleep, jax.ShapeDtypeStruct((), jnp.float32), first)

    def _sleep(self, first):
        time.sleep(self._seconds)
        return np.asarray(first)


def measure_overlap(batches, steps, step_s):
    """Run fake steps on batches as the train loop does, on one device, and see how long it has none.

    While a step runs, the next batch is taken from the iterator and put on the device. Where that
    is done only after the step, the device has waited in between.

    Args:
      batches: iterator of at least `steps` + 1 (batch, notes).
      steps: how many are timed.
      step_s: duration of a step, seconds.

    Returns:
      dict: `wait_share` of the whole time the device waited for data; `fetch_ms` is how long the
      host took for a batch, while the device was busy or not.
    """
    mesh, step = sharding.make_mesh(devices=jax.devices()[:1]), _SleepingStep(step_s)
    with contextlib.closing(step):
        batch = sharding.put_batch(next(batches)[0], mesh)
        # Compiles.
        step.start(batch).result()
        fetches, waited, began = [], 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            running = step.start(batch)
            batch = jax.block_until_ready(sharding.put_batch(next(batches)[0], mesh))
            arrived = time.perf_counter()
            waited += max(0.0, arrived - running.result())
            fetches.append(1e3 * (arrived - asked))
        seconds = time.perf_counter() - began
    return {
        "device": jax.devices()[0].device_kind,
        "steps": steps,
        "step_ms": 1e3 * step_s,
        "step_with_data_ms": 1e3 * seconds / steps,
        "wait_share": waited / seconds,
        "fetch_ms": report.spread(fetches),
    }
