"""Records in shards: the schema of clips, the bytes of all kinds, and random access to them.

A shard is an ArrayRecord file written with one record per chunk, so that a
damaged byte costs one record. Robot trajectories are described in `trajectories`;
shards of their features in `divided`; a clip is a msgpack map:

    version      int    schema version, SCHEMA_VERSION
    kind         str    'video' (H.264 in mp4) or 'image' (jpeg, or a small file as it was: png, webp, bmp, tiff, ppm)
    data         bytes  the encoded file
    fps          float  frames per second; 0.0 for an image
    num_frames   int    frames in `data`; 1 for an image
    height,width int    pixels, as decoded
    source_id    str    path or name the clip was made from
    label        int or nil
"""

from __future__ import annotations

import functools
import glob
import math
import os
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, repeat
from typing import NamedTuple

import msgpack
from array_record.python import array_record_module

from jepa_jax.data import divided, remote, trajectories
from jepa_jax.data.copies import DEFAULT_CACHE, FileCache
from jepa_jax.data.errors import DataError, RecordError
from jepa_jax.data.trajectories import TrajectoryRecord

SCHEMA_VERSION = 1
KINDS = ("video", "image")
# One record per chunk; the payload is already compressed video.
WRITER_OPTIONS = "group_size:1,uncompressed"
SUFFIX = ".array_record"
_SHARD_NAME = re.compile(r"^(?P<name>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>(\.frames)?\.array_record)$")
# Open files kept per process: a large data set has more shards than a process may open.
_MAX_OPEN = 256
# Remote shards whose ends are read at the same time.
_MAX_REQUESTS = 16
_WANTED = ("clip", trajectories.KIND, "any")
# What the values of a clip's fields have to be.
_TYPES = {
    "kind": str, "data": bytes, "fps": (int, float), "num_frames": int, "height": int, "width": int, "source_id": str,
    "label": (int, type(None)),
}  # fmt: skip


class ClipRecord(NamedTuple):
    """Hold one encoded clip; the module docstring explains the fields."""

    kind: str
    data: bytes
    fps: float
    num_frames: int
    height: int
    width: int
    source_id: str
    label: int | None = None

    @property
    def seconds(self) -> float:
        """Return how long the clip lasts; 0.0 for an image."""
        return self.num_frames / self.fps if self.fps else 0.0

    @property
    def num_features(self) -> int:
        """Count the frames whose features are stored: none."""
        return 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what is odd about the clip: nothing that is known."""
        return ()


Record = ClipRecord | TrajectoryRecord


def schema_version(kind: str) -> int:
    """Return the schema version of records of a kind."""
    return trajectories.SCHEMA_VERSION if kind == trajectories.KIND else SCHEMA_VERSION


def encode_record(record: Record) -> bytes:
    """Serialise a record.

    Args:
        record: a clip, its `kind` one of KINDS, or a trajectory.

    Returns:
        msgpack bytes with a 'version' key.

    Raises:
        RecordError: the kind is unknown, or the parts of a trajectory do not fit together.
    """
    if isinstance(record, TrajectoryRecord):
        return msgpack.packb(trajectories.to_fields(record))
    if record.kind not in KINDS:
        raise RecordError(f"record kind is {record.kind!r}; allowed: {', '.join(KINDS)}")
    return msgpack.packb({"version": SCHEMA_VERSION, **record._asdict()})


def decode_record(payload: bytes) -> Record:
    """Read a record back.

    Args:
        payload: bytes made by `encode_record`.

    Returns:
        The record.

    Raises:
        RecordError: not msgpack, another schema version, an unknown kind, a
            missing field, one of the wrong type, or parts of a trajectory that do not fit together.
    """
    try:
        fields = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException) as error:
        raise RecordError(f"record of {len(payload)} bytes is not msgpack: {error}") from error
    if not isinstance(fields, dict):
        raise RecordError(f"record holds a {type(fields).__name__}, expected a map with a 'version' key")
    if fields.get("kind") == trajectories.KIND:
        return trajectories.from_fields(fields)
    version = fields.pop("version", None)
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"record has schema version {version!r}; this code reads version {SCHEMA_VERSION}: "
            "make the shards again with `python -m jepa_jax.prepare`"
        )
    if set(fields) != set(ClipRecord._fields):
        raise RecordError(f"record has fields {sorted(fields)}, expected {sorted(ClipRecord._fields)}")
    record = ClipRecord(**fields)
    for name, value in fields.items():
        if not isinstance(value, _TYPES[name]):
            raise RecordError(f"field {name!r} of a record is of type {type(value).__name__}")
    if record.kind not in KINDS:
        raise RecordError(f"record kind is {record.kind!r}; allowed: {', '.join(KINDS)}")
    numbers = record.fps, record.num_frames, record.height, record.width
    if not (0 <= record.fps < math.inf and min(numbers) >= 0):
        raise RecordError(f"fps, num_frames, height, width of a record are {numbers}; none may be negative or endless")
    return record


def as_clip(record: TrajectoryRecord, view: int = 0) -> ClipRecord:
    """Take one view of a trajectory as a plain video at its true rate.

    Raises:
        DataError: 'no frames', where features replace them.
    """
    shown = record.views[view]
    if not shown.data:
        raise DataError("no frames", f"{record.source_id}: view {shown.name!r} holds features instead of frames")
    return ClipRecord(
        "video", shown.data, record.control_rate, record.num_frames, shown.height, shown.width, record.source_id
    )


def shard_name(name: str, index: int, count: int, suffix: str = SUFFIX) -> str:
    """Name shard `index` of `count`, e.g. clips-00003-of-00017.array_record."""
    return f"{name}-{index:05d}-of-{count:05d}{suffix}"


def resolve_shards(paths: Sequence[str], made_by: str = "videos") -> list[str]:
    """Find the shard files behind directories, globs and file names.

    Args:
        paths: each a directory (all shards directly in it), a glob, or a file; on
            this host or behind a URL, as in `remote`.
        made_by: the command of `prepare` that makes them, for messages.

    Returns:
        Sorted distinct file names per entry of `paths`, in the order of `paths`.

    Raises:
        FileNotFoundError: an entry has no shards, or a set NAME-*-of-N lacks some.
        ValueError, DataError: as in `remote.glob`.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError(f"shard paths must be a sequence of strings, got the single {paths!r}")
    found: dict[str, None] = {}
    for path in paths:
        matches = _match(os.fspath(path))
        if not matches:
            raise FileNotFoundError(
                f"no shards found at {path!r} (looked for *{SUFFIX}); make them with "
                f"`python -m jepa_jax.prepare {made_by} SRC --output DIR`"
            )
        _check_complete(matches)
        found.update(dict.fromkeys(matches))
    if not found:
        raise FileNotFoundError("no shard paths given; make shards with `python -m jepa_jax.prepare`")
    return list(found)


