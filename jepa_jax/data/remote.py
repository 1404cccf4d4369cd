"""Files behind URLs (gs://, s3://, http:// and all else that fsspec knows), and a cache of them on this host.

ArrayRecord files are read at random places by C++ code that wants local files, so a remote shard
is fetched whole when a record of it is first wanted, and kept while there is room. How many
records it has is read from its end alone, so that starting a run does not fetch every shard.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob as local_glob
import hashlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import fsspec

from jepa_jax.data.errors import DataError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# Packages that fsspec needs for a protocol, as extras of ours.
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
# What file systems call the version of a file, the surest first.
_VERSION_KEYS = ("etag", "ETag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "created")
_CLIENT_ERRORS = (("aiohttp", "ClientError"), ("gcsfs.retry", "HttpError"), ("botocore.exceptions", "BotoCoreError"))
_ATTEMPTS, _FIRST_PAUSE_S = 5, 1.0
# Another process may evict a file before we open it; this often in a row means that the cache is too small.
_EVICTED = 10
_TAIL_BYTES = 1 << 20
_GIB = 2**30

_T = TypeVar("_T")


def is_remote(path: str | os.PathLike) -> bool:
    """Tell URLs from paths of this host."""
    return bool(_URL.match(os.fspath(path))) and not os.fspath(path).startswith("file://")


def join(root: str, path: str) -> str:
    """Put a root before a path, unless the path is absolute or a URL, or the root is empty."""
    if not root or _URL.match(path) or os.path.isabs(path):
        return path
    return f"{root.rstrip('/')}/{path}"


def _file_system(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URL, and its name for the file."""
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        protocol = path.partition("://")[0]
        extra = _EXTRAS.get(protocol)
        todo = f"pip install 'jepa_jax[{extra}]'" if extra else str(error)
        raise ValueError(f"{path}: {protocol}:// needs a package that is not installed: {todo}") from error
    except ValueError as error:
        raise ValueError(f"{path}: no file system for it is known: {error}") from error


def _network_errors() -> tuple[type[BaseException], ...]:
    """List what a failed transfer may raise; the clients' own classes exist once they are in use."""
    found: list[type[BaseException]] = [OSError, EOFError]
    found += [getattr(sys.modules[module], name) for module, name in _CLIENT_ERRORS if module in sys.modules]
    return tuple(found)


def _persist(path: str, call: Callable[[], _T]) -> _T:
    """Call until it works, with growing pauses; a file that is not there is not asked for again."""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
        try:
            return call()
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise DataError("remote read refused", f"{path} may not be read: {error}") from error
        except _network_errors() as error:
            last = error
    raise DataError("remote read failed", f"{path} could not be read in {_ATTEMPTS} attempts: {last}") from last


def glob(pattern: str) -> list[str]:
    """List files whose names match, sorted; of URLs, as URLs.

    Raises:
        ValueError: the protocol is unknown or needs a package.
        DataError: 'remote read failed' or 'remote read refused'.
    """
    if not is_remote(pattern):
        return sorted(local_glob.glob(pattern))
    system, name = _file_system(pattern)
    return sorted(system.unstrip_protocol(found) for found in _persist(pattern, lambda: system.glob(name)))


def is_folder(path: str) -> bool:
    """Tell whether a path or URL is a folder; errors as in `glob`."""
    if not is_remote(path):
        return os.path.isdir(path)
    system, name = _file_system(path)
    return _persist(path, lambda: system.isdir(name))


def is_file(path: str) -> bool:
    """Tell whether a path or URL is a file; errors as in `glob`."""
    if not is_remote(path):
        return os.path.isfile(path)
    system, name = _file_system(path)
    return _persist(path, lambda: system.isfile(name))


