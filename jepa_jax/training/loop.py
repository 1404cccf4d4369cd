"""The one train loop."""

import contextlib
import functools
import signal
import time

import jax
import numpy as np
from absl import logging
from etils import epath

from jepa_jax.training import checkpoint, sharding, start
from jepa_jax.training.chips import peak_flops
from jepa_jax.training.metrics import MetricWriter, Progress, memory_gib
from jepa_jax.training.monitors import collapse_metrics_jit


class TrainingStopped(Exception):
    """The run cannot go on; the message says why and what to do."""


class Preempted(Exception):
    """SIGTERM arrived; the state was saved."""


@contextlib.contextmanager
def _sigterm_stops():
    """Yield a function that tells whether SIGTERM has arrived, to this process."""
    received = []
    previous = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Window:
    """Metrics of the steps since the last log, still on the device."""

    def __init__(self, task, guard):
        self._task, self._limit = task, guard.max_skips_in_a_row
        self._steps, self._streak = [], 0
        self.restart()

    def restart(self):
        """Start timing; compilation and checkpoints at the start do not count."""
        self._steps, self._wait, self._began = [], 0.0, time.monotonic()

    def add(self, step, metrics, samples, wait):
        """Note one step and the seconds it waited for data."""
        self._steps.append((step, metrics))
        self._samples, self._wait = samples, self._wait + wait

    def close(self):
        """Fetch the metrics of the window and start the next.

        Returns:
          Flat dict of floats: means of losses, the last value of everything else.

        Raises:
          TrainingStopped: if too many updates in a row were refused.
        """
        rows = jax.device_get([metrics for _, metrics in self._steps])
        seconds = time.monotonic() - self._began
        for (step, _), row in zip(self._steps, rows):
            self._check_guard(step, row)
        merged = {name: float(value) for name, value in rows[-1].items()}
        merged |= {name: float(np.mean([row[name] for row in rows])) for name in merged if name.startswith("train/")}
        merged |= {name: float(value) for name, value in jax.device_get(collapse_metrics_jit(self._samples)).items()}
        per_second = len(rows) / seconds
        merged |= {"perf/clips_per_s": per_second * self._task.clips_per_step, "perf/step_ms": 1e3 / per_second,
                   "perf/tflops_per_s": per_second * self._task.flops_per_step / 1e12,
                   "data/wait_s": self._wait / len(rows), "data/wait_share": self._wait / seconds}
        peak = peak_flops(jax.devices()[0])
        if peak:
            merged["perf/utilisation"] = per_second * self._task.flops_per_step / (peak * jax.device_count())
        merged |= dict([memory_gib()])
        self.restart()
        return merged

    def _check_guard(self, step, row):
        self._streak = 0 if row["guard/applied"] else self._streak + 1
        if not self._streak:
            return
        bad = int(row["guard/first_bad"])
        what = f"{self._task.tensor_names[bad - 1]!r} is not finite" if bad else "the gradient norm spiked"
        logging.warning("step %d: update skipped, %s (loss %s)", step, what, row["train/loss"])
        if self._streak >= self._limit:
            raise TrainingStopped(
                f"{self._streak} updates in a row were skipped up to step {step}: {what}. The parameters are those of "
                "the last good step. Lower optim.lr, lengthen the warm-up, or look at the data of these steps; "
                "guard.max_skips_in_a_row sets the limit"
            )


def lower_step(program, abstract_state, batch, frozen, mesh):
    """Lower the train step, for training and for compiling ahead of time alike; call it within `sharding.use_mesh`.

    Args:
      program: `Task`, or anything else with its `train_step`.
      abstract_state: from `abstract_train_state`.
      batch, frozen: arrays, or `jax.ShapeDtypeStruct`s with shardings.

    Returns:
      `jax.stages.Lowered`; the state it is called with is given up.
    """
    state_sharding = jax.tree.map(lambda x: x.sharding, abstract_state)
    step = jax.jit(program.train_step, donate_argnums=0, out_shardings=(state_sharding, sharding.replicated(mesh), None))
    return step.lower(abstract_state, batch, frozen)


