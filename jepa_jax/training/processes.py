"""The processes of one run: they join, notice when one of them is gone, and say which."""

import contextlib
import json
import os
import signal
import socket
import threading
import time

import jax
import numpy as np
from absl import logging
from jax._src import distributed
from jax.experimental import multihost_utils

# Seconds after which JAX ends all processes because one does not answer; what is below is faster, and says more.
_HEARTBEAT_S = 80
# Every process shows a pulse this often, seconds; one that shows none for `_LOST_AFTER_S` is lost.
_PULSE_S = 2.0
_LOST_AFTER_S = 30.0
# When shared work has failed, somebody is gone already: how long to look who, seconds.
_MISSING_AFTER_S = 4 * _PULSE_S
# How long the process that all others ask stays to let them look, seconds.
_FAREWELL_S = 15.0
_FOLDER = "jepa_jax/processes"
_STOP_FOLDER = "jepa_jax/stop"


def join_processes():
    """Join the processes of a pod or cluster, before anything else uses JAX.

    TPU pods, Slurm and others are recognised by JAX; elsewhere the environment variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who is who.

    Returns:
      (number of this process, how many there are).

    Raises:
      ValueError: if neither says it.
    """
    # Its SIGTERM handler counts steps from 0, and so misses a signal before the first step of a run that was resumed.
    jax.config.update("jax_enable_preemption_service", False)
    names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    jax.distributed.initialize(
        **{key: int(os.environ[name]) for key, name in names.items() if name in os.environ},
        heartbeat_timeout_seconds=_HEARTBEAT_S, shutdown_timeout_seconds=_HEARTBEAT_S,
    )
    return jax.process_index(), jax.process_count()


def sum_over_processes(counts):
    """Add int arrays of one shape, below 2**31 in each process, over all processes; all of them must call it."""
    if jax.process_count() == 1:
        return counts
    return multihost_utils.process_allgather(counts.astype(np.int32)).astype(np.int64).sum(axis=0)


class ProcessLost(Exception):
    """Work shared with the other processes failed because one of them is gone; the message says which."""


