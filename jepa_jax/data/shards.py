"""Write shards of prepared files: in parallel, whole shards only, the same bytes every time."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import av
import cv2
from array_record.python import array_record_module

from jepa_jax.data import remote
from jepa_jax.data.conversion import AHEAD, ItemSpec, PlannedItem, convert, convert_all
from jepa_jax.data.errors import DataError
from jepa_jax.data.publish import PARTIAL, new_file, read_json, remove, write_json
from jepa_jax.data.records import WRITER_OPTIONS, Record, encode_record, schema_version, shard_name

# An item, and its record or why there is none.
Results = Iterator[tuple[PlannedItem, Record | DataError]]
# Requests at a time, while it is found out which shards of a remote folder are finished.
_MAX_REQUESTS = 32


class ShardError(Exception):
    """Say why shards cannot be written, and what to do."""


@dataclass(frozen=True)
class ShardPlan:
    """Say what goes into which shard.

    Args:
        folder: where the shards go, a path or URL; of a URL, one shard at a time is made
            in the folder for temporary files of this host.
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
        features: frames whose features are stored, over all views of trajectories.
        skips: [name, reason, message] of every item left out.
        rates: records by frames per second, rounded to 0.01.
        notes: records by what is odd about them, though they are used.
    """

    written: int = 0
    seconds: float = 0.0
    bytes: int = 0
    features: int = 0
    skips: list[list[str]] = field(default_factory=list)
    rates: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def count(self, record: Record) -> None:
        """Add one written record."""
        self.written += 1
        self.seconds += record.seconds
        self.features += record.num_features
        if record.fps:
            _add_counts(self.rates, {f"{record.fps:.2f}".rstrip("0").rstrip("."): 1})
        _add_counts(self.notes, dict.fromkeys(record.notes, 1))

    def add(self, other: ShardReport) -> None:
        """Add another report to this one."""
        self.written += other.written
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
            an accelerator. An error other than a DataError it must not raise as OSError or
            RuntimeError, which are taken for those of writing.
        ahead: as in `convert_all`.

    Returns:
        The counts over all shards, those of earlier runs included.

    Raises:
        ShardError: the folder holds shards of another list or other settings, or
            a shard cannot be written (full disk).
        UrlError, DataError: the folder is remote and cannot be used.
    """
    total, todo, count = begin(items, plan, overwrite=overwrite, on_item=on_item)
    waiting = [item for _, part in todo for item in part]
    results = finish(convert_all(waiting, plan.spec, min(workers, len(waiting)), ahead))
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
        UrlError, DataError: the folder is remote and cannot be used.
    """
    for leftover in remote.glob(_pattern(plan, PARTIAL)):
        remove(leftover)
    count = -(-len(items) // plan.per_shard)
    _claim_folder(items, plan, count, overwrite)
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
    results = ((item, convert(item, plan.spec)) for item in part)
    return _write_shard(plan, index, count, results, lambda items, skipped: None)


def _write_shard(plan, index, count, results, on_item) -> ShardReport:
    """Write one shard from (item, record or error) pairs, then its report, then give it its name."""
    final = os.path.join(plan.folder, shard_name(plan.name, index, count))
    report = ShardReport()
    try:
        with new_file(final) as partial:
            writer = array_record_module.ArrayRecordWriter(partial, WRITER_OPTIONS)
            for item, result in results:
                if isinstance(result, DataError):
                    report.skips.append([item.name, result.reason, str(result)])
                else:
                    writer.write(encode_record(result))
                    report.count(result)
                on_item(1, int(isinstance(result, DataError)))
            writer.close()
            report.bytes = os.path.getsize(partial)
            # The report first: a shard under its final name always has one.
            write_json(_report_path(plan, index), asdict(report))
    # ArrayRecord reports a full disk as a RuntimeError, the system as an OSError.
    except (RuntimeError, OSError) as error:
        raise ShardError(
            f"cannot write {final}: {error}. Finished shards are kept: free some space (or choose another --output) "
            "and run the same command again"
        ) from error
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
    stale = remote.glob(_pattern(plan, "-of-*.array_record"))
    if before is None and stale and not overwrite:
        raise ShardError(
            f"{plan.folder} holds {len(stale)} {plan.name!r} shards but no {os.path.basename(path)}, so it cannot be "
            "told what they are. Give another --output or --name, or --overwrite to replace them"
        )
    if overwrite:
        for file in stale:
            remove(file)
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
    size = remote.size(os.path.join(plan.folder, shard_name(plan.name, index, count)))
    stored = None if size is None else read_json(_report_path(plan, index))
    return ShardReport(**stored) if stored is not None and stored["bytes"] == size else None


def _report_path(plan: ShardPlan, index: int) -> str:
    return os.path.join(plan.folder, f".{plan.name}-reports", f"{index:05d}.json")


def _pattern(plan: ShardPlan, ending: str) -> str:
    return os.path.join(glob.escape(plan.folder), f"{glob.escape(plan.name)}-*{ending}")


def skip_counts(report: ShardReport) -> dict[str, int]:
    """Count the skipped items of a report by reason, most frequent first."""
    return dict(Counter(reason for _, reason, _ in report.skips).most_common())