def _match(path: str) -> list[str]:
    if remote.is_folder(path):
        return remote.glob(os.path.join(glob.escape(path), f"*{SUFFIX}"))
    if remote.is_file(path):
        return [path]
    return [name for name in remote.glob(path) if name.endswith(SUFFIX)]


def _check_complete(files: Sequence[str]) -> None:
    """Raise if a set is missing shards on disk; a glob may choose a part of a set."""
    sets = {}
    for file in files:
        if match := _SHARD_NAME.match(os.path.basename(file)):
            sets[os.path.dirname(file), match["name"], int(match["count"]), match["suffix"]] = True
    for folder, name, count, suffix in sets:
        expected = [os.path.join(folder, shard_name(name, i, count, suffix)) for i in range(count)]
        absent = set(expected).difference(files)
        missing = [os.path.basename(file) for file in sorted(absent) if not remote.is_file(file)]
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise FileNotFoundError(
                f"{len(missing)} of {count} shards of {name!r} are missing in {folder or '.'!r}: {shown}; "
                "copy them there, or run the same `python -m jepa_jax.prepare` command again to finish them"
            )


class _Opened(NamedTuple):
    """Hold a reader and the name of the local file that it reads."""

    reader: array_record_module.ArrayRecordReader
    file: str


def _open(path: str, cache: FileCache) -> _Opened:
    with cache.open_path(path) as file:
        reader = _reader_of(file)
        if not reader.ok():
            raise DataError(
                "unreadable shard",
                f"{path} ({os.path.getsize(file)} bytes) is not a readable ArrayRecord file: it is cut short or its "
                "index is damaged; delete it and run the same `python -m jepa_jax.prepare` command again",
            )
        return _Opened(reader, file)


def _reader_of(file: str) -> array_record_module.ArrayRecordReader:
    return array_record_module.ArrayRecordReader(file, "readahead_buffer_size:0")


def count_records(path: str, cache: FileCache = DEFAULT_CACHE) -> int:
    """Count the clips or trajectories of an ArrayRecord file; of a remote one only the end is fetched.

    Raises:
        FileNotFoundError, DataError: as in `FileCache.open_path`, or 'unreadable shard'.
    """
    return len(_record_numbers(path, cache))


def _record_numbers(path: str, cache: FileCache) -> Sequence[int]:
    """Say at which numbers of a file its clips or trajectories are; as `count_records`."""
    if remote.is_remote(path):
        with cache.open_tail(path) as file:
            reader = _reader_of(file)
            if reader.ok() and (numbers := _listed(path, reader)) is not None:
                return numbers
    # The index of a shard of very many records is longer than its tail.
    numbers = _listed(path, _open(path, cache).reader)
    if numbers is None:
        raise DataError("unreadable shard", f"{path}: its last record, which lists its trajectories, is damaged; delete "
                        "the file and run the same `python -m jepa_jax.prepare features` command again")
    return numbers


