"""Turn items into records, in processes that may crash."""

from __future__ import annotations

import itertools
import multiprocessing
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, Protocol

import cv2

from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import Rejected
from jepa_jax.data.records import Record
from jepa_jax.data.workers import prepare_worker

# See `convert_all`.
AHEAD = 4
# Results that wait for an item before them may take this much memory, bytes.
_MAX_WAITING = 1 << 29
# What libraries raise when they meet damage of a kind that nobody thought of.
_UNEXPECTED = (
    ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError,
    cv2.error, struct.error, zlib.error,
)  # fmt: skip


class PlannedItem(Protocol):
    """Describe what a list for shards holds: tuples that JSON can write, each with a name."""

    @property
    def name(self) -> str:
        """Name the item in reports, such as a path."""


class Noted(NamedTuple):
    """Hold a record and what is odd about its source, though it is used; a record without such is given alone."""

    record: Record
    notes: tuple[str, ...]


class Split(NamedTuple):
    """Stand for the record of an item that is stored in parts, each converted as an item of its own."""

    parts: tuple[PlannedItem, ...]


# What an item became.
Result = Record | Noted | Split | DataError


class ItemSpec(Protocol):
    """Describe how items become records: a dataclass that JSON can write and processes can share.

    Its `kind` names the records it makes ('video', 'image' or 'trajectory').
    """

    kind: str

    def convert(self, item: PlannedItem) -> Record | Noted | Split:
        """Make the record of one item, a function of the item and this spec only.

        Raises:
            DataError: the item cannot be used; it is counted and left out.
        """


def convert_all(
    items: Sequence[PlannedItem], spec: ItemSpec, workers: int, ahead: int = AHEAD
) -> Iterator[tuple[PlannedItem, Result]]:
    """Convert items in order, some ahead of the one that is asked for.

    Args:
        items: what to convert.
        spec: how.
        workers: processes; 0 converts in this one.
        ahead: items given to the pool at a time, per worker. While one that takes long is waited for,
            results of others wait in memory: so many at least, and more while they are small.

    Yields:
        Every item with what it became: for one that was split first the `Split`, then its parts;
        or the DataError that says why there is no record, such as 'crashed the decoder' for one
        that killed its process, or 'unexpected error'.
    """
    if not workers:
        yield from convert_here(items, spec)
        return
    line = _Line(items, spec, workers, ahead)
    try:
        while (found := line.next()) is not None:
            yield found
    finally:
        line.close()


def convert_here(items: Iterable[PlannedItem], spec: ItemSpec) -> Iterator[tuple[PlannedItem, Result]]:
    """Convert items in this process; as `convert_all`."""
    for item in items:
        result = convert(item, spec)
        yield item, result
        if isinstance(result, Split):
            yield from convert_here(result.parts, spec)


def convert(item: PlannedItem, spec: ItemSpec) -> Result:
    """Make the record of one item, or return the reason why there is none.

    Args:
        item: what to convert.
        spec: how.

    Returns:
        What it became; a DataError is returned, not raised: one bad item is no failure.
    """
    if isinstance(item, Rejected):
        return DataError(item.reason, item.message)
    try:
        return spec.convert(item)
    except DataError as error:
        return error
    # Damage that no check foresees must not end a run of days.
    except _UNEXPECTED as error:
        return DataError("unexpected error", f"{item.name}: {type(error).__name__}: {error}")


class _Place:
    """Hold the place of one item in the line."""

    def __init__(self, item: PlannedItem):
        self.item = item
        self.future: Future | None = None
        # Bytes of the result while it waits.
        self.size = 0
        self.taken = False


class _Line:
    """Give items to a pool of processes and their results back in order."""

    def __init__(self, items: Sequence[PlannedItem], spec: ItemSpec, workers: int, ahead: int):
        self._spec, self._workers, self._ahead = spec, workers, workers * ahead
        self._items, self._exhausted = iter(items), False
        # In the order of results; places of parts that were not submitted yet; how much is going on.
        self._line: deque[_Place] = deque()
        self._parts: deque[_Place] = deque()
        self._changed = threading.Condition()
        self._unfinished = self._submitted = self._bytes = 0
        self._pool = _pool(workers)

    def next(self) -> tuple[PlannedItem, Result] | None:
        self._submit()
        if not self._line:
            return None
        place = self._line[0]
        while not place.future.done():
            with self._changed:
                self._changed.wait_for(lambda: place.future.done() or (self._has_room() and not self._exhausted))
            self._submit()
        self._line.popleft()
        result = self._result(place)
        with self._changed:
            self._submitted -= 1
            self._bytes -= place.size
            place.taken = True
        if isinstance(result, Split):
            self._parts.extend(map(_Place, result.parts))
            self._line.extendleft(reversed(self._parts))
        return place.item, result

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _has_room(self) -> bool:
        few = self._submitted < self._ahead
        return self._unfinished < self._ahead and (few or self._bytes < _MAX_WAITING)

    def _submit(self) -> None:
        """Give the pool what there is room for; the item that is waited for always goes."""
        while True:
            if self._line and self._line[0].future is None:
                self._start(self._parts.popleft())
            elif not self._has_room():
                return
            elif self._parts:
                self._start(self._parts.popleft())
            else:
                place = next(map(_Place, itertools.islice(self._items, 1)), None)
                if place is None:
                    self._exhausted = True
                    return
                self._line.append(place)
                self._start(place)

    def _start(self, place: _Place) -> None:
        with self._changed:
            self._unfinished += 1
            self._submitted += place.future is None
        try:
            place.future = self._pool.submit(convert, place.item, self._spec)
        except BrokenProcessPool as error:
            place.future = Future()
            place.future.set_exception(error)
        place.future.add_done_callback(lambda future: self._finished(place, future))

    def _finished(self, place: _Place, future: Future) -> None:
        failed = future.cancelled() or future.exception() is not None
        size = 0 if failed else _num_bytes(future.result())
        with self._changed:
            self._unfinished -= 1
            if not place.taken:
                self._bytes += size
                place.size = size
            self._changed.notify_all()

    def _result(self, place: _Place) -> Result:
        try:
            return place.future.result()
        except BrokenProcessPool:
            # One file crashed its worker and took the pool with it: find out which.
            self.close()
            self._pool = _pool(self._workers)
            result = _convert_alone(place.item, self._spec)
            for other in self._line:
                if other.future is not None and not _succeeded(other.future):
                    self._start(other)
            return result


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=prepare_worker)


def _succeeded(future: Future) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _num_bytes(value: Any) -> int:
    """Say how much memory the large parts of a result take, bytes."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, tuple):
        return sum(map(_num_bytes, value))
    if isinstance(value, Mapping):
        return sum(map(_num_bytes, value.values()))
    return getattr(value, "nbytes", 0)


def _convert_alone(item: PlannedItem, spec: ItemSpec) -> Result:
    with _pool(1) as pool:
        try:
            return pool.submit(convert, item, spec).result()
        except BrokenProcessPool:
            return DataError("crashed the decoder", f"{item.name}: the process that decoded it was killed or crashed")
