"""The output folder: whose it is, what of it is finished, and how files are added to it."""

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile

import numpy as np
from array_record.python import array_record_module

from jepa_jax.data import publish, remote
from jepa_jax.data.publish import read_json, write_json
from jepa_jax.data.records import WRITER_OPTIONS, shard_name
from jepa_jax.data.shards import ShardReport
from jepa_jax.features import files
from jepa_jax.features.naming import PICTURE_ENDINGS

CARD = "embed.json"
_REPORTS, _SHARDS = ".reports", "features"


class OutputError(Exception):
    """Say why features cannot be written to a folder, and what to do."""


@contextlib.contextmanager
def lock_folder(folder):
    """Keep other processes out of an output folder, which is made if absent; of a URL, those of this host.

    Raises:
      OutputError: if another process is writing to it, or it is a file.
      UrlError, OSError: if it cannot be written to.
    """
    if remote.is_file(folder):
        raise OutputError(f"{folder} is a file; --output is a folder")
    publish.check_folder(folder)
    # The scratch folder itself is removed now and then.
    locked = f"{scratch_folder(folder)}.lock" if remote.is_remote(folder) else folder
    os.makedirs(locked, exist_ok=True)
    descriptor = os.open(locked, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OutputError(f"another process is writing to {folder}; wait for it, or give another --output") from error
    except OSError:
        # Some network file systems have no locks; there the user has to take care.
        pass
    try:
        yield
    finally:
        # Closing unlocks, and so does being killed.
        os.close(descriptor)


def claim_folder(folder, card, info, overwrite):
    """Note in a folder what its features are, or check that they are what is noted.

    Args:
      folder: exists; half-written files of a stopped run are removed.
      card: JSON-able dict; has to be the same for all features in a folder.
      info: JSON-able dict that is noted too but may change.
      overwrite: remove all features and pictures of features in the folder.

    Raises:
      OutputError: if the folder holds other features.
    """
    path = os.path.join(folder, CARD)
    before = read_json(path)
    if before is not None and not overwrite:
        changed = _differences(before, card)
        if changed:
            raise OutputError(
                f"{folder} already holds features made with other settings ({'; '.join(changed)}). Give another "
                "--output, or --overwrite to replace them"
            )
    shutil.rmtree(scratch_folder(folder), ignore_errors=True)
    if overwrite:
        _remove_features(folder)
    write_json(path, card | info)


def _differences(before, now, where=""):
    lines = []
    for key, value in now.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            lines += _differences(old, value, f"{where}{key}.")
        elif old != value:
            lines.append(f"{where}{key} {old!r} -> {value!r}")
    return lines


def _remove_features(folder):
    """Remove what was made here, and nothing else that lies in the folder."""
    inside = glob.escape(folder)
    ours = [os.path.join(_REPORTS, "*.json"), f"{_SHARDS}-*-of-*{files.RECORD_SUFFIX}"]
    ours += [os.path.join("**", f"*{ending}") for ending in PICTURE_ENDINGS]
    for pattern in ours:
        for path in remote.glob(os.path.join(inside, pattern)):
            publish.remove(path)
    for path in remote.glob(os.path.join(inside, "**", f"*{files.NPZ_SUFFIX}")):
        if files.stored_source(path):
            publish.remove(path)


def scratch_folder(folder):
    """Return where half-written files of an output folder lie; those of a URL, in this host's temporary folder."""
    if remote.is_remote(folder):
        return os.path.join(tempfile.gettempdir(), f"jepa_jax-{hashlib.sha256(folder.encode()).hexdigest()[:16]}")
    return os.path.join(folder, files.SCRATCH)


def move_finished(path, folder, name):
    """Give a finished file its name in the output folder, in one step."""
    publish.move(path, os.path.join(folder, name))


class WindowFile:
    """A `.npy` file that is written window by window, for arrays of any size.

    Args:
      path: of the file; its folder is made.
      num_windows: length of the first axis.
      dtype: of the stored values.
    """

    def __init__(self, path, num_windows, dtype):
        self.path = path
        self._num_windows, self._dtype, self._file = num_windows, np.dtype(dtype), None

    def append(self, window):
        """Write the next window, an array of the same shape each time."""
        if self._file is None:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self._file = open(self.path, "wb")
            np.lib.format.write_array_header_2_0(self._file, {
                "descr": self._dtype.str, "fortran_order": False, "shape": (self._num_windows, *window.shape),
            })
        self._file.write(np.ascontiguousarray(window, self._dtype).data)

    def read(self):
        """Return the whole array `[W, ...]`, which is read from the disk where it is touched."""
        self._file.close()
        return np.load(self.path, mmap_mode="r")

    def remove(self):
        """Delete the file."""
        if self._file is not None:
            self._file.close()
            os.remove(self.path)


class NpzOutput:
    """One `.npz` file per source.

    Args:
      folder: the output folder.
      entries: all files of this run.
      is_complete: entry -> whether everything beside its `.npz` file is there.

    Attributes:
      todo: entries that are not finished.
      report: `ShardReport` of all that are.

    Raises:
      OutputError: if a file of that name belongs to another source.
    """

    def __init__(self, folder, entries, is_complete):
        self._folder = folder
        self.todo, self.report = [], ShardReport()
        for entry in entries:
            path = os.path.join(folder, entry.name + files.NPZ_SUFFIX)
            source = files.stored_source(path)
            if source is not None and source != entry.path:
                raise OutputError(f"{path} holds the features of {source}, not of {entry.path}. Give another --output")
            if source is not None and is_complete(entry):
                self._count(path)
            else:
                self.todo.append(entry)

    def _count(self, path):
        self.report.written += 1
        self.report.bytes += remote.size(path)

    def add(self, entry, features, tokens_path):
        """Store the features of a file; `tokens_path` is a `.npy` file of its tokens."""
        partial = os.path.join(scratch_folder(self._folder), "features" + files.NPZ_SUFFIX)
        files.write_npz(partial, features, tokens_path)
        move_finished(partial, self._folder, entry.name + files.NPZ_SUFFIX)
        self._count(os.path.join(self._folder, entry.name + files.NPZ_SUFFIX))

    def skip(self, entry, error):
        """Note why a file has no features."""
        self.report.skips.append([entry.path, error.reason, str(error)])

    def close(self):
        """Give up what is not finished."""


class RecordOutput:
    """ArrayRecord shards of `per_shard` files each, in order; otherwise as `NpzOutput`."""

    def __init__(self, folder, entries, per_shard):
        self._folder, self._writer, self._shard = folder, None, None
        self.todo, self.report = [], ShardReport()
        self._count = -(-len(entries) // per_shard)
        # [shard, files of it that are still to come]
        self._left = []
        for index in range(self._count):
            part = entries[index * per_shard : (index + 1) * per_shard]
            stored = read_json(self._report_path(index))
            if stored and remote.size(os.path.join(folder, self._name(index))) == stored["bytes"]:
                self.report.add(ShardReport(**stored))
            else:
                self.todo += part
                self._left.append([index, len(part)])

    def _name(self, index):
        return shard_name(_SHARDS, index, self._count)

    def _report_path(self, index):
        return os.path.join(self._folder, _REPORTS, f"{index:05d}.json")

    @property
    def _partial(self):
        return os.path.join(scratch_folder(self._folder), self._name(self._left[0][0]))

    def _begin(self):
        if self._writer is None:
            os.makedirs(scratch_folder(self._folder), exist_ok=True)
            self._shard = ShardReport()
            self._writer = array_record_module.ArrayRecordWriter(self._partial, WRITER_OPTIONS)

    def _advance(self):
        self._left[0][1] -= 1
        if self._left[0][1]:
            return
        self._writer.close()
        self._writer = None
        self._shard.bytes = os.path.getsize(self._partial)
        index = self._left[0][0]
        # The report first: a shard under its final name always has one.
        write_json(self._report_path(index), dataclasses.asdict(self._shard))
        move_finished(self._partial, self._folder, self._name(index))
        self._left.pop(0)
        self.report.add(self._shard)

    def add(self, entry, features, tokens_path):
        """Store the features of the next file."""
        del entry, tokens_path
        self._begin()
        for record in files.pack_windows(features):
            self._writer.write(record)
        self._shard.written += 1
        self._advance()

    def skip(self, entry, error):
        """Note why the next file has no features; its shard will be smaller."""
        self._begin()
        self._shard.skips.append([entry.path, error.reason, str(error)])
        self._advance()

    def close(self):
        """Give up the shard that is not finished."""
        if self._writer is not None:
            self._writer.close()