def _listed(path: str, reader: array_record_module.ArrayRecordReader) -> Sequence[int] | None:
    count = reader.num_records()
    if not divided.is_divided(path):
        return range(count)
    try:
        return divided.unpack_index(reader.read([count - 1])[0], count)
    except (RuntimeError, RecordError):
        return None


class ShardSource:
    """Give random access to the records of a list of shards.

    Files are opened when first read, once per process, so a source can be
    pickled to workers; reading is safe from several threads.

    Args:
        paths: as in `resolve_shards`.
        kind: what is wanted: 'clip' (a trajectory is then the video of its first
            view), 'trajectory' or 'any'.
        cache: where copies of remote shards are kept.
        made_by: as in `resolve_shards`.

    Raises:
        ValueError: another kind.
        FileNotFoundError, DataError: as in `resolve_shards`; a shard is unreadable.
    """

    def __init__(self, paths: Sequence[str], kind: str = "clip", cache: FileCache = DEFAULT_CACHE, made_by: str = "videos"):
        if kind not in _WANTED:
            raise ValueError(f"kind of records is {kind!r}; allowed: {', '.join(_WANTED)}")
        self._kind, self._cache = kind, cache
        self._files = resolve_shards(paths, made_by)
        with ThreadPoolExecutor(_MAX_REQUESTS) as pool:
            self._numbers = list(pool.map(_record_numbers, self._files, repeat(cache)))
        self._ends = list(accumulate(map(len, self._numbers)))
        self._reset()

    def _reset(self) -> None:
        self._readers: OrderedDict[int, _Opened] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self):
        return {"files": self._files, "numbers": self._numbers, "kind": self._kind, "cache": self._cache}

    def __setstate__(self, state):
        self._files, self._numbers = state["files"], state["numbers"]
        self._ends = list(accumulate(map(len, self._numbers)))
        self._kind, self._cache = state["kind"], state["cache"]
        self._reset()

    @property
    def files(self) -> tuple[str, ...]:
        """Shard file names, in record order."""
        return tuple(self._files)

    def __len__(self) -> int:
        return self._ends[-1]

    def _place(self, index: int) -> tuple[int, int]:
        """Turn a record index into (shard number, record number in that shard)."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def locate(self, index: int) -> str:
        """Name where record `index` lies, as 'file#record'."""
        shard, record = self._place(index)
        return f"{self._files[shard]}#{record}"

    def __getitem__(self, index: int) -> Record:
        """Read record `index`.

        Raises:
            DataError: the stored bytes fail their checksum or are no record, a remote
                shard cannot be fetched, or a clip lies where trajectories are wanted.
        """
        shard, place = self._place(index)
        (payload,) = self._read(shard, self.locate(index), [int(self._numbers[shard][place])])
        try:
            record = decode_record(payload)
        except RecordError as error:
            raise DataError("corrupt record", f"{self.locate(index)}: {error}") from error
        if isinstance(record, TrajectoryRecord):
            record = divided.find_frames(record, functools.partial(self._read, shard, self.locate(index)))
        if self._kind == "clip" and isinstance(record, TrajectoryRecord):
            return as_clip(record)
        if self._kind == trajectories.KIND and isinstance(record, ClipRecord):
            raise DataError(
                "not a trajectory",
                f"{self.locate(index)} is a clip of kind {record.kind!r}, but robot trajectories are wanted here: give "
                "shards made by `python -m jepa_jax.prepare droid`, `rlds` or `lerobot`",
            )
        return record

    def _read(self, shard: int, name: str, numbers: Sequence[int]) -> list[bytes]:
        try:
            return self._reader(shard).read(numbers)
        except FileNotFoundError as error:
            raise DataError("lost shard", f"{name}: {error}") from error
        # ArrayRecord reports every kind of damage as a RuntimeError.
        except RuntimeError as error:
            raise DataError("corrupt record", f"{name} cannot be read: {error}") from error

    def _reader(self, shard: int) -> array_record_module.ArrayRecordReader:
        with self._lock:
            if shard in self._readers:
                self._readers.move_to_end(shard)
                return self._readers[shard].reader
        # Outside of the lock: fetching a remote shard takes long, and other threads have theirs.
        opened = _open(self._files[shard], self._cache)
        with self._lock:
            if remote.is_remote(self._files[shard]):
                # An evicted copy takes room on the disk for as long as somebody has it open.
                for other in [n for n, held in self._readers.items() if not os.path.exists(held.file)]:
                    del self._readers[other]
            self._readers[shard] = opened
            if len(self._readers) > _MAX_OPEN:
                # Dropped, not closed: another thread may still be reading from it.
                self._readers.popitem(last=False)
        return opened.reader