class Watch:
    """Show the others that this process lives, and end it when one of them is lost; use as context manager.

    A process that dies leaves the others in work that it will never join: on some systems that work
    fails, on others it hangs. So every process counts up a number in the key-value store of JAX's
    coordinator and looks at those of the others. Only a number that stands still on the observer's
    own stopwatch counts, so clocks need not agree. A process that ends for a reason of its own says it there.

    SIGTERM to any process stops all of them at one step, see `stops_at`.

    Args:
      client: key-value store: `key_value_set` and `key_value_dir_get` as JAX's client has them.
      index, count: number of this process, and how many there are.
      shared: classes of exceptions that end all processes alike, so that nobody has to be told.
      end: int -> never returns; ends this process.
    """

    def __init__(self, client, index, count, shared=(), end=os._exit):
        self._client, self._index, self._count, self._shared, self._end = client, index, count, shared, end
        self._who = f"host {socket.gethostname()}, pid {os.getpid()}"
        self._beat, self._known, self._seen = 0, {}, {}
        self._over, self._lock = threading.Event(), threading.Lock()
        self._asked, self._passed, self._last, self._steps = False, -1, None, threading.Lock()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self):
        self._previous = signal.signal(signal.SIGTERM, self._ask)
        self._thread.start()
        return self

    def stops_at(self, step):
        """Tell whether all processes stop after this step, because one of them got SIGTERM.

        Args:
          step: a number that grows; every process has to ask at the same ones.
        """
        with self._steps:
            if self._last is not None and step >= self._last:
                return True
            self._passed = step
            return False

    def _ask(self, *_):
        self._asked = True

    def _agree_on_last(self):
        """Settle the step to stop at: none that a process has passed. Meanwhile no process passes another."""
        with self._steps:
            self._client.key_value_set(f"{_STOP_FOLDER}/{self._index}", str(self._passed + 1), allow_overwrite=True)
            while not self._over.is_set():
                earliest = [int(text) for _, text in self._client.key_value_dir_get(_STOP_FOLDER)]
                if len(earliest) == self._count:
                    self._last = max(earliest)
                    logging.info("SIGTERM: all processes stop after the step that is under way")
                    return
                self._show()
                self._look()
                if self._gone(_LOST_AFTER_S):
                    return
                time.sleep(_PULSE_S / 4)

    def __exit__(self, kind, error, traceback):
        """Tell the others why this process ends.

        Raises:
          ProcessLost: if it ends because one of them is gone.
        """
        signal.signal(signal.SIGTERM, self._previous)
        if kind is None or issubclass(kind, self._shared):
            self._leave()
            return
        failed_together = issubclass(kind, jax.errors.JaxRuntimeError)
        lines = self._missing() if failed_together else []
        self._leave("" if failed_together else f"{kind.__name__}: {error}".partition("\n")[0][:500])
        self._await_others()
        if lines:
            raise ProcessLost(self._report(lines)) from error

    def _leave(self, reason=""):
        self._over.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._show(ended=True, reason=reason)

    def _missing(self):
        """Look, for some seconds, for who is gone; returns lines, one each."""
        deadline = time.monotonic() + _MISSING_AFTER_S
        while True:
            try:
                self._look()
            except jax.errors.JaxRuntimeError:
                return [self._coordinator_gone()]
            lines = self._gone(_MISSING_AFTER_S - _PULSE_S)
            if lines or time.monotonic() > deadline:
                return lines
            time.sleep(_PULSE_S / 4)

    def _await_others(self):
        """Stay until the others have seen who is missing, if this is the process that all of them ask."""
        deadline = time.monotonic() + _FAREWELL_S
        while self._index == 0 and time.monotonic() < deadline:
            try:
                self._look()
            except jax.errors.JaxRuntimeError:
                return
            if all(entry["ended"] or self._silent(index, _MISSING_AFTER_S) for index, entry in self._known.items() if index):
                return
            time.sleep(_PULSE_S / 4)

    def _show(self, **more):
        with self._lock:
            self._beat += 1
            entry = {"who": self._who, "beat": self._beat, "asked": self._asked, "ended": False, "reason": ""} | more
            self._client.key_value_set(f"{_FOLDER}/{self._index}", json.dumps(entry), allow_overwrite=True)

    def _look(self):
        """Read what all processes show, and note when this one last saw a change of it."""
        now = time.monotonic()
        for key, text in self._client.key_value_dir_get(_FOLDER):
            index, entry = int(key.rsplit("/", 1)[1]), json.loads(text)
            if self._known.get(index) != entry:
                self._known[index], self._seen[index] = entry, now

    def _silent(self, index, seconds):
        return time.monotonic() - self._seen[index] > seconds

    def _name(self, index):
        who = self._known[index]["who"] if index in self._known else "its host is not known"
        return f"process {index} of {self._count} ({who})"

    def _gone(self, seconds):
        lines = []
        for index in sorted(self._known.keys() - {self._index}):
            entry = self._known[index]
            if entry["reason"]:
                lines.append(f"{self._name(index)} ended: {entry['reason']}")
            elif not entry["ended"] and self._silent(index, seconds):
                lines.append(f"{self._name(index)} is lost: no sign of life for {seconds:.0f} s")
        return lines

    def _coordinator_gone(self):
        return f"{self._name(0)} is lost: it coordinates the others and does not answer"

    def _report(self, lines):
        return (f"process {self._index} ends, as work shared with others cannot go on:\n  " + "\n  ".join(lines) +
                "\nRun the same command again: it continues from the last checkpoint")

    def _run(self):
        failures = 0
        while not self._over.wait(_PULSE_S):
            try:
                self._show()
                self._look()
                if self._last is None and any(entry["asked"] for entry in self._known.values()):
                    self._agree_on_last()
                failures, lines = 0, self._gone(_LOST_AFTER_S)
            except jax.errors.JaxRuntimeError:
                failures += 1
                lines = [self._coordinator_gone()] if failures * _PULSE_S > _MISSING_AFTER_S else []
            if lines and not self._ends_by_itself():
                logging.error("%s", self._report(lines))
                self._leave()
                self._await_others()
                logging.flush()
                self._end(1)
                return

    def _ends_by_itself(self):
        """Leave it to the main thread to say who is missing, where shared work fails instead of hanging; returns whether it does."""
        deadline = time.monotonic() + _MISSING_AFTER_S + _PULSE_S
        while not self._over.wait(_PULSE_S):
            # Else the one that failed, and stays until all have seen it, would take this one for lost.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._show()
            if time.monotonic() > deadline:
                return False
        return True


def watch(shared):
    """Make the `Watch` of this run; one that does nothing in a run of one process."""
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    state = distributed.global_state
    # When that process dies, JAX itself ends the others, before they can say anything.
    logging.info("process %d of %d; process 0, the 'leader task' in errors of JAX, is at %s", jax.process_index(),
                 jax.process_count(), state.coordinator_address)
    # JAX has no public name for its key-value store.
    return Watch(state.client, jax.process_index(), jax.process_count(), shared)


def leave_alone(code):
    """End this process, of several, at once: the farewell at a normal exit would wait for the others."""
    logging.flush()
    os._exit(code)
