"""Write shards of prepared files: in parallel, whole shards only, the same bytes every time."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import av
import cv2
from array_record.python import array_record_module

from jepa_jax.data.conversion import ItemSpec, PlannedItem, convert, convert_all
from jepa_jax.data.errors import DataError
from jepa_jax.data.records import WRITER_OPTIONS, Record, encode_record, schema_version, shard_name

_TMP = ".tmp"


class ShardError(Exception):
    """Say why shards cannot be written, and what to do."""


@dataclass(frozen=True)
class ShardPlan:
    """Say what goes into which shard.

    Args:
        folder: where the shards go.
        name: first part of every shard's name.
        per_shard: items per shard; skipped ones leave their shard smaller.
        spec: makes a record of each item.
    """

    folder: str
    name: str
    per_shard: int
    spec: ItemSpec


@dataclass
class ShardReport:
    """Count what one shard, or all of them, hold and lack.

    Args:
        written: records.
        seconds: of video.
        bytes: of shard files.
        skips: [name, reason, message] of every item left out.
        rates: records by frames per second, rounded to 0.01.
        notes: records by what is odd about them, though they are used.
    """

    written: int = 0
    seconds: float = 0.0
    bytes: int = 0
    skips: list[list[str]] = field(default_factory=list)
    rates: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def count(self, record: Record) -> None:
        """Add one written record."""
        self.written += 1
        self.seconds += record.seconds
        if record.fps:
            _add_counts(self.rates, {f"{record.fps:.2f}".rstrip("0").rstrip("."): 1})
        _add_counts(self.notes, dict.fromkeys(record.notes, 1))

    def add(self, other: ShardReport) -> None:
        """Add another report to this one."""
        self.written += other.written
        self.seconds += other.seconds
        self.bytes += other.bytes
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

    Returns:
        The counts over all shards, those of earlier runs included.

    Raises:
        ShardError: the folder holds shards of another list or other settings, or
            a shard cannot be written (full disk).
    """
    total, todo, count = begin(items, plan, overwrite=overwrite, on_item=on_item)
    waiting = [item for _, part in todo for item in part]
    results = convert_all(waiting, plan.spec, min(workers, len(waiting)))
    for index, part in todo:
        total.add(_write_shard(plan, index, count, itertools.islice(results, len(part)), on_item))
    total.skips.sort()
    return total


