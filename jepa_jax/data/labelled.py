"""Labelled videos and images: lists in the official format, folders of classes, labelled shards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jepa_jax.data import clips, remote, video
from jepa_jax.data.copies import DEFAULT_CACHE, FileCache, local_copy
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import IMAGE_SUFFIXES, LIST_SUFFIXES, VIDEO_SUFFIXES, ListError, checksum, read_csv
from jepa_jax.data.records import SUFFIX, ClipRecord, ShardSource
from jepa_jax.data.stream import Timeline, read_timeline, stream_frames

_NAMED = 5


class LabelledFile(NamedTuple):
    """Name one file of a list and its class; it is opened when its frames are wanted.

    `kind` and `fps` tell those who look at records of shards that nothing is known of it yet.
    """

    path: str
    label: int | None
    kind: str = "file"
    fps: float = 0.0

    @property
    def source_id(self) -> str:
        """Return what the frames come from."""
        return self.path


class Footage(NamedTuple):
    """Frames that can be read.

    Args:
        num_frames: how many there are; 1 for an image.
        fps: average rate, frames per second; 0.0 for an image.
        read: distinct ascending frame indices -> iterator over uint8 `[H, W, 3]`.
    """

    num_frames: int
    fps: float
    read: Callable[[Sequence[int]], Iterable[np.ndarray]]


class ListSource:
    """Give random access to the entries of lists, as `records.ShardSource` does to those of shards.

    Args:
        path: a list 'path label' (.csv or .txt), or a folder that holds a folder of files for every class;
            classes are then numbered in the order of their names.

    Raises:
        ListError: the list cannot be read, or is of another format.
    """

    def __init__(self, path: str):
        self.files = (os.fspath(path),)
        self.class_names: tuple[str, ...] | None = None
        if os.fspath(path).lower().endswith(LIST_SUFFIXES):
            self._items = [(item.path, item.label) for item in read_csv(path)]
        else:
            self.class_names, self._items = _list_classes(path)
            if not self._items:
                raise ListError(f"no video or image lies in the folders of {path}: {', '.join(self.class_names[:_NAMED])}")
        if not self._items:
            raise ListError(f"{path} is empty; expected one 'path label' per line")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> LabelledFile:
        return LabelledFile(*self._items[index])

    def labels(self) -> np.ndarray:
        """Return the class of every entry, int64 `[n]`."""
        return np.array([label for _, label in self._items], np.int64)

    def locate(self, index: int) -> str:
        """Name where an entry lies, as 'file#entry'."""
        return f"{self.files[0]}#{index}"

    def checksum(self) -> str:
        """Tell one list from another by its entries and their classes; the same wherever the files lie."""
        return checksum(f"{name} {label}" for name, label in zip(self._names(), self.labels()))

    def files_checksum(self) -> str:
        """Tell one list from another by its files alone."""
        return checksum(self._names())

    def _names(self) -> list[str]:
        return _relative([path for path, _ in self._items])

    def number_as(self, names: Sequence[str]) -> None:
        """Number the classes of a folder of class folders by the names of others; a list has numbers already.

        Raises:
            ListError: a folder with files is none of these classes.
        """
        if self.class_names is None:
            return
        mine = [self.class_names[label] for _, label in self._items]
        unknown = sorted(set(mine) - set(names))
        if unknown:
            more = ", ..." * (len(unknown) > _NAMED)
            raise ListError(f"{self.files[0]} has folders that are none of the {len(names)} known classes: {', '.join(unknown[:_NAMED])}{more}; "
                            f"known are {', '.join(names[:_NAMED])}{', ...' * (len(names) > _NAMED)}. Name folders as classes, or give a list 'path label'")
        places = {name: place for place, name in enumerate(names)}
        self._items = [(path, places[name]) for (path, _), name in zip(self._items, mine)]
        self.class_names = tuple(names)


def _relative(paths: list[str]) -> list[str]:
    """Name files from the folder that all of them have in common."""
    try:
        start = len(os.path.commonpath([os.path.dirname(path) for path in paths]))
    except ValueError:  # relative and absolute ones
        start = 0
    return [path[start:] for path in paths]


def _list_classes(path: str) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    # Hidden folders are those of tools, and would be classes of their own.
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    items = []
    for label, name in enumerate(names):
        found = remote.find(os.path.join(path, name), lambda file: file.lower().endswith(VIDEO_SUFFIXES + IMAGE_SUFFIXES))
        items += [(file, label) for file in found]
    return tuple(names), items


def open_labelled(path: str, cache: FileCache = DEFAULT_CACHE) -> ListSource | ShardSource:
    """Open labelled data of any form.

    Args:
        path: a list 'path label', a folder of class folders, or shards (their folder, a glob or a file).
        cache: where copies of remote shards are kept.

    Raises:
        ListError: a list is empty or of another format.
        FileNotFoundError, DataError: as in `records.ShardSource`.
    """
    if os.fspath(path).lower().endswith(LIST_SUFFIXES):
        return ListSource(path)
    if os.path.isdir(path) and not any(name.endswith(SUFFIX) for name in os.listdir(path)):
        if any(entry.is_dir() for entry in os.scandir(path)):
            return ListSource(path)
    return ShardSource((path,), "clip", cache)


@contextlib.contextmanager
def open_footage(
    record: ClipRecord | LabelledFile, find_frames: Callable[[str], Timeline] = read_timeline
) -> Iterator[Footage]:
    """Open the frames of a record or file.

    Args:
        record: a record, or anything with the `path` of a file.
        find_frames: finds the frames of a video file; one that remembers, where a file is opened again and again.

    Yields:
        `Footage`.

    Raises:
        DataError: it cannot be read; also while its frames are.
    """
    if isinstance(record, ClipRecord):
        yield _record_footage(record)
        return
    with local_copy(record.path, reused=True) as path:
        if clips.is_image(path):
            yield _still(clips.read_image(path))
        else:
            timeline = find_frames(path)
            # Many files are decoded at the same time, one thread each.
            yield Footage(timeline.num_frames, timeline.fps, lambda needed: stream_frames(timeline, needed, max_threads=1))


def _still(image: np.ndarray) -> Footage:
    return Footage(1, 0.0, lambda needed: [image for _ in needed])


def _record_footage(record: ClipRecord) -> Footage:
    if record.kind == "image":
        return _still(video.decode_image(record.data))
    if record.num_frames < 1:
        raise DataError("no frames", f"{record.source_id}: the record says it has {record.num_frames} frames")

    def read(needed):
        try:
            return video.decode_frame_list(record.data, needed)
        except IndexError as error:
            raise DataError("fewer frames than stated", f"{record.source_id}: {error}") from error

    return Footage(record.num_frames, record.fps, read)


def class_of(record: ClipRecord | LabelledFile, num_classes: int) -> int:
    """Return the class of a record.

    Raises:
        DataError: 'no label', or 'label out of range'.
    """
    if record.label is None:
        raise DataError("no label", f"{record.source_id}: the record has no label; prepare it from a list 'path label'")
    if not 0 <= record.label < num_classes:
        raise DataError("label out of range", f"{record.source_id}: label {record.label}, classes are 0 to {num_classes - 1}")
    return record.label


def align_classes(sources: Sequence[ListSource | ShardSource]) -> tuple[str, ...] | None:
    """Number the classes of all folders of class folders as the first of them does; returns their names, None if there is none.

    Raises:
        ListError: as `ListSource.number_as`.
    """
    named = [source for source in sources if getattr(source, "class_names", None)]
    for source in named[1:]:
        source.number_as(named[0].class_names)
    return named[0].class_names if named else None


def check_labels(source: ListSource, num_classes: int, *, what: str) -> None:
    """Check the labels of a list before anything is computed.

    Args:
        source: the list.
        num_classes: how many classes there are.
        what: names the list in messages.

    Raises:
        ListError: a label is out of range.
    """
    labels = source.labels()
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        named = "; ".join(f"entry {index}: {source[index].path} has {labels[index]}" for index in wrong[:_NAMED])
        raise ListError(f"{what} has {len(wrong)} of {len(labels)} labels outside of 0 to {num_classes - 1} "
                        f"(there are {num_classes} classes): {named}")


def check_examples(sources: Sequence[ListSource], num_classes: int, *, what: str) -> None:
    """Check that every class has an example in one of the lists; `what` names them in messages.

    Raises:
        ListError: a class has none.
    """
    empty = sorted(set(range(num_classes)).difference(*(source.labels().tolist() for source in sources)))
    if empty:
        named = ", ".join(map(str, empty[:_NAMED])) + (", ..." if len(empty) > _NAMED else "")
        raise ListError(f"{what} has no example of {len(empty)} of {num_classes} classes ({named}): they could only be guessed. Is it "
                        "the right list? If so, set data.allow_empty_classes=True")
