"""Folders of shards: who writes to one, from which list, and whether a later run means the same."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import gzip
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import av
import cv2

from jepa_jax.data import divided, remote
from jepa_jax.data.conversion import ItemSpec, PlannedItem
from jepa_jax.data.publish import PARTIAL, new_file, read_json, remove, write_json
from jepa_jax.data.records import SUFFIX, schema_version, shard_name

# What a system says when a disk, a quota or a file is full.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Where no lock keeps runs apart, files that nobody finished for so long are nobody's, seconds.
_ABANDONED_S = 86400.0
# Where a manifest says how far the run got that replaces all shards: 'removing' the old ones or 'writing'.
_STAGE = "overwriting"


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
        divided: frames of features are records of their own, as in `divided`.
    """

    folder: str
    name: str
    per_shard: int
    spec: ItemSpec
    divided: bool = False

    @property
    def report(self) -> str:
        """Name the report on all shards."""
        return os.path.join(self.folder, f"{self.name}-report.json")

    def shard(self, index: int, count: int) -> str:
        """Name shard `index` of `count`."""
        suffix = divided.SUFFIX if self.divided else SUFFIX
        return os.path.join(self.folder, shard_name(self.name, index, count, suffix))

    @property
    def state(self) -> str:
        """Name the folder for what only later runs want to know."""
        return os.path.join(self.folder, f".{self.name}-reports")


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Turn what goes wrong in the `with` into a ShardError that says what could not be written and what to do."""
    try:
        yield
    # ArrayRecord reports a full disk as a RuntimeError, the system as an OSError.
    except (RuntimeError, OSError) as error:
        full = getattr(error, "errno", None) in _FULL or any(os.strerror(code) in str(error) for code in _FULL)
        writable = "make it writable, or choose another --output,"
        todo = "free some space (or choose another --output)" if full else writable
        raise ShardError(
            f"cannot write {path}: {error}. Finished shards are kept: {todo} and run the same command again"
        ) from error


@contextlib.contextmanager
def claimed(plan: ShardPlan) -> Iterator[None]:
    """Keep other runs out of a folder of this host, and remove what runs that were killed left there.

    Raises:
        ShardError: another run writes shards of that name there, or the folder cannot be written to.
    """
    if remote.is_remote(plan.folder):
        _remove_leftovers(plan, 0.0)
        yield
        return
    with writing(plan.folder):
        os.makedirs(plan.state, exist_ok=True)
        lock = os.open(plan.state, os.O_RDONLY)
    try:
        # The folder itself is locked, so that no file for it stays behind.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        age = 0.0
    except BlockingIOError as error:
        os.close(lock)
        raise ShardError(
            f"another run is writing {plan.name!r} shards in {plan.folder}; wait for it, or give another --output or "
            "--name"
        ) from error
    # Some network file systems have no locks.
    except OSError:
        age = _ABANDONED_S
    try:
        with writing(plan.folder):
            _remove_leftovers(plan, age)
        yield
    finally:
        os.close(lock)


def _remove_leftovers(plan: ShardPlan, age: float) -> None:
    for leftover in remote.glob(pattern(plan, PARTIAL)):
        if not age or time.time() - os.path.getmtime(leftover) > age:
            remove(leftover)


def pattern(plan: ShardPlan, ending: str) -> str:
    """Return a glob for the files of a plan with that ending."""
    return os.path.join(glob.escape(plan.folder), f"{glob.escape(plan.name)}-*{ending}")


def claim_folder(items: Sequence[PlannedItem], plan: ShardPlan, count: int, overwrite: bool) -> None:
    """Note the list and settings in the folder, or check that they are those noted.

    Args:
        items, plan: as in `shards.write_shards`.
        count: of shards.
        overwrite: begin again. A run that began again and was stopped goes on instead.

    Raises:
        ShardError: the folder holds shards of another list or other settings.
    """
    manifest = _manifest(items, plan, count)
    path = _manifest_path(plan)
    found = read_json(path)
    stage = None if found is None else found.pop(_STAGE, None)
    if found is not None and found != manifest and not overwrite:
        changed = "; ".join(_changes(found, manifest, items, plan))
        raise ShardError(
            f"{plan.folder} already holds {plan.name!r} shards made from another list or with other settings: "
            f"{changed}. Give another --output or --name (a mixture takes several), or --overwrite to replace them"
        )
    stale = remote.glob(pattern(plan, "-of-*.array_record"))
    if found is None and stale and not overwrite:
        raise ShardError(
            f"{plan.folder} holds {len(stale)} {plan.name!r} shards but no {os.path.basename(path)}, so it cannot be "
            "told what they are. Give another --output or --name, or --overwrite to replace them"
        )
    goes_on = found == manifest and stage == "writing"
    if (overwrite and not goes_on) or stage == "removing":
        write_json(path, manifest | {_STAGE: "removing"})
        for file in [plan.report, *stale]:
            remove(file)
        _write_names(items, plan)
        write_json(path, manifest | {_STAGE: "writing"})
    elif found is None:
        _write_names(items, plan)
        write_json(path, manifest)


def settle(plan: ShardPlan) -> None:
    """Note that all shards are there, so that beginning again would mean to replace them."""
    path = _manifest_path(plan)
    found = read_json(path)
    if found is not None and found.pop(_STAGE, None):
        write_json(path, found)


def _manifest(items: Sequence[PlannedItem], plan: ShardPlan, count: int) -> dict:
    return {
        **({"divided": True} if plan.divided else {}),
        "schema_version": schema_version(plan.spec.kind),
        "kind": plan.spec.kind,
        "items": len(items),
        "items_sha256": hashlib.sha256(json.dumps(items).encode()).hexdigest(),
        "per_shard": plan.per_shard,
        "shards": count,
        # As it is read back: JSON turns tuples into lists.
        "spec": json.loads(json.dumps(asdict(plan.spec))),
        "encoder": f"av {av.__version__}, opencv {cv2.__version__}",
    }


def _manifest_path(plan: ShardPlan) -> str:
    return os.path.join(plan.folder, f"{plan.name}-manifest.json")


def _names_path(plan: ShardPlan) -> str:
    return os.path.join(plan.state, "names.gz")


def _write_names(items: Sequence[PlannedItem], plan: ShardPlan) -> None:
    # As JSON: names may hold line ends. Without a time, so that the same list gives the same bytes.
    lines = "".join(f"{json.dumps(item.name)}\n" for item in items)
    with new_file(_names_path(plan)) as partial, open(partial, "wb") as file:
        file.write(gzip.compress(lines.encode(), mtime=0))


def _changes(before: dict, after: dict, items: Sequence[PlannedItem], plan: ShardPlan) -> Iterator[str]:
    """Say in words how the list and the settings differ from those noted."""
    if before.get("items_sha256") != after["items_sha256"]:
        yield from _changed_names([item.name for item in items], plan)
    # What follows from the list need not be said.
    derived = dict.fromkeys(("items", "items_sha256", "shards"))
    yield from _differences(before | derived, after | derived)


def _changed_names(names: Sequence[str], plan: ShardPlan) -> Iterator[str]:
    try:
        with remote.open_binary(_names_path(plan)) as packed, gzip.open(packed, "rt", encoding="utf-8") as file:
            before = [json.loads(line) for line in file]
    except FileNotFoundError:
        before = []
    found = False
    for word, here, there in (("more", names, set(before)), ("fewer", before, set(names))):
        changed = [name for name in here if name not in there]
        if before and changed:
            found = True
            yield f"{len(changed)} item{'s' * (len(changed) > 1)} {word}, first {changed[0]}"
    if not found:
        yield "another list, or the same items in another order or with other labels"


def _differences(before: dict, after: dict, prefix: str = "") -> Iterator[str]:
    """Say which entries of two nested maps differ, and how."""
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} {old!r} -> {new!r}"