def begin(
    items: Sequence[PlannedItem],
    plan: ShardPlan,
    *,
    overwrite: bool = False,
    on_item: Callable[[int, int], None] = lambda items, skipped: None,
) -> tuple[ShardReport, list[tuple[int, Sequence[PlannedItem]]], int]:
    """Claim the folder for a list and find out what is left to write.

    Args:
        items, plan, overwrite, on_item: as in `write_shards`.

    Returns:
        The counts of the finished shards, (number, items) of each other shard, and
        how many shards there are in all.

    Raises:
        ShardError: the folder holds shards of another list or other settings.
    """
    os.makedirs(plan.folder, exist_ok=True)
    _remove_leftovers(plan)
    count = -(-len(items) // plan.per_shard)
    _claim_folder(items, plan, count, overwrite)
    total, todo = ShardReport(), []
    for index in range(count):
        part = items[index * plan.per_shard : (index + 1) * plan.per_shard]
        done = _finished(plan, index, count)
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
    results = ((item, convert(item, plan.spec)) for item in part)
    return _write_shard(plan, index, count, results, lambda items, skipped: None)


def _write_shard(plan, index, count, results, on_item) -> ShardReport:
    """Write one shard from (item, record or error) pairs, then its report, then give it its name."""
    final = os.path.join(plan.folder, shard_name(plan.name, index, count))
    partial = _partial(final)
    report = ShardReport()
    try:
        writer = array_record_module.ArrayRecordWriter(partial, WRITER_OPTIONS)
        for item, result in results:
            if isinstance(result, DataError):
                report.skips.append([item.name, result.reason, str(result)])
            else:
                writer.write(encode_record(result))
                report.count(result)
            on_item(1, int(isinstance(result, DataError)))
        writer.close()
        _sync(partial)
    # ArrayRecord reports a full disk as a RuntimeError, the system as an OSError.
    except (RuntimeError, OSError) as error:
        raise ShardError(
            f"cannot write {final}: {error}. Finished shards are kept: free some space (or choose another --output) "
            "and run the same command again"
        ) from error
    report.bytes = os.path.getsize(partial)
    # The report first: a shard under its final name always has one.
    write_json(_report_path(plan, index), asdict(report))
    os.replace(partial, final)
    _sync(plan.folder)
    return report


def _claim_folder(items: Sequence[PlannedItem], plan: ShardPlan, count: int, overwrite: bool) -> None:
    """Note the list and settings in the folder, or check that they are those noted."""
    digest = hashlib.sha256(json.dumps(items).encode()).hexdigest()
    manifest = {
        "schema_version": schema_version(plan.spec.kind),
        "kind": plan.spec.kind,
        "items": len(items),
        "items_sha256": digest,
        "per_shard": plan.per_shard,
        "shards": count,
        # As it is read back: JSON turns tuples into lists.
        "spec": json.loads(json.dumps(asdict(plan.spec))),
        "encoder": f"av {av.__version__}, opencv {cv2.__version__}",
    }
    path = os.path.join(plan.folder, f"{plan.name}-manifest.json")
    before = read_json(path)
    if before is not None and before != manifest and not overwrite:
        changed = ", ".join(_differences(before, manifest))
        raise ShardError(
            f"{plan.folder} already holds {plan.name!r} shards made from another list or with other settings "
            f"({changed}). Give another --output or --name, or --overwrite to replace them"
        )
    stale = glob.glob(os.path.join(glob.escape(plan.folder), f"{glob.escape(plan.name)}-*-of-*.array_record"))
    if before is None and stale and not overwrite:
        raise ShardError(
            f"{plan.folder} holds {len(stale)} {plan.name!r} shards but no {os.path.basename(path)}, so it cannot be "
            "told what they are. Give another --output or --name, or --overwrite to replace them"
        )
    if overwrite:
        for file in stale:
            os.remove(file)
    if before != manifest:
        write_json(path, manifest)


def _differences(before: dict, after: dict, prefix: str = "") -> Iterator[str]:
    """Say which entries of two nested maps differ, and how."""
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} {old!r} -> {new!r}"


def _finished(plan: ShardPlan, index: int, count: int) -> ShardReport | None:
    """Return the report of a shard that an earlier run finished."""
    file = os.path.join(plan.folder, shard_name(plan.name, index, count))
    stored = read_json(_report_path(plan, index))
    if stored is None or not os.path.exists(file) or os.path.getsize(file) != stored["bytes"]:
        return None
    return ShardReport(**stored)


def _report_path(plan: ShardPlan, index: int) -> str:
    folder = os.path.join(plan.folder, f".{plan.name}-reports")
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, f"{index:05d}.json")


def _remove_leftovers(plan: ShardPlan) -> None:
    """Delete shards that a killed run left half written."""
    for file in glob.glob(os.path.join(glob.escape(plan.folder), f"{glob.escape(plan.name)}-*{_TMP}")):
        os.remove(file)


def skip_counts(report: ShardReport) -> dict[str, int]:
    """Count the skipped items of a report by reason, most frequent first."""
    return dict(Counter(reason for _, reason, _ in report.skips).most_common())


def read_json(path: str) -> dict | None:
    """Read a JSON file; None if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def write_json(path: str, content: dict) -> None:
    """Write a JSON file in one step, so that it is whole or not there."""
    partial = _partial(path)
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
    _sync(partial)
    os.replace(partial, path)


def _partial(path: str) -> str:
    """Name a file that becomes `path` when it is whole; a cluster may try the same shard twice at a time."""
    return f"{path}.{uuid.uuid4().hex[:8]}{_TMP}"


def _sync(path: str) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
