"""Find the files that a user means by a folder, a glob or a CSV."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jepa_jax.data import folders, remote

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".3gp", ".ogv"
)  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
LIST_SUFFIXES = (".csv", ".txt")


class ListError(ValueError):
    """Say that a source of files cannot be understood, or holds none."""


class Item(NamedTuple):
    """Name one file to prepare and its label, if it has one."""

    path: str
    label: int | None = None

    @property
    def name(self) -> str:
        """Name the item in reports and records."""
        return folders.printable(self.path)


class Ambiguous(Item):
    """Name a file that is listed with different labels, and so has none."""


class Scene(NamedTuple):
    """Name a part of a video file to prepare: seconds from its first frame; an infinite end is that of the file."""

    path: str
    start: float
    end: float
    label: int | None = None

    @property
    def name(self) -> str:
        """Name the scene in reports and records, as a media fragment."""
        end = "" if math.isinf(self.end) else f",{self.end:.10g}"
        return f"{folders.printable(self.path)}#t={self.start:.10g}{end}"


class Rejected(NamedTuple):
    """Stand in a list for something that cannot be prepared, so that it is counted with the rest."""

    name: str
    reason: str
    message: str


def list_items(sources: Sequence[str], suffixes: Sequence[str]) -> list[Item]:
    """Expand sources to files, sorted within each source, each real file once, under its first name.

    Args:
        sources: folders (searched through, by suffix), globs and single files, of this
            host or behind URLs as in `remote`; or CSVs of path and label, also behind URLs.
        suffixes: file endings that folders are searched for, lower case.

    Returns:
        The items. Files named by a CSV need not exist; they are reported later. A file that is
        listed with different labels is `Ambiguous`.

    Raises:
        ListError: a source does not exist, holds nothing, or has an unreadable line.
        UrlError, DataError: as in `remote.glob`.
    """
    items: dict[str, Item] = {}
    for source in sources:
        found = _expand(os.fspath(source), tuple(suffixes))
        if not found:
            raise ListError(f"{source!r} holds no file ending in {', '.join(suffixes)}")
        for item in found:
            key = item.path if remote.is_remote(item.path) else folders.real_path(item.path)
            known = items.setdefault(key, item)
            if isinstance(known, Ambiguous) or known.label == item.label or item.label is None:
                continue
            # Lists of several data sets number their classes differently; the file is the same.
            items[key] = Ambiguous(known.path) if known.label is not None else known._replace(label=item.label)
    return list(items.values())


def _expand(source: str, suffixes: tuple[str, ...]) -> list[Item]:
    def wanted(name: str) -> bool:
        return name.lower().endswith(suffixes)

    if remote.is_folder(source):
        return [Item(path) for path in remote.find(source, wanted)]
    if remote.is_file(source):
        return read_csv(source) if source.lower().endswith(LIST_SUFFIXES) else [Item(source)]
    matches = remote.glob(source)
    if not matches:
        raise ListError(f"{source!r} is no folder, file or glob that matches anything; check the path")
    items = []
    for match in matches:
        # By name first: behind URLs each question takes a request.
        if wanted(match) and not os.path.isdir(match):
            items.append(Item(match))
        elif remote.is_folder(match):
            items += [Item(path) for path in remote.find(match, wanted)]
    return items


def read_csv(path: str) -> list[Item]:
    """Read a list of files in the official format: path, a space, integer label; no header.

    The last space separates, so paths may hold spaces; `::` separates as well.

    Args:
        path: the list, a path or URL. Relative paths in it count from the working
            directory; in a list behind a URL, from the folder of the list.

    Returns:
        One item per line; empty lines are left out.

    Raises:
        ListError: a line has no separator or a label that is no integer, or the
            file is not text.

    Source: src/datasets/video_dataset.py
    """
    lines = list(enumerate(read_list(path).splitlines(), 1))
    items = [_parse_line(line.strip(), f"{path}, line {number}") for number, line in lines if line.strip()]
    return [item._replace(path=place_in_list(path, item.path)) for item in items]


def read_list(path: str) -> str:
    """Read the text of a list.

    Args:
        path: path or URL.

    Raises:
        ListError: it cannot be read or is not text.
        UrlError, DataError: as in `remote.read_text`.
    """
    try:
        return remote.read_text(path)
    except UnicodeDecodeError as error:
        raise ListError(f"{path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise ListError(f"{path} cannot be read: {error.strerror or error}") from error


def checksum(entries: Iterable[str]) -> str:
    """Tell one list of names from another: eight hexadecimal digits."""
    return f"{zlib.crc32(chr(10).join(entries).encode(errors='surrogateescape')):08x}"


def place_in_list(path: str, entry: str) -> str:
    """Say where an entry of the list at `path` lies: a bucket has no working directory."""
    return remote.join(os.path.dirname(path), entry) if remote.is_remote(path) else entry


def _parse_line(line: str, where: str) -> Item:
    name, separator, label = line.rpartition("::" if "::" in line else " ")
    name = name.strip().strip('"')
    try:
        number = int(label)
    except ValueError:
        number = None
    if not separator or not name or name.endswith(",") or number is None:
        raise ListError(
            f"{where}: {line!r} is not 'path label': expected a path, one space and an integer label (0 if there is "
            "none), for example '/videos/a b.mp4 3', or '::' in place of the space; no header line"
        )
    return Item(name, number)
