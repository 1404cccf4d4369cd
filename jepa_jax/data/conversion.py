"""Turn items into records, in processes that may crash."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import Rejected
from jepa_jax.data.records import Record
from jepa_jax.data.workers import prepare_worker

# See `convert_all`.
AHEAD = 4


class PlannedItem(Protocol):
    """Describe what a list for shards holds: tuples that JSON can write, each with a name."""

    @property
    def name(self) -> str:
        """Name the item in reports, such as a path."""


class ItemSpec(Protocol):
    """Describe how items become records: a dataclass that JSON can write and processes can share.

    Its `kind` names the records it makes ('video', 'image' or 'trajectory').
    """

    kind: str

    def convert(self, item: PlannedItem) -> Record:
        """Make the record of one item, a function of the item and this spec only.

        Raises:
            DataError: the item cannot be used; it is counted and left out.
        """


def convert_all(
    items: Sequence[PlannedItem], spec: ItemSpec, workers: int, ahead: int = AHEAD
) -> Iterator[tuple[PlannedItem, Record | DataError]]:
    """Convert items in order, some ahead of the one that is asked for.

    Args:
        items: what to convert.
        spec: how.
        workers: processes; 0 converts in this one.
        ahead: items given to the pool ahead of the reader, per worker: results wait in memory.

    Yields:
        Every item with its record, or with the DataError that says why there is none;
        'crashed the decoder' for one that killed its process.
    """
    if not workers:
        yield from ((item, convert(item, spec)) for item in items)
        return
    waiting = iter(items)
    pool = _pool(workers)
    try:
        queue = [(item, pool.submit(convert, item, spec)) for item in itertools.islice(waiting, workers * ahead)]
        while queue:
            item, future = queue.pop(0)
            try:
                result = future.result()
            except BrokenProcessPool:
                # One file crashed its worker and took the pool with it: find out which.
                pool.shutdown(wait=False, cancel_futures=True)
                pool = _pool(workers)
                result = _convert_alone(item, spec)
                queue = [(other, _resubmit(pool, other, old, spec)) for other, old in queue]
            yield item, result
            queue += [(item, pool.submit(convert, item, spec)) for item in itertools.islice(waiting, 1)]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=prepare_worker)


def _resubmit(pool: ProcessPoolExecutor, item: PlannedItem, old: Future, spec: ItemSpec) -> Future:
    finished = old.done() and not old.cancelled() and old.exception() is None
    return old if finished else pool.submit(convert, item, spec)


def _convert_alone(item: PlannedItem, spec: ItemSpec) -> Record | DataError:
    with _pool(1) as pool:
        try:
            return pool.submit(convert, item, spec).result()
        except BrokenProcessPool:
            return DataError("crashed the decoder", f"{item.name}: the process that decoded it was killed or crashed")


def convert(item: PlannedItem, spec: ItemSpec) -> Record | DataError:
    """Make the record of one item, or return the reason why there is none.

    Args:
        item: what to convert.
        spec: how.

    Returns:
        The record, or the DataError (returned, not raised: one bad item is no failure).
    """
    if isinstance(item, Rejected):
        return DataError(item.reason, item.message)
    try:
        return spec.convert(item)
    except DataError as error:
        return error
