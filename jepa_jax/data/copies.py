"""Local copies of files behind URLs: one for a moment, or kept in a cache that all processes of this host share.

ArrayRecord files are read at random places by C++ code that wants local files, so a remote shard
is fetched whole when a record of it is first wanted, and kept while there is room. How many
records it has is read from its end alone, so that starting a run does not fetch every shard.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec

from jepa_jax.data.errors import DataError
from jepa_jax.data.remote import UrlError, file_system, is_remote, persist

# Another process may evict a file before we open it; this often in a row means that the cache is too small.
_EVICTED = 10
_TAIL_BYTES = 1 << 20
# What file systems call the version of a file, the surest first.
_VERSION_KEYS = ("etag", "ETag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "created")
_GIB = 2**30


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
            UrlError: as in `remote.glob`, or the file is larger than the cache.
            DataError: as in `remote.glob`, or 'cache too small'.
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
    def hold(self, path: str) -> Iterator[str]:
        """Give a local name of a file that stays there inside the `with`; otherwise as `open_path`.

        Unlike there, other processes may make room meanwhile.
        """
        with contextlib.ExitStack() as stack:
            with self.open_path(path) as copy:
                file = stack.enter_context(open(copy, "rb"))
                fcntl.flock(file, fcntl.LOCK_SH)
            yield copy

    @contextlib.contextmanager
    def open_tail(self, path: str) -> Iterator[str]:
        """Give a local file as long as a remote one, holding only its last MiB; zeros stand for the rest."""
        copy, size = self._place(path)
        system, name = file_system(path)
        start = max(0, size - _TAIL_BYTES)
        tail = persist(path, lambda: system.cat_file(name, start=start, end=size))
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(copy), suffix=".part") as file:
            file.seek(start)
            file.write(tail)
            file.flush()
            yield file.name

    def _place(self, path: str) -> tuple[str, int]:
        """Ask for size and version of a remote file; returns where its copy belongs, and the size in bytes."""
        system, name = file_system(path)
        try:
            info = persist(path, lambda: system.info(name))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} does not exist") from error
        size = int(info["size"])
        if size > self.max_bytes:
            raise UrlError(f"{path} has {size} bytes, more than the {self.max_bytes} of the cache in {self.directory}")
        version = next((f"{key}={info[key]}" for key in _VERSION_KEYS if info.get(key)), "")
        folder = os.path.expanduser(self.directory)
        os.makedirs(folder, exist_ok=True)
        copy = f"{_digest(path)}-{_digest(f'{size} {version}')}-{os.path.basename(name)[-100:]}"
        return os.path.join(folder, copy), size

    def _fetch(self, path: str, copy: str, size: int) -> None:
        system, name = file_system(path)
        part = f"{copy}.part"
        # Some files share a lock, or millions of them would leave millions of locks behind.
        with self._locked(_digest(path)[:3], fcntl.LOCK_EX):
            if os.path.exists(copy):
                return
            self._make_room(size, f"{_digest(path)}-")
            try:
                persist(path, lambda: _download(system, name, part, size))
                os.replace(part, copy)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(part)

    def _make_room(self, size: int, stale: str) -> None:
        """Delete older versions of a file, then whatever was not used for longest and is not held."""
        folder = os.path.expanduser(self.directory)
        with self._locked("cache", fcntl.LOCK_EX):
            held = []
            for entry in os.scandir(folder):
                if entry.name.endswith((".lock", ".part")):
                    continue
                stat = entry.stat()
                held.append((0.0 if entry.name.startswith(stale) else stat.st_mtime, entry.path, stat.st_size))
            # The cache may be allowed more than the disk has.
            total = sum(length for _, _, length in held)
            limit = min(self.max_bytes, total + shutil.disk_usage(folder).free)
            for used, name, length in sorted(held):
                if used and total + size <= limit:
                    break
                with open(name, "rb") as file, contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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


@contextlib.contextmanager
def local_copy(path: str, reused: bool = False) -> Iterator[str]:
    """Give a local name of a file; a path of this host is given back as it is.

    Args:
        path: path or URL.
        reused: the same file will be wanted again soon, so its copy is kept in the
            cache; otherwise it is gone after the `with`.

    Yields:
        Its name. A DataError that names the copy inside the `with` will name the URL.

    Raises:
        DataError: 'missing file', 'unusable URL', or as in `remote.glob`.
    """
    if not is_remote(path):
        yield path
        return
    with contextlib.ExitStack() as stack:
        try:
            copy = stack.enter_context(DEFAULT_CACHE.hold(path) if reused else _temporary_copy(path))
        except FileNotFoundError as error:
            raise DataError("missing file", f"{path}: no such file") from error
        except UrlError as error:
            raise DataError("unusable URL", str(error)) from error
        try:
            yield copy
        except DataError as error:
            raise DataError(error.reason, str(error).replace(copy, path)) from error


@contextlib.contextmanager
def _temporary_copy(path: str) -> Iterator[str]:
    system, name = file_system(path)
    with tempfile.TemporaryDirectory(prefix="jepa_jax_") as folder:
        copy = os.path.join(folder, os.path.basename(name))
        persist(path, lambda: system.get_file(name, copy))
        yield copy


def _download(system: fsspec.AbstractFileSystem, name: str, part: str, size: int) -> None:
    system.get_file(name, part)
    if os.path.getsize(part) != size:
        raise EOFError(f"{os.path.getsize(part)} of {size} bytes arrived")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
