"""Walks through folders of this host that end, whatever links there are, and names that can be shown and stored."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator


def walk(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk through a folder and all below it as `os.walk` does, each real folder once.

    Links to folders are followed: that finds the data sets that people link into one place.

    Args:
        folder: where to begin.

    Yields:
        A folder, the names of folders in it, sorted, and the names of files in it, sorted. Names
        taken out of the first list are not looked into.
    """
    seen: set[tuple[int, int]] = set()
    for root, below, names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        place = (status.st_dev, status.st_ino)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        below.sort()
        yield root, below, sorted(names)


def real_path(path: str) -> str:
    """Return the one path of a file that all its spellings and links share; it need not exist."""
    folder, name = os.path.split(path)
    return os.path.realpath(path) if os.path.islink(path) else os.path.join(_real_folder(folder), name)


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    # Lists of files name the same folders again and again, and each takes many system calls.
    return os.path.realpath(folder)


def printable(path: str) -> str:
    """Return a path as text that every encoding has; bytes in it that are not UTF-8 become like '\\xe9'."""
    return os.fsencode(path).decode(errors="backslashreplace")
