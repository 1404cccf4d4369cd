"""What becomes of Orbax's writers, which work in the background: their failures, told at once, once, and without noise."""

import concurrent.futures
import dataclasses
import logging as std_logging
import sys

import orbax.checkpoint as ocp


def tell_failure(handler, failure):
    """Make a handler of Orbax put the first error of its writers into the future `failure`, as soon as it is known."""
    async_save = handler.async_save

    async def save_and_tell(*args, **options):
        return [_TellingFuture(future, failure) for future in await async_save(*args, **options) or ()]

    # Not by a subclass: Orbax looks up by the class what a handler can save.
    handler.async_save = save_and_tell
    return handler


@dataclasses.dataclass
class _TellingFuture:
    """A future as Orbax takes them."""

    future: ocp.future.Future
    failure: concurrent.futures.Future

    def result(self, timeout=None):
        with self:
            return self.future.result(timeout)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        # Whatever it is, by whichever writer first.
        if kind is not None and not self.failure.done():
            self.failure.set_exception(error)

    def cancel(self):
        return self.future.cancel()


def first_of(function, failure):
    """Call a function that blocks, or raise what a future of failures holds before it returns; then it is left behind."""
    executor = concurrent.futures.ThreadPoolExecutor(1)
    finished = executor.submit(function)
    executor.shutdown(wait=False)
    concurrent.futures.wait([finished, failure], return_when=concurrent.futures.FIRST_COMPLETED)
    (failure if failure.done() else finished).result()


def quiet_writers():
    """Keep writers of a checkpoint that failed from ending a program's output with errors of their own.

    The first write that fails closes Orbax's event loop. TensorStore then has nobody to tell of the
    others, at any later moment, and each prints a stack trace; those it did tell, nobody asks any more,
    which asyncio reports when they are collected.
    """
    shown = sys.unraisablehook

    def show(raised):
        if str(raised.exc_value) != "Event loop is closed":
            shown(raised)

    sys.unraisablehook = show
    std_logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