def _compile(task, abstract_state, batch, frozen, mesh):
    """Compile the step once, ahead of time; any other shape is then an error, not a second program."""
    began = time.monotonic()
    compiled = lower_step(task, abstract_state, batch, frozen, mesh).compile()
    memory = compiled.memory_analysis()
    logging.info("compiled the train step in %.1f s; %.2f GiB of temporaries and %.2f GiB of arguments per device",
                 time.monotonic() - began, memory.temp_size_in_bytes / 2**30, memory.argument_size_in_bytes / 2**30)
    return compiled


def abstract_train_state(program, mesh):
    """Return the shapes, dtypes and shardings of a program's state as `jax.ShapeDtypeStruct`s."""
    # The key is made inside: where the mesh is of a pod that is only compiled for, nothing can be computed on it.
    abstract = jax.eval_shape(lambda: program.init_state(jax.random.key(0)))
    return sharding.place_abstract(abstract, sharding.state_sharding(abstract, mesh))


def make_state(task, abstract_state, seed):
    """Initialise a state on the devices, every tensor in its sharding from the start."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
    return jax.jit(task.init_state, out_shardings=shardings)(jax.random.key(seed))


def _device_batches(batches, skip_counter, mesh, steps):
    """Yield (step, batch on the devices, seconds waited for it); keep no reference to it."""
    for step in steps:
        began = time.monotonic()
        batch, notes = next(batches)
        skip_counter.update(*notes)
        batch = [sharding.put_batch(batch, mesh)]
        yield step, batch.pop(), time.monotonic() - began


def _begin(store, task, skip_counter, abstract, mesh, config, workdir):
    """Make or load the first state and log how; returns it and the frozen weights, on the devices."""
    if jax.process_index() == 0:
        task.write_frozen(workdir)
    checkpoint.log_parameters(abstract.params)
    for name, shape in sharding.unsplit({"params": abstract.params, "frozen": task.frozen}, mesh):
        logging.info("replicated, no axis divides by %d: %s %s", mesh.shape["fsdp"], name, shape)
    state, run, text = start.start(
        store, abstract, functools.partial(make_state, task, abstract, config.seed), task.read_weights,
        task.check_card, **config.start.to_dict()
    )
    logging.info("%s", text)
    if run is not None:
        _compare_data(run["data"], task.data_state)
        # Checkpoints from before these were kept have none.
        skip_counter.restore(run.get("drawn", {}))
    return state, jax.device_put(task.frozen, sharding.state_sharding(task.frozen, mesh))


def _compare_data(then, now):
    """Warn where the data of a run are not those that it started with."""
    lines = [f"  {name}: {then.get(name, 'absent')}\n    now {now.get(name, 'absent')}"
             for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    if lines:
        logging.warning("the data differ from those this run was saved with, so batches from here on are not the ones "
                        "it would have seen:\n%s", "\n".join(lines))


def _run_record(task, config, drawn):
    """Collect what a checkpoint says besides its arrays."""
    return {"config": config.to_dict(), "data": task.data_state, "model": task.model_card, "drawn": drawn}


class _Recorder:
    """Writes metrics and checkpoints when they are due, and ends the run where it has to end."""

    def __init__(self, task, skip_counter, store, progress, writer, check_claim, config, total_steps):
        self._task, self._skips, self._store, self._progress, self._writer = task, skip_counter, store, progress, writer
        self._check_claim, self._config, self._last = check_claim, config, total_steps
        self.close = writer.close

    def end_step(self, step, state, window, *, stopping):
        """Log and save as due; the same decision in all processes.

        Raises:
          Preempted: if `stopping`.
          TrainingStopped: by the update guard, or because too many records were skipped.
          CheckpointError: if the last save failed.
        """
        always = stopping or step == self._last
        logs = always or step % self._config.log.every_steps == 0
        saves = always or step % self._config.checkpoint.every_steps == 0
        if not logs and not saves:
            return
        self._store.check()
        drawn, excess = self._skips.totals(), ""
        if logs:
            row = window.close() | drawn.metrics()
            if self._task.observe is not None:
                row |= self._task.observe(step, state)
                window.restart()
            self._writer.write(step, row)
            self._progress.show(step, row)
            excess = drawn.excess()
        if saves or excess:
            self._check_claim()
            self._store.save(step, state, _run_record(self._task, self._config, drawn.record(forgiven=bool(excess))))
            self._writer.publish()
            logging.info("%s", drawn.mixture())
        began = time.monotonic()
        if excess or stopping:
            self._store.wait()
        if excess:
            raise TrainingStopped(f"saved step {step} to {self._store.directory} and stopped: {excess}")
        if stopping:
            raise Preempted(f"SIGTERM: saved step {step} to {self._store.directory} in {time.monotonic() - began:.1f} s; run the "
                            "same command to continue")


def train(task, skip_counter, mesh, workdir, *, config, total_steps, stops_at=None, check_claim=lambda: None):
    """Run a task to the end, or to the first SIGTERM.

    Order within a step, which makes a checkpoint and its data agree: fetch batch, update,
    log, save.

    Args:
      task: `Task`.
      skip_counter: `SkipCounter` of this process: what the batches were made of.
      mesh: device mesh.
      workdir: folder of the run; a checkpoint in it is resumed.
      config: ConfigDict; the sections seed, start, guard, checkpoint and log are read here,
        and all of it is stored with every checkpoint.
      total_steps: last step.
      stops_at: step -> whether to save and stop there, the same in all processes; by default a SIGTERM
        to this process, the only one.
      check_claim: called before every save; raises if the workdir is no longer this run's.

    Returns:
      The final `TrainState`.

    Raises:
      Preempted: after a SIGTERM, when the state is saved.
      TrainingStopped: in all processes at the same step, when the update guard gives up or too many
        records had to be skipped; the state is saved in the latter case.
      CheckpointError: when saving or loading fails.
    """
    workdir = epath.Path(workdir)
    with sharding.use_mesh(mesh), contextlib.ExitStack() as stack:
        stops_at = stops_at or stack.enter_context(_sigterm_stops())
        store = checkpoint.CheckpointStore(
            workdir / "checkpoints", keep_last=config.checkpoint.keep_last, keep_every=config.checkpoint.keep_every
        )
        stack.callback(store.close)
        abstract = abstract_train_state(task, mesh)
        state, frozen = _begin(store, task, skip_counter, abstract, mesh, config, workdir)
        start_step = int(state.step)
        if start_step >= total_steps:
            logging.info("nothing to do: step %d of %d is reached", start_step, total_steps)
            return state
        batches = stack.enter_context(task.open_data(start_step, total_steps - start_step))
        progress = Progress(start_step, total_steps)
        stack.callback(progress.close)
        writer = MetricWriter(workdir, start_step)
        recorder = _Recorder(task, skip_counter, store, progress, writer, check_claim, config, total_steps)
        stack.callback(recorder.close)
        compiled, window = None, _Window(task, config.guard)
        steps = range(start_step + 1, total_steps + 1)
        for step, batch, waited in _device_batches(batches, skip_counter, mesh, steps):
            if compiled is None:
                compiled = _compile(task, abstract, batch, frozen, mesh)
                window.restart()
                waited = 0.0
            state, metrics, samples = compiled(state, batch, frozen)
            # The memory that workers share with us is released as soon as the step is done with it.
            del batch
            window.add(step, metrics, samples, waited)
            progress.advance()
            recorder.end_step(step, state, window, stopping=stops_at(step))
        store.wait()
        return state