def find(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """List the files below a remote folder whose names end so (lower case), sorted; errors as in `glob`."""
    system, name = _file_system(folder)
    found = _persist(folder, lambda: system.find(name))
    return sorted(system.unstrip_protocol(file) for file in found if file.lower().endswith(suffixes))


@contextlib.contextmanager
def temporary_copy(path: str) -> Iterator[str]:
    """Give a local copy of a remote file that is needed once; it is gone after the `with`.

    Raises:
        DataError: 'missing file', or as in `glob`.
    """
    system, name = _file_system(path)
    with tempfile.TemporaryDirectory(prefix="jepa_jax_") as folder:
        copy = os.path.join(folder, os.path.basename(name))
        try:
            _persist(path, lambda: system.get_file(name, copy))
        except FileNotFoundError as error:
            raise DataError("missing file", f"{path}: no such file") from error
        yield copy


@dataclass(frozen=True)
class FileCache:
    """Keep copies of remote files in a folder of this host, shared by all its processes.

    Args:
        directory: the folder; it is made when first used.
        max_bytes: room for copies; the least recently used ones go first.
    """

    directory: str = os.path.join("~", ".cache", "jepa_jax", "shards")
    max_bytes: int = 100 * _GIB

    @contextlib.contextmanager
    def open_path(self, path: str) -> Iterator[str]:
        """Give a local name of a file; the name is good inside the `with`, what was opened there stays good.

        Args:
            path: a local path, given back as it is, or a URL, fetched if there is no
                copy of its present version.

        Raises:
            FileNotFoundError: there is no such remote file.
            ValueError: the protocol is unknown, or the file is larger than the cache.
            DataError: as in `glob`, or 'cache too small'.
        """
        if not is_remote(path):
            yield path.removeprefix("file://")
            return
        copy, size = self._place(path)
        for _ in range(_EVICTED):
            with self._locked("cache", fcntl.LOCK_SH):
                if os.path.exists(copy):
                    os.utime(copy)
                    yield copy
                    return
            self._fetch(path, copy, size)
        raise DataError("cache too small", f"{path}: its copy was evicted {_EVICTED} times before it was opened; "
                        f"raise the size of the cache in {self.directory} above {self.max_bytes / _GIB:.3g} GiB")

    @contextlib.contextmanager
    def open_tail(self, path: str) -> Iterator[str]:
        """Give a local file as long as a remote one, holding only its last MiB; zeros stand for the rest."""
        copy, size = self._place(path)
        system, name = _file_system(path)
        start = max(0, size - _TAIL_BYTES)
        tail = _persist(path, lambda: system.cat_file(name, start=start, end=size))
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(copy), suffix=".part") as file:
            file.seek(start)
            file.write(tail)
            file.flush()
            yield file.name

    def _place(self, path: str) -> tuple[str, int]:
        """Ask for size and version of a remote file; returns where its copy belongs, and the size in bytes."""
        system, name = _file_system(path)
        try:
            info = _persist(path, lambda: system.info(name))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} does not exist") from error
        size = int(info["size"])
        if size > self.max_bytes:
            raise ValueError(f"{path} has {size} bytes, more than the {self.max_bytes} of the cache in {self.directory}")
        version = next((f"{key}={info[key]}" for key in _VERSION_KEYS if info.get(key)), "")
        folder = os.path.expanduser(self.directory)
        os.makedirs(folder, exist_ok=True)
        copy = f"{_digest(path)}-{_digest(f'{size} {version}')}-{os.path.basename(name)[-100:]}"
        return os.path.join(folder, copy), size

    def _fetch(self, path: str, copy: str, size: int) -> None:
        system, name = _file_system(path)
        part = f"{copy}.part"
        with self._locked(_digest(path), fcntl.LOCK_EX):
            if os.path.exists(copy):
                return
            self._make_room(size, f"{_digest(path)}-")
            try:
                _persist(path, lambda: _download(system, name, part, size))
                os.replace(part, copy)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(part)

    def _make_room(self, size: int, stale: str) -> None:
        """Delete older versions of a file, then whatever was not used for longest."""
        with self._locked("cache", fcntl.LOCK_EX):
            held = []
            for entry in os.scandir(os.path.expanduser(self.directory)):
                if entry.name.endswith((".lock", ".part")):
                    continue
                stat = entry.stat()
                held.append((0.0 if entry.name.startswith(stale) else stat.st_mtime, entry.path, stat.st_size))
            total = sum(length for _, _, length in held)
            for used, name, length in sorted(held):
                if used and total + size <= self.max_bytes:
                    break
                os.remove(name)
                total -= length

    @contextlib.contextmanager
    def _locked(self, name: str, kind: int) -> Iterator[None]:
        with open(os.path.join(os.path.expanduser(self.directory), f"{name}.lock"), "a") as file:
            fcntl.flock(file, kind)
            yield


DEFAULT_CACHE = FileCache()


def make_cache(directory: str, gib: float) -> FileCache:
    """Build a `FileCache` from what a config says; an empty directory means the default one.

    Raises:
        ValueError: the size is not above 0.
    """
    if not gib > 0:
        raise ValueError(f"the cache of remote files has {gib} GiB; it needs more than 0")
    return FileCache(directory or DEFAULT_CACHE.directory, int(gib * _GIB))


def _download(system: fsspec.AbstractFileSystem, name: str, part: str, size: int) -> None:
    system.get_file(name, part)
    if os.path.getsize(part) != size:
        raise EOFError(f"{os.path.getsize(part)} of {size} bytes arrived")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
