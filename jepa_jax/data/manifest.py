"""Read manifests: lists of scenes in long videos, as JSON lines or as a CSV with a header."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jepa_jax.data import remote
from jepa_jax.data.listing import (
    LIST_SUFFIXES,
    VIDEO_SUFFIXES,
    Item,
    ListError,
    Rejected,
    Scene,
    list_items,
    place_in_list,
    read_list,
)

_JSON_SUFFIX = ".jsonl"
_REQUIRED = ("path", "start", "end")


def list_videos(sources: Sequence[str]) -> list[Item | Scene | Rejected]:
    """Expand sources to video files and scenes.

    Args:
        sources: as in `listing.list_items`, or manifests.

    Returns:
        Scenes of manifests first, in their order, then files. A scene that is listed
        again, or whole files beside their scenes, are fine; the same scene twice is
        rejected as 'duplicate id'.

    Raises:
        ListError: as in `listing.list_items`, or a manifest has an unreadable line.
    """
    manifests = [source for source in sources if is_manifest(source)]
    others = [source for source in sources if source not in manifests]
    scenes = reject_duplicates(scene for path in manifests for scene in read_manifest(path))
    return scenes + (list_items(others, VIDEO_SUFFIXES) if others else [])


def reject_duplicates(items: Iterable) -> list:
    """Replace every item whose name was seen before by a `Rejected`, reason 'duplicate id'."""
    seen: set[str] = set()
    kept = []
    for item in items:
        again = item.name in seen and not isinstance(item, Rejected)
        kept.append(Rejected(item.name, "duplicate id", f"{item.name} is listed more than once") if again else item)
        seen.add(item.name)
    return kept


def is_manifest(path: str | os.PathLike) -> bool:
    """Tell whether a file lists scenes: JSON lines, or a CSV whose header names path, start and end."""
    path = os.fspath(path)
    if not (path.lower().endswith((_JSON_SUFFIX, *LIST_SUFFIXES)) and remote.is_file(path)):
        return False
    if path.lower().endswith(_JSON_SUFFIX):
        return True
    try:
        with remote.open_binary(path) as file:
            return set(_REQUIRED) <= set(next(csv.reader([file.readline().decode("utf-8-sig")]), []))
    except (UnicodeDecodeError, csv.Error):
        # The reader of plain lists says what is wrong with it.
        return False


def read_manifest(path: str) -> list[Scene]:
    """Read a list of scenes.

    Args:
        path: a `.jsonl` file, one object a line, or a CSV with a header; both with
            path, start, end (seconds from the first frame) and, if any, an integer
            label; other columns are ignored. Path or URL; relative paths in it count as
            in `listing.read_csv`.

    Returns:
        The scenes in file order. Those without length are reported when they are cut.

    Raises:
        ListError: a line cannot be read, lacks a field or has a field of the wrong kind.
    """
    lines = io.StringIO(read_list(path), newline="")
    try:
        rows = _json_rows(lines, path) if path.lower().endswith(_JSON_SUFFIX) else enumerate(csv.DictReader(lines), 2)
        scenes = [_scene(row, f"{path}, line {number}") for number, row in rows]
    except csv.Error as error:
        raise ListError(f"{path} is not a CSV: {error}") from error
    return [scene._replace(path=place_in_list(path, scene.path)) for scene in scenes]


def _json_rows(lines: Iterable[str], path: str) -> Iterator[tuple[int, Mapping]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ListError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ListError(f"{path}, line {number}: {line.strip()!r} is no JSON object")
        yield number, row


def _scene(row: Mapping, where: str) -> Scene:
    lacking = [key for key in _REQUIRED if row.get(key) in (None, "")]
    if lacking:
        raise ListError(
            f"{where}: lacks {', '.join(lacking)}; each line of a manifest gives path, start and end (seconds), and "
            "label (an integer) if there is one"
        )
    label = row.get("label")
    try:
        number = None if label in (None, "") else int(label)
        return Scene(str(row["path"]), float(row["start"]), float(row["end"]), number)
    except (TypeError, ValueError) as error:
        raise ListError(
            f"{where}: start {row['start']!r} and end {row['end']!r} must be seconds and label {label!r} an integer"
        ) from error
