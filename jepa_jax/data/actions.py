"""Segments of long videos in which somebody does something: EPIC-KITCHENS lists, and the classes that they span."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jepa_jax.data import remote
from jepa_jax.data.listing import ListError, checksum, read_list

# The queries of a probe, in the official order.
OUTPUTS = ("verb", "noun", "action")
# How classes are numbered; see `make_classes`.
ORDERS = ("sorted", "set")
LAYOUT = "{participant}/videos/{video}.MP4"
_NUMBERS = ("start_frame", "stop_frame", "verb_class", "noun_class")
_COLUMNS = ("video_id", *_NUMBERS)

Classes = Mapping[str, Sequence]


class Annotation(NamedTuple):
    """One row of a list: frames of a video, counted from 0 to the last, and the numbers of its verb and noun."""

    video: str
    start: int
    stop: int
    verb: int
    noun: int


class ActionSegment(NamedTuple):
    """Name the part of a video in which an action happens; the file is opened when its frames are wanted.

    Args:
        path: the video.
        start, stop: first and last frame of the action.
        labels: places of verb, noun and action among their classes, in the order of `OUTPUTS`.
        kind, fps: tell those who look at records of shards that nothing is known of it yet.
    """

    path: str
    start: int
    stop: int
    labels: tuple[int, int, int]
    kind: str = "file"
    fps: float = 0.0

    @property
    def source_id(self) -> str:
        """Return what the frames come from."""
        return f"{self.path}, frames {self.start} to {self.stop}"


def read_annotations(path: str) -> list[Annotation]:
    """Read a list of segments in the format of EPIC-KITCHENS-100.

    Args:
        path: CSV with a header and the columns video_id, start_frame, stop_frame, verb_class, noun_class; others are
            not looked at. A path or URL.

    Raises:
        ListError: it cannot be read, lacks a column or a number, or holds no segment.
    """
    rows = csv.DictReader(io.StringIO(read_list(path), newline=""))
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise ListError(f"{path} has no column {', '.join(missing)}; its first line has {rows.fieldnames}. Needed is a list in the "
                        "format of EPIC-KITCHENS-100, such as EPIC_100_train.csv")
    found = []
    for row in rows:
        try:
            start, stop, verb, noun = (int(row[name]) for name in _NUMBERS)
        except (TypeError, ValueError) as error:
            values = {name: row[name] for name in _NUMBERS}
            raise ListError(f"{path}, line {rows.line_num}: {values} are not all whole numbers") from error
        if not row["video_id"] or not 0 <= start <= stop or min(verb, noun) < 0:
            raise ListError(f"{path}, line {rows.line_num}: video {row['video_id']!r}, frames {start} to {stop}, verb {verb}, noun {noun}: "
                            "there must be a video, frames must not go backwards, and no number may be below 0")
        found.append(Annotation(row["video_id"], start, stop, verb, noun))
    if not found:
        raise ListError(f"{path} holds no segment")
    return found


def make_classes(rows: Sequence[Annotation], order: str = "sorted") -> dict[str, tuple]:
    """Number the verbs, nouns and pairs of them that occur in training; no others are classes.

    Args:
        rows: of the training list.
        order: 'sorted'; or 'set', the order in which a Python set of them is walked through, which is how the outputs
            of released probes are numbered (as far as the order in which that set was filled is known).

    Returns:
        `{'verb': numbers, 'noun': numbers, 'action': (verb, noun) pairs}`; places in them are classes.

    Raises:
        ValueError: the order is unknown.

    Source: evals/action_anticipation_frozen/epickitchens.py.
    """
    if order not in ORDERS:
        raise ValueError(f"class order {order!r} is unknown; choose one of {', '.join(ORDERS)}")
    arrange = sorted if order == "sorted" else list
    values = {"verb": (row.verb for row in rows), "noun": (row.noun for row in rows), "action": ((row.verb, row.noun) for row in rows)}
    return {output: tuple(arrange(set(values[output]))) for output in OUTPUTS}


class ActionSource:
    """Give random access to the segments of a list, as `records.ShardSource` does to the records of shards.

    Segments of a pair of verb and noun that is no class are left out; `foreign` counts them.

    Args:
        path: the list.
        rows: of it.
        classes: of `make_classes`.
        videos: folder of the videos, or a URL.
        layout: where a video lies in it, with {video} for its id and {participant} for the id's first part.

    Raises:
        ListError: no segment is left.
        ValueError: the layout cannot be filled in.
    """

    def __init__(self, path: str, rows: Sequence[Annotation], classes: Classes, videos: str, layout: str = LAYOUT):
        self.files = (path,)
        places = {output: {value: place for place, value in enumerate(classes[output])} for output in OUTPUTS}
        kept = [(number, row) for number, row in enumerate(rows) if (row.verb, row.noun) in places["action"]]
        self.foreign = len(rows) - len(kept)
        if not kept:
            raise ListError(f"none of the {len(rows)} segments of {path} is of an action that occurs in training")
        self._rows = [number for number, _ in kept]
        self._segments = [
            ActionSegment(
                _place(row.video, videos, layout), row.start, row.stop,
                (places["verb"][row.verb], places["noun"][row.noun], places["action"][row.verb, row.noun]),
            )
            for _, row in kept
        ]

    def __len__(self) -> int:
        return len(self._segments)

    def __getitem__(self, index: int) -> ActionSegment:
        return self._segments[index]

    def locate(self, index: int) -> str:
        """Name where a segment lies, as 'list#row', rows counted from 0."""
        return f"{self.files[0]}#{self._rows[index]}"

    def checksum(self) -> str:
        """Tell one list from another by its segments and their classes; the same wherever the videos lie."""
        return checksum(f"{segment.path.rpartition('/')[2]} {segment[1:]}" for segment in self._segments)


def check_videos(source: ActionSource, videos: str, *, what: str) -> None:
    """Check that videos are where a list and a layout say, before anything is computed; that some are missing is no mistake.

    Args:
        source: the segments.
        videos: folder of the videos, or a URL, as given to the source.
        what: names that folder in messages.

    Raises:
        ListError: there is no such folder, or none of the videos; the message says which path was tried.
        UrlError, DataError: as `remote.is_file`.
    """
    # Behind URLs there may be files without folders.
    if videos and not remote.is_remote(videos) and not remote.is_folder(videos):
        raise ListError(f"{what} is {videos!r}, and there is no such folder")
    paths = list(dict.fromkeys(source[index].path for index in range(len(source))))
    if not any(remote.is_file(path) for path in paths):
        raise ListError(f"{what} is {videos!r}, and none of the {len(paths)} videos of {source.files[0]} lies there; tried were {paths[0]}"
                        f"{' and so on' if len(paths) > 1 else ''}. Is it the right folder, and the right layout?")


def _place(video: str, videos: str, layout: str) -> str:
    try:
        name = layout.format(participant=video.split("_")[0], video=video)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"layout {layout!r} cannot be filled in ({error!r}); it may hold {{participant}} and {{video}}, as in {LAYOUT!r}") from error
    if "{video}" not in layout:
        raise ValueError(f"layout {layout!r} does not hold {{video}}, so all segments would be of one file; such as {LAYOUT!r}")
    return remote.join(videos, name)
