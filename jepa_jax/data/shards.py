"""Write shards of prepared files: in parallel, whole shards only, the same bytes every time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from array_record.python import array_record_module

from jepa_jax.data import divided, remote
from jepa_jax.data.claims import ShardPlan, claim_folder, claimed, settle, writing
from jepa_jax.data.conversion import (
    AHEAD,
    Noted,
    PlannedItem,
    Result,
    Split,
    convert_all,
    convert_here,
)
from jepa_jax.data.errors import DataError
from jepa_jax.data.publish import new_file, read_json, write_json
from jepa_jax.data.records import WRITER_OPTIONS, Record, encode_record

# As `conversion.convert_all` yields them.
Results = Iterator[tuple[PlannedItem, Result]]
# Requests at a time, while it is found out which shards of a remote folder are finished.
_MAX_REQUESTS = 32


@dataclass
class ShardReport:
    """Count what one shard, or all of them, hold and lack.

    Args:
        written: records.
        split: items that are stored in parts.
        parts: into which they were divided, skipped ones too.
        seconds: of video.
        bytes: of shard files.
        features: frames whose features are stored, over all views of trajectories.
        skips: [name, reason, message] of every item left out.
        rates: records by frames per second, rounded to 0.01.
        notes: records by what is odd about them, though they are used.
    """

    written: int = 0
    split: int = 0
    parts: int = 0
    seconds: float = 0.0
    bytes: int = 0
    features: int = 0
    skips: list[list[str]] = field(default_factory=list)
    rates: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """Count the items of the list that were dealt with."""
        return self.written + len(self.skips) + self.split - self.parts

    def count(self, record: Record, notes: Sequence[str] = ()) -> None:
        """Add one written record and what was noted while it was made."""
        self.written += 1
        self.seconds += record.seconds
        self.features += record.num_features
        if record.fps:
            _add_counts(self.rates, {f"{record.fps:.2f}".rstrip("0").rstrip("."): 1})
        _add_counts(self.notes, dict.fromkeys((*record.notes, *notes), 1))

    def add(self, other: ShardReport) -> None:
        """Add another report to this one."""
        self.written += other.written
        self.split += other.split
        self.parts += other.parts
        self.seconds += other.seconds
        self.bytes += other.bytes
        self.features += other.features
        self.skips += other.skips
        _add_counts(self.rates, other.rates)
        _add_counts(self.notes, other.notes)


def _add_counts(total: dict[str, int], more: dict[str, int]) -> None:
    for key, count in more.items():
        total[key] = total.get(key, 0) + count


def write_shards(
    items: Sequence[PlannedItem],
    plan: ShardPlan,
    *,
    workers: int,
    overwrite: bool = False,
    on_item: Callable[[int, int], None] = lambda items, skipped: None,
    finish: Callable[[Results], Results] = lambda results: results,
    ahead: int = AHEAD,
) -> ShardReport:
    """Write all shards of a list that are not yet there.

    A finished shard appears under its name in one step and is never written
    again, so a run that was killed goes on when it is started once more.

    Args:
        items: what to store, in that order.
        plan: the folder, the names and the form.
        workers: processes that convert items; 0 converts in this one.
        overwrite: remove the shards of that name and begin again.
        on_item: called with (items, skipped of them) as they are done.
        finish: turns what the workers made into records, in this process and in order: what needs
            an accelerator. A `Split` it must pass on.
        ahead: as in `convert_all`.

    Returns:
        The counts over all shards, those of earlier runs included.

    Raises:
        ShardError: the folder holds shards of another list or other settings, another run
            writes to it, or a shard cannot be written (full disk).
        UrlError, DataError: the folder is remote and cannot be used.
    """
    with claimed(plan):
        total, todo, count = begin(items, plan, overwrite=overwrite, on_item=on_item)
        waiting = [item for _, part in todo for item in part]
        with contextlib.closing(convert_all(waiting, plan.spec, min(workers, len(waiting)), ahead)) as converted:
            results = finish(converted)
            for index, part in todo:
                total.add(_write_shard(plan, index, count, results, len(part), on_item))
        settle(plan)
    total.skips.sort()
    return total


def begin(
    items: Sequence[PlannedItem],
    plan: ShardPlan,
    *,
    overwrite: bool = False,
    on_item: Callable[[int, int], None] = lambda items, skipped: None,
) -> tuple[ShardReport, list[tuple[int, Sequence[PlannedItem]]], int]:
    """Note the list in a folder and find out what is left to write; to be used inside `claims.claimed`.

    Args:
        items, plan, overwrite, on_item: as in `write_shards`.

    Returns:
        The counts of the finished shards, (number, items) of each other shard, and
        how many shards there are in all.

    Raises:
        ShardError: the folder holds shards of another list or other settings.
        UrlError, DataError: the folder is remote and cannot be used.
    """
    count = -(-len(items) // plan.per_shard)
    with writing(plan.folder):
        claim_folder(items, plan, count, overwrite)
    total, todo = ShardReport(), []
    with ThreadPoolExecutor(_MAX_REQUESTS) as pool:
        finished = list(pool.map(lambda index: _finished(plan, index, count), range(count)))
    for index, done in enumerate(finished):
        part = items[index * plan.per_shard : (index + 1) * plan.per_shard]
        if done:
            total.add(done)
            on_item(len(part), len(done.skips))
        else:
            todo.append((index, part))
    return total, todo, count


def write_one(part: Sequence[PlannedItem], plan: ShardPlan, index: int, count: int) -> ShardReport:
    """Write one shard of a folder that `begin` claimed, converting its items in this process.

    Args:
        part: the items of this shard.
        plan: as in `write_shards`.
        index, count: which shard of how many.

    Returns:
        Its counts.

    Raises:
        ShardError: it cannot be written.
    """
    results = convert_here(part, plan.spec)
    return _write_shard(plan, index, count, results, len(part), lambda items, skipped: None)


def _write_shard(plan, index, count, results, items, on_item) -> ShardReport:
    """Write one shard from the results of so many items, then its report, then give it its name."""
    final = plan.shard(index, count)
    report = ShardReport()
    parts = 0
    with contextlib.ExitStack() as stack:
        # What goes wrong in a source is no failure of writing.
        with writing(final):
            partial = stack.enter_context(new_file(final))
            writer = _Writer(partial, plan.divided)
        while items or parts:
            item, result = next(results)
            done = int(not parts)
            items, parts = (items, parts - 1) if parts else (items - 1, 0)
            if isinstance(result, Split):
                # Their results follow at once.
                parts = len(result.parts)
                if parts > 1:
                    report.split += 1
                    report.parts += parts
            elif isinstance(result, DataError):
                report.skips.append([item.name, result.reason, str(result)])
            else:
                record, notes = result if isinstance(result, Noted) else (result, ())
                payloads = writer.encode(record)
                with writing(final):
                    writer.write(payloads)
                report.count(record, notes)
            on_item(done, int(isinstance(result, DataError)))
        with writing(final):
            writer.close()
            report.bytes = os.path.getsize(partial)
            # The report first: a shard under its final name always has one.
            write_json(_report_path(plan, index), asdict(report))
            stack.close()
    return report


class _Writer:
    """Write records to a file; with `divided`, their frames before them and an index at the end."""

    def __init__(self, path: str, divide: bool):
        self._writer = array_record_module.ArrayRecordWriter(path, WRITER_OPTIONS)
        self._divide, self._count = divide, 0
        self._numbers: list[int] = []

    def encode(self, record: Record) -> list[bytes]:
        """Return what is to be written next of a record; damage in it is no failure of writing."""
        frames = []
        if self._divide:
            frames, record = divided.split_frames(record, self._count)
        self._numbers.append(self._count + len(frames))
        return [*frames, encode_record(record)]

    def write(self, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            self._writer.write(payload)
        self._count += len(payloads)

    def close(self) -> None:
        if self._divide:
            self._writer.write(divided.pack_index(self._numbers))
        self._writer.close()


def _finished(plan: ShardPlan, index: int, count: int) -> ShardReport | None:
    """Return the report of a shard that an earlier run finished."""
    size = remote.size(plan.shard(index, count))
    stored = None if size is None else read_json(_report_path(plan, index))
    return ShardReport(**stored) if stored is not None and stored["bytes"] == size else None


def _report_path(plan: ShardPlan, index: int) -> str:
    return os.path.join(plan.state, f"{index:05d}.json")
