"""Training with faults built in: `python tests/faults.py -m jepa_jax.train FLAGS`, in place of `python -m jepa_jax.train FLAGS`.

FAULTS is JSON: a list of [name, process, step, value]. A process leaves those of others alone.
  nan: the clips of the process hold a NaN at the step          slow: its data come `value` seconds late
  kill, terminate: it gets SIGKILL or SIGTERM when the step's update is done, and `value` is 'step', or while the
    checkpoint of the step is written, and `value` is 'save'; or, for any step, while it compiles: 'compile'
  full: from the step on, no file of it may grow beyond `value` bytes
"""

import json
import os
import resource
import runpy
import signal
import sys
import threading
import time

import numpy as np

PROCESS = int(os.environ.get("JAX_PROCESS_ID", 0))
FAULTS = json.loads(os.environ.get("FAULTS", "[]"))
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}


def _found(name, step):
    """Return the values of this process's faults of a name that are due."""
    return [value for fault, process, when, value in FAULTS if (fault, process) == (name, PROCESS) and when in (step, None)]


def _strike(where, step):
    for name, number in SIGNALS.items():
        if where in _found(name, step):
            os.kill(os.getpid(), number)


def _build_in():
    from jepa_jax.training import checkpoint, loop, sharding

    now, put_batch, save = {}, sharding.put_batch, checkpoint.CheckpointStore.save
    compile_step, device_batches = loop._compile, loop._device_batches

    def follow(steps):
        for step in steps:
            now["step"] = step
            yield step
            _strike("step", step)

    def put_faulty(batch, mesh):
        step = now["step"]
        for seconds in _found("slow", step):
            time.sleep(seconds)
        for size in _found("full", step):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        if any(fault == "nan" for fault, *_ in FAULTS):
            # In all processes: the step is compiled for one type.
            for group in batch.values():
                group["video"] = group["video"].astype(np.float32)
                if _found("nan", step):
                    group["video"][0, 0, 0, 0] = np.nan
        return put_batch(batch, mesh)

    def compile_and_strike(*args):
        # From a thread: this one is inside the compiler then.
        threading.Timer(0.3, _strike, ["compile", None]).start()
        return compile_step(*args)

    def save_and_strike(self, step, *args):
        save(self, step, *args)
        _strike("save", step)

    sharding.put_batch, loop._compile, checkpoint.CheckpointStore.save = put_faulty, compile_and_strike, save_and_strike
    loop._device_batches = lambda batches, skips, mesh, steps: device_batches(batches, skips, mesh, follow(steps))


if __name__ == "__main__":
    sys.path[0] = os.getcwd()
    _build_in()
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
