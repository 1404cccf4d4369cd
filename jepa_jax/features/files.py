"""Stored features: how they lie in `.npz` files and ArrayRecord shards, and how to read them.

A `.npz` file holds one video or image, for `numpy.load`:

    tokens         float [W, N, D], or [W, D] pooled by "mean", or [W, t, D] pooled by "frames";
                   with several layers [W, L, ...]
    grid           int   (t, h, w); N = t * h * w, row-major
    frame_indices  int   [W, T], native frames of every window
    times_s        float [W, T], seconds from the first frame
    fps            float sampled frames per second; 0.0 for an image
    label          int   from a CSV; -1 if there is none
    source         str   absolute path of the file
    model_sha256   str   identity of the encoder's weights
    settings       str   JSON of everything else that shaped the features

An ArrayRecord shard holds one record per window: a msgpack map of the same fields, arrays without
their first axis and as `{dtype, shape, data}`, and `window` and `windows` to count them. The windows
of a file follow each other in one shard.
"""

import os
import shutil
import zipfile
from typing import NamedTuple

import msgpack
import numpy as np
from array_record.python import array_record_module

from jepa_jax.data import remote
from jepa_jax.data.copies import local_copy
from jepa_jax.data.errors import DataError

NPZ_SUFFIX, RECORD_SUFFIX = ".npz", ".array_record"
VERSION = 1
# Folder of half-written files in an output folder.
SCRATCH = ".scratch"
_WINDOWED = ("tokens", "frame_indices", "times_s")
_COPIED = 1 << 20


class FileFeatures(NamedTuple):
    """The features of one file; the module docstring explains the fields."""

    tokens: np.ndarray
    grid: tuple[int, int, int]
    frame_indices: np.ndarray
    times_s: np.ndarray
    fps: float
    label: int
    source: str
    model_sha256: str
    settings: str


def write_npz(path, features, tokens_path):
    """Write a `.npz` file.

    Args:
      path: of the file; give a scratch path and rename, or a reader may see half of it.
      features: `FileFeatures`; its `tokens` are not looked at.
      tokens_path: a `.npy` file with the tokens; copied piece by piece, as they may not fit in memory.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("tokens.npy", "w", force_zip64=True) as target, open(tokens_path, "rb") as source:
            shutil.copyfileobj(source, target, _COPIED)
        for name, value in features._asdict().items():
            if name != "tokens":
                with archive.open(f"{name}.npy", "w") as target:
                    np.lib.format.write_array(target, np.asarray(value), allow_pickle=False)


def pack_windows(features):
    """Yield the records of a file: msgpack bytes per window."""
    fields = features._asdict()
    fields["grid"] = list(features.grid)
    for window in range(len(features.tokens)):
        row = {name: _pack(np.asarray(fields[name][window])) for name in _WINDOWED}
        yield msgpack.packb({
            "version": VERSION, "window": window, "windows": len(features.tokens), **fields, **row,
        })


def _pack(array):
    array = np.ascontiguousarray(array)
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}


def read_features(path):
    """Read stored features, of either format.

    Args:
      path: a `.npz` file, an ArrayRecord shard, or a folder of either (with folders in it); or a URL.

    Yields:
      `FileFeatures` per video or image, one in memory at a time.

    Raises:
      FileNotFoundError: if there are no features at the path.
      DataError: 'unreadable features', for a file that is damaged or something else.
    """
    path = os.fspath(path)
    if remote.is_folder(path):
        files = [
            file for file in remote.find(path, lambda name: name.endswith((NPZ_SUFFIX, RECORD_SUFFIX)))
            if os.path.basename(os.path.dirname(file)) != SCRATCH
        ]
    else:
        files = [path] if remote.is_file(path) else []
    if not files:
        raise FileNotFoundError(f"no features at {path!r}; make them with `python -m jepa_jax.embed`")
    for file in files:
        try:
            with local_copy(file) as copy:
                yield from _read_shard(copy) if file.endswith(RECORD_SUFFIX) else [_read_npz(copy)]
        # ArrayRecord reports every kind of damage as a RuntimeError.
        except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError) as error:
            raise DataError("unreadable features", f"{file} cannot be read as features: {error}") from error


def _read_npz(path):
    with np.load(path, allow_pickle=False) as stored:
        return _from_fields({name: stored[name] for name in FileFeatures._fields})


def _from_fields(fields):
    return FileFeatures(**fields | {
        "grid": tuple(int(side) for side in fields["grid"]), "fps": float(fields["fps"]), "label": int(fields["label"]),
        **{name: str(fields[name]) for name in ("source", "model_sha256", "settings")},
    })


def stored_source(path):
    """Return the source of a `.npz` file of features, or None where there is no whole one."""
    try:
        with remote.open_binary(path) as file, np.load(file, allow_pickle=False) as stored:
            return str(stored["source"]) if set(stored.files) == set(FileFeatures._fields) else None
    except (OSError, zipfile.BadZipFile, ValueError, TypeError):
        return None


def _read_shard(path):
    reader = array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0")
    try:
        rows = []
        for record in range(reader.num_records()):
            fields = msgpack.unpackb(reader.read([record])[0])
            version, window, windows = fields.pop("version"), fields.pop("window"), fields.pop("windows")
            if version != VERSION or window != len(rows):
                raise ValueError(f"record {record} has version {version} and window {window}; expected {VERSION}, {len(rows)}")
            rows.append([_unpack(fields.pop(name)) for name in _WINDOWED])
            if len(rows) == windows:
                yield _from_fields(fields | {name: np.stack(part) for name, part in zip(_WINDOWED, zip(*rows))})
                rows = []
    finally:
        reader.close()


def _unpack(packed):
    return np.frombuffer(packed["data"], packed["dtype"]).reshape(packed["shape"])
