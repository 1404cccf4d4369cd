"""Reading and listing of files behind URLs: gs://, s3://, http:// and all else that fsspec knows.

Every function takes a path of this host as well, so that nobody else has to ask which it is. `copies`
gives whole files local names, `publish` writes.
"""

from __future__ import annotations

import contextlib
import glob as local_glob
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar

import fsspec

from jepa_jax.data import folders
from jepa_jax.data.errors import DataError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# Packages that fsspec needs for a protocol, as extras of ours.
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3", "http": "http", "https": "http"}
_CLIENT_ERRORS = (("aiohttp", "ClientError"), ("gcsfs.retry", "HttpError"), ("botocore.exceptions", "BotoCoreError"))
# Of those, the ones that another attempt does not help.
_REFUSALS = (
    ("botocore.exceptions", "NoCredentialsError"),
    ("botocore.exceptions", "ParamValidationError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)
_ATTEMPTS, _FIRST_PAUSE_S = 5, 1.0

_T = TypeVar("_T")


class UrlError(ValueError):
    """Say that a URL cannot be used at all: its protocol is unknown, or lacks a package, or the file is too large."""


def is_remote(path: str | os.PathLike) -> bool:
    """Tell URLs from paths of this host."""
    return bool(_URL.match(os.fspath(path))) and not os.fspath(path).startswith("file://")


def join(root: str, path: str) -> str:
    """Put a root before a path, unless the path is absolute or a URL, or the root is empty."""
    if not root or _URL.match(path) or os.path.isabs(path):
        return path
    return f"{root.rstrip('/')}/{path}"


def absolute(path: str) -> str:
    """Write a path or URL in the one form in which listings give it."""
    if not is_remote(path):
        return os.path.abspath(path)
    system, name = file_system(path)
    return system.unstrip_protocol(name)


def file_system(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URL, and its name for the file.

    Raises:
        UrlError: the protocol is unknown or needs a package.
    """
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        protocol = path.partition("://")[0]
        extra = _EXTRAS.get(protocol)
        todo = f"`bash launch/setup.sh {extra}` installs it" if extra else str(error)
        raise UrlError(f"{path}: {protocol}:// needs a package that is not installed: {todo}") from error
    except ValueError as error:
        raise UrlError(f"{path}: no file system for it is known: {error}") from error


def _loaded(classes: tuple[tuple[str, str], ...]) -> tuple[type[BaseException], ...]:
    """List the clients' own classes, which exist once they are in use."""
    return tuple(getattr(sys.modules[module], name) for module, name in classes if module in sys.modules)


def persist(path: str, call: Callable[[], _T], doing: str = "read") -> _T:
    """Call until it works, with growing pauses; a file that is not there is not asked for again.

    Args:
        path: the URL, for messages.
        call: what to do.
        doing: what that is, 'read' or 'write'.

    Raises:
        FileNotFoundError: there is no such file, or no such bucket.
        DataError: 'remote read failed', 'remote read refused'; or 'remote write ...'.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
        try:
            return call()
        except FileNotFoundError:
            raise
        except (PermissionError, *_loaded(_REFUSALS)) as error:
            why = f"{path}: {doing} access was refused: {_one_line(error)}"
            raise DataError(f"remote {doing} refused", why) from error
        except (OSError, EOFError, *_loaded(_CLIENT_ERRORS)) as error:
            last = error
    raise DataError(
        f"remote {doing} failed", f"{path}: {doing} access failed in {_ATTEMPTS} attempts: {_one_line(last)}"
    ) from last


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def glob(pattern: str) -> list[str]:
    """List files whose names match, sorted; `**` stands for folders in folders; of URLs, as URLs.

    Raises:
        UrlError: as in `file_system`.
        DataError: as in `persist`.
    """
    if not is_remote(pattern):
        return sorted(local_glob.glob(pattern, recursive=True))
    system, name = file_system(pattern)
    # Clients remember listings, which other processes have changed.
    system.invalidate_cache()
    return sorted(system.unstrip_protocol(found) for found in persist(pattern, lambda: system.glob(name)))


def is_folder(path: str) -> bool:
    """Tell whether a path or URL is a folder; errors as in `glob`."""
    if not is_remote(path):
        return os.path.isdir(path)
    system, name = file_system(path)
    return persist(path, lambda: system.isdir(name))


def is_file(path: str) -> bool:
    """Tell whether a path or URL is a file; errors as in `glob`."""
    if not is_remote(path):
        return os.path.isfile(path)
    system, name = file_system(path)
    return persist(path, lambda: system.isfile(name))


def size(path: str) -> int | None:
    """Return the bytes of a file, None if there is none; errors as in `glob`."""
    with contextlib.suppress(FileNotFoundError):
        if not is_remote(path):
            return os.path.getsize(path)
        system, name = file_system(path)
        return int(persist(path, lambda: system.info(name))["size"])
    return None


def find(folder: str, keep: Callable[[str], bool]) -> list[str]:
    """List the files below a folder, in folders in it too, sorted.

    Args:
        folder: path or URL; links to folders are followed, to each real folder once.
        keep: tells from a file's name, without folders, whether it is wanted.

    Returns:
        Their paths or URLs. Hidden files are left out.

    Raises:
        UrlError, DataError: as in `glob`.
    """
    if is_remote(folder):
        system, name = file_system(folder)
        system.invalidate_cache()
        files = map(system.unstrip_protocol, persist(folder, lambda: system.find(name)))
    else:
        files = (os.path.join(root, name) for root, _, names in folders.walk(folder) for name in names)
    return sorted(file for file in files if _wanted(os.path.basename(file), keep))


def _wanted(name: str, keep: Callable[[str], bool]) -> bool:
    return not name.startswith(".") and keep(name)


@contextlib.contextmanager
def open_binary(path: str) -> Iterator[BinaryIO]:
    """Open a file for reading here and there; of a remote one, only the parts around those places are fetched.

    Raises:
        OSError: it cannot be opened or read.
        UrlError, DataError: as in `glob`.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            yield file
        return
    system, name = file_system(path)
    with persist(path, lambda: system.open(name, "rb")) as file:
        try:
            yield file
        except _loaded(_CLIENT_ERRORS) as error:
            raise DataError("remote read failed", f"{path}: {_one_line(error)}") from error


def read_range(path: str, start: int, length: int) -> bytes:
    """Read some bytes of a file, fewer where it ends.

    Args:
        path: path or URL.
        start: of the first byte.
        length: how many.

    Raises:
        OSError: the file cannot be opened or read.
        UrlError, DataError: as in `glob`.
    """
    if is_remote(path):
        system, name = file_system(path)
        return persist(path, lambda: system.cat_file(name, start=start, end=start + length))
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(length)


def read_text(path: str) -> str:
    """Read a text file in UTF-8, with or without a mark at its beginning; line ends are kept.

    Raises:
        OSError, UrlError, DataError: as in `read_range`.
        UnicodeDecodeError: it is not UTF-8.
    """
    if is_remote(path):
        system, name = file_system(path)
        return persist(path, lambda: system.cat_file(name)).decode("utf-8-sig")
    with open(path, encoding="utf-8-sig", newline="") as file:
        return file.read()
