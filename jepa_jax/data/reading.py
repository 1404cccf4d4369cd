"""Videos read ahead of the device in batches, the unreadable ones noted."""

import collections
import concurrent.futures
from typing import NamedTuple

import numpy as np

from jepa_jax.data.errors import DataError
from jepa_jax.data.workers import usable_cores

# Batches that may wait for the device.
_AHEAD = 2


class Skipped(NamedTuple):
    """A video that could not be read: its number in the source, where it lies, the reason and the message."""

    number: int
    location: str
    reason: str
    message: str


def read_batches(source, read, numbers, batch_size):
    """Read entries of a source in several threads.

    Args:
      source: gives records by number, and says with `locate` where they lie.
      read: function (number, record) -> what is wanted of it; may raise `DataError`.
      numbers: of the entries.
      batch_size: how many are read together.

    Yields:
      (list of what was read, list of `Skipped`) for every batch, in the order of the numbers.
    """
    def one(number):
        number = int(number)
        try:
            return read(number, source[number])
        except DataError as error:
            return Skipped(number, source.locate(number), error.reason, str(error))

    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        for chunk in _ahead(pool, one, numbers, batch_size):
            yield [row for row in chunk if not isinstance(row, Skipped)], [row for row in chunk if isinstance(row, Skipped)]


def check_found(found, numbers, skipped):
    """Raise DataError if nothing at all could be read."""
    if not found:
        raise DataError("no usable record", f"none of {len(numbers)} videos could be used; the first: {skipped[0].message}")


def spread(total, limit):
    """Return the numbers of all of `total` entries, or of `limit` of them spread evenly: int64 `[n]`."""
    return np.arange(total) if limit is None else np.unique(np.linspace(0, total - 1, min(limit, total)).astype(int))


def _ahead(pool, read, numbers, size):
    """Yield what was read in chunks, a few of them ahead."""
    waiting = collections.deque()
    for first in range(0, len(numbers), size):
        waiting.append([pool.submit(read, number) for number in numbers[first : first + size]])
        if len(waiting) > _AHEAD:
            yield [future.result() for future in waiting.popleft()]
    while waiting:
        yield [future.result() for future in waiting.popleft()]
