"""A part of a measurement in a fresh process, whose memory is then its own."""

import multiprocessing

from jepa_jax.bench import report


class Remote:
    """Own an object that lives in a fresh process; use as context manager.

    Args:
      factory: importable callable that makes the object there.
      *args: its arguments.
    """

    def __init__(self, factory, *args):
        # Spawned, not forked: nothing of this process is shared, or counted twice.
        context = multiprocessing.get_context("spawn")
        self._what = factory.__name__
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, factory, args), daemon=True)
        self._process.start()
        far_end.close()

    def wait_ready(self):
        """Wait until the object is made; returns the peak of resident memory so far, in bytes."""
        return self._receive()[1]

    def call(self, method, *args):
        """Call a method of the object.

        Returns:
          (what it returned, peak of resident memory during the call in bytes).

        Raises:
          ChildProcessError: if the process ended; its own message is on standard error.
        """
        try:
            self._pipe.send((method, args))
        except BrokenPipeError:
            # Why is found out below.
            pass
        return self._receive()

    def _receive(self):
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join()
            code = self._process.exitcode
            reason = (f"by signal {-code}, perhaps for lack of memory" if code < 0
                      else f"with exit status {code}, see above")
            raise ChildProcessError(f"the process of {self._what} ended {reason}") from error

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe, factory, args):
    """Make the object, then call its methods as asked until the other end closes."""
    made = factory(*args)
    pipe.send((None, report.peak_rss_bytes()))
    while True:
        try:
            method, args = pipe.recv()
        except EOFError:
            return
        report.reset_peak_rss()
        result = getattr(made, method)(*args)
        pipe.send((result, report.peak_rss_bytes()))
