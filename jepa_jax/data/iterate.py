"""Run a pipeline ahead of the training step, in worker processes or threads."""

from __future__ import annotations

import signal
import weakref
from collections.abc import Iterator

import grain
from absl import flags

from jepa_jax.data.mixing import Notes
from jepa_jax.data.pipeline import ClipPipeline
from jepa_jax.data.workers import one_thread_per_image, prepare_worker, silence_resource_tracker

# Seconds a worker outlives a SIGTERM, for the parent to save and close it.
_TERM_GRACE_S = 60


class WorkerDied(RuntimeError):
    """Say that a worker process ended although batches were still wanted."""


class BatchIterator(Iterator[tuple[dict[str, dict], Notes]]):
    """Yield (batch, notes) in step order.

    Call `close()`, or use it in a `with`, to stop the workers.
    """

    def __init__(self, iterator: grain.DatasetIterator, workers: int):
        self._held = [iterator]
        self._workers = workers
        # Runs once, at the latest when the interpreter leaves: grain's own clean-up
        # would come when its modules are already gone.
        self.close = weakref.finalize(self, _release, self._held)

    def __next__(self) -> tuple[dict[str, dict], Notes]:
        if not self._held:
            raise StopIteration
        try:
            return next(self._held[0])
        # Grain reports a dead worker as a bare RuntimeError; the words tell it from others.
        except RuntimeError as error:
            self.close()
            if "terminated unexpectedly" not in str(error):
                raise
            raise WorkerDied(
                f"one of the {self._workers} data worker processes ended before its work was done: {error} "
                "Exit code -9 usually means that the machine ran out of memory: lower the number of workers, threads "
                "or prefetched batches; -7 that /dev/shm is full (in docker: raise --shm-size). Run the same command "
                "again to go on from the last checkpoint."
            ) from error

    def __enter__(self) -> BatchIterator:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _release(held: list[grain.DatasetIterator]) -> None:
    while held:
        held.pop().close()


def make_iterator(
    pipeline: ClipPipeline, start_step: int, num_steps: int, *, workers: int, threads: int, prefetch: int
) -> BatchIterator:
    """Iterate over the batches of steps start_step .. start_step + num_steps - 1.

    The batches are the same, in the same order, for any workers, threads and prefetch.

    Args:
        pipeline: makes the batches.
        start_step: first step; resuming is nothing but another start.
        num_steps: how many batches, at least 1.
        workers: processes that make batches; 0 makes them in this process.
        threads: batches made at the same time in each process; 0 makes each one
            when it is asked for.
        prefetch: finished batches kept ready, per process.

    Returns:
        An iterator of `ClipPipeline.batch_at` results; close it.

    Raises:
        ValueError: a number is out of range.
    """
    if start_step < 0 or num_steps < 1:
        raise ValueError(f"start_step {start_step} must be at least 0 and num_steps {num_steps} at least 1")
    if workers < 0 or threads < 0 or prefetch < 1:
        raise ValueError(
            f"workers {workers} and threads {threads} must be at least 0, prefetch {prefetch} at least 1"
        )
    if workers and not flags.FLAGS.is_parsed():
        # Grain reads absl flags in its workers; outside absl.app nobody parsed them.
        flags.FLAGS.mark_as_parsed()
    one_thread_per_image()
    steps = grain.MapDataset.range(start_step, start_step + num_steps).map(pipeline.batch_at)
    # With workers, their queues hold the finished batches; without, the read buffer does.
    buffered = max(threads, 1 if workers else prefetch)
    batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffered))
    if workers:
        silence_resource_tracker()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
    return BatchIterator(iter(batches), workers)


def _start_worker(index: int, count: int) -> None:
    del index, count
    prepare_worker()
    # Schedulers signal every process; the parent needs its workers until it has saved.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_TERM_GRACE_S))
