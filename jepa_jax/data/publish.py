"""Writing of files that appear whole or not at all, on this host or behind URLs.

Object stores show an object when all of it is there. Elsewhere a file is written under another name,
ending in `PARTIAL`, which a killed run may leave behind, and renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import fsspec

from jepa_jax.data import remote
from jepa_jax.data.errors import DataError
from jepa_jax.data.remote import UrlError

PARTIAL = ".tmp"
_OBJECT_STORES = {"gs", "gcs", "s3", "s3a", "az", "abfs", "memory"}
_READ_ONLY = {"http", "https"}


def check_folder(path: str) -> None:
    """Find out whether files can be written below a URL, before work starts; of this host nothing is asked.

    Raises:
        OSError: it cannot be written to.
        UrlError: the protocol is unknown, needs a package or is for reading only.
    """
    if not remote.is_remote(path):
        return
    if _protocol(path) in _READ_ONLY:
        raise UrlError(f"{path}: files behind this protocol can only be read; give a folder, gs://, s3:// or the like")
    system, name = remote.file_system(path)
    probe = _partial(os.path.join(name, ".probe"))

    def try_out() -> None:
        _make_parents(system, path, probe)
        system.pipe_file(probe, b"jepa_jax")
        system.rm_file(probe)

    # Buckets have no folders that could be made, so this is the only way to know.
    _change(path, try_out)


@contextlib.contextmanager
def new_file(path: str) -> Iterator[str]:
    """Give a local name to write to; after the `with` the file is at `path`, whole, in one step; folders are made.

    Nothing appears there if the `with` is left by an error. What was there is replaced.

    Raises:
        OSError: it cannot be stored, here or there.
        UrlError: as in `remote.glob`.
    """
    if remote.is_remote(path):
        with tempfile.TemporaryDirectory(prefix="jepa_jax_") as folder:
            local = os.path.join(folder, os.path.basename(path))
            yield local
            _upload(local, path)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
    finally:
        # A full disk should not stay so.
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)
    _sync(os.path.dirname(path) or ".")


def move(local: str, path: str) -> None:
    """Give a finished local file its place, in one step; folders are made, errors are those of `new_file`.

    Args:
        local: on the same disk as `path`, unless that is a URL.
        path: path or URL.
    """
    if remote.is_remote(path):
        _upload(local, path)
        os.remove(local)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    os.replace(local, path)


def copy(local: str, path: str) -> None:
    """Copy a finished local file to its place, in one step; errors are those of `new_file`."""
    with new_file(path) as partial:
        shutil.copyfile(local, partial)


def _upload(local: str, path: str) -> None:
    """Copy a local file to a URL; errors are those of `new_file`."""
    system, name = remote.file_system(path)
    whole = _protocol(path) in _OBJECT_STORES
    target = name if whole else _partial(name)

    def send() -> None:
        _make_parents(system, path, name)
        system.put_file(local, target)
        if not whole:
            system.mv(target, name)

    _change(path, send)


def write_json(path: str, content: Any) -> None:
    """Write a JSON file; errors are those of `new_file`."""
    with new_file(path) as local, open(local, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)


def read_json(path: str) -> Any:
    """Read a JSON file; None if there is none; errors are those of `remote.read_text`."""
    try:
        return json.loads(remote.read_text(path))
    except FileNotFoundError:
        return None


def remove(path: str) -> None:
    """Remove a file, if there is one; errors are those of `new_file`."""
    with contextlib.suppress(FileNotFoundError):
        if not remote.is_remote(path):
            os.remove(path)
            return
        system, name = remote.file_system(path)
        _change(path, lambda: system.rm_file(name))


def _change(path: str, call: Callable[[], None]) -> None:
    """Call until it works; what fails is an OSError, as it is for files of this host."""
    try:
        remote.persist(path, call, "write")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such bucket or folder: {error}") from error
    except DataError as error:
        raise OSError(str(error)) from error


def _protocol(path: str) -> str:
    return path.partition("://")[0]


def _make_parents(system: fsspec.AbstractFileSystem, path: str, name: str) -> None:
    """Make the folders of a remote file; an object store has none, and might make a bucket instead."""
    if _protocol(path) not in _OBJECT_STORES:
        system.makedirs(os.path.dirname(name), exist_ok=True)


def _partial(path: str) -> str:
    """Name a file that becomes `path` when it is whole; a cluster may try the same shard twice at a time."""
    return f"{path}.{uuid.uuid4().hex[:8]}{PARTIAL}"


def _sync(path: str) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
