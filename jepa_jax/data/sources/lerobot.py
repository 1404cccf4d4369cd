"""LeRobot data sets, versions 2.0, 2.1 and 3.x: parquet tables of numbers beside mp4 files (or pictures in the tables).

meta/info.json                        version, fps, features and the patterns of the paths
2.x  meta/episodes.jsonl              one line per episode; a parquet and an mp4 file for each
3.x  meta/episodes/**/*.parquet       one row per episode; files hold several episodes one after the other
"""

from __future__ import annotations

import functools
import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np

from jepa_jax.data import folders, remote, scenes
from jepa_jax.data.conversion import Noted
from jepa_jax.data.copies import local_copy
from jepa_jax.data.encoding import Encoded, encode_video, rgb_frames, storable_rate
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import ListError, Rejected
from jepa_jax.data.manifest import reject_duplicates
from jepa_jax.data.sources.libraries import need
from jepa_jax.data.sources.robots import TrajectorySpec, check_rows, units_of
from jepa_jax.data.trajectories import TrajectoryRecord, View
from jepa_jax.data.transcode import encode_file
from jepa_jax.data.video import decode_image

_INFO = os.path.join("meta", "info.json")
_EPISODE, _FRAME, _STAMPS = "episode_index", "frame_index", "timestamp"
# As far as LeRobot itself lets time stamps be off, seconds.
_STAMP_TOLERANCE = 1e-4


class Episode(NamedTuple):
    """Name one episode: its table, and for each video (key, file, second where it begins, -1 for a file of its own)."""

    root: str
    number: int
    length: int
    table: str
    videos: tuple[tuple[str, str, float], ...]
    instruction: str | None

    @property
    def name(self) -> str:
        """Name the episode in reports and records."""
        return f"{folders.printable(self.root)}#{self.number}"


def list_lerobot(sources: Sequence[str], views: Sequence[str] = ()) -> list[Episode | Rejected]:
    """Find the episodes of data sets.

    Args:
        sources: folders with meta/info.json, or folders above such folders; also behind URLs.
        views: names of cameras, or last parts of them; all if empty.

    Returns:
        Episodes in order; one that is listed again is rejected as 'duplicate id'.

    Raises:
        ListError: no data set, a version that is not read, unreadable metadata, or no such view.
    """
    need("pyarrow.parquet", "sources")
    episodes: list[Episode] = []
    for source in sources:
        roots = _roots(source)
        if not roots:
            raise ListError(f"{source!r} holds no {_INFO}; name the folder of a LeRobot data set")
        for root in roots:
            episodes += _episodes(root, views)
    return reject_duplicates(episodes)


def _roots(source: str) -> list[str]:
    if remote.is_remote(source):
        files = remote.find(source, lambda name: name == os.path.basename(_INFO))
        return [file.removesuffix(f"/{_INFO}") for file in files if file.endswith(f"/{_INFO}")]
    # Data sets have many files that need not be looked at.
    found = []
    for folder, below, _ in folders.walk(source):
        if os.path.isfile(os.path.join(folder, _INFO)):
            found.append(folder)
            below.clear()
    return sorted(found)


def read_info(root: str) -> dict:
    """Read meta/info.json.

    Raises:
        ListError: it is not readable or of a version that this code does not know.
    """
    path = os.path.join(root, _INFO)
    try:
        info = json.loads(remote.read_text(path))
        version, lacking = str(info["codebase_version"]), {"fps", "features", "data_path"} - set(info)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ListError(f"{path} is no readable description of a LeRobot data set: {error!r}") from error
    if not version.startswith(("v2.", "v3.")) or lacking:
        why = f"lacks {', '.join(sorted(lacking))}" if lacking else f"is of version {version}"
        raise ListError(f"{path} {why}; versions 2.0, 2.1 and 3.x are read: convert it with LeRobot's own scripts")
    return info


def view_keys(info: Mapping, views: Sequence[str], root: str) -> list[str]:
    """Choose camera features of a data set by name or last part of the name; all but depth maps if `views` is empty."""
    keys = [key for key, feature in info["features"].items() if feature.get("dtype") in ("video", "image")]
    if not views:
        return [key for key in keys if not is_depth(info["features"][key])]
    chosen = [key for view in views for key in keys if view in (key, short_name(key))]
    if len(chosen) != len(views):
        raise ListError(f"{root}: views {', '.join(views)} asked for, but its cameras are {', '.join(keys) or 'none'}")
    return chosen


def is_depth(feature: Mapping) -> bool:
    """Tell whether the pictures of a camera feature are distances, which are no pictures to a network for RGB."""
    said = [feature.get(place) or {} for place in ("info", "video_info")]
    return any(place.get(name) for place in said for name in ("is_depth_map", "video.is_depth_map"))


def short_name(key: str) -> str:
    """Shorten the name of a feature to its last part: 'observation.images.top' to 'top'."""
    return key.rpartition(".")[2]


def _episodes(root: str, views: Sequence[str]) -> Iterator[Episode]:
    info = read_info(root)
    keys = [key for key in view_keys(info, views, root) if info["features"][key]["dtype"] == "video"]
    new = str(info["codebase_version"]).startswith("v3.")
    for row in _new_rows(root) if new else _old_rows(root):
        try:
            number, length, tasks = int(row["episode_index"]), int(row["length"]), row.get("tasks")
            table = _place(row, "data", new, info)
            videos = tuple(
                (
                    key,
                    os.path.join(
                        root, info["video_path"].format(video_key=key, **_place(row, f"videos/{key}", new, info))
                    ),
                    float(row[f"videos/{key}/from_timestamp"]) if new else -1.0,
                )
                for key in keys
            )
            path = os.path.join(root, info["data_path"].format(**table))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ListError(f"{root}: the metadata of an episode cannot be used: {error!r}") from error
        yield Episode(
            root, number, length, path, videos, "; ".join(tasks) if tasks is not None and len(tasks) else None
        )


def _place(row: Mapping, prefix: str, new: bool, info: Mapping) -> dict[str, int]:
    """Say which numbers stand in the pattern of a path."""
    if new:
        return {part: int(row[f"{prefix}/{part}"]) for part in ("chunk_index", "file_index")}
    number = int(row["episode_index"])
    return {"episode_index": number, "episode_chunk": number // int(info.get("chunks_size", 1000))}


def _old_rows(root: str) -> list[dict]:
    path = os.path.join(root, "meta", "episodes.jsonl")
    try:
        return [json.loads(line) for line in remote.read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ListError(f"{path} cannot be read: {error}") from error


def _new_rows(root: str) -> list[dict]:
    parquet = need("pyarrow.parquet", "sources")
    files = remote.glob(os.path.join(glob.escape(root), "meta", "episodes", "**", "*.parquet"))
    if not files:
        raise ListError(f"{root} holds no meta/episodes/**/*.parquet, although it is of version 3")
    rows: list[dict] = []
    for file in files:
        try:
            # The columns of statistics are large and not needed.
            with local_copy(file) as copy:
                names = [name for name in parquet.read_schema(copy).names if not name.startswith("stats/")]
                rows += parquet.read_table(copy, columns=names).to_pylist()
        except _arrow_errors() as error:
            raise ListError(f"{file} cannot be read: {error}") from error
    return rows


@dataclass(frozen=True)
class LeRobotSpec(TrajectorySpec):
    """Say how LeRobot episodes are read and stored.

    Args:
        size, gop, crf, min_frames, max_turn, max_gap: as in `TrajectorySpec`.
        views: names of cameras, or last parts of them; all but depth maps if empty.
        state: columns that make up the state, in order.
        action: column of recorded actions; '' for none.
        rotation: 'xyz euler' if the state is x y z (m), three extrinsic xyz angles
            (rad) and what else there is; 'none' for joints.
        gripper_range: value when fully open and fully closed, if known; numbers named 'gripper' are
            then rescaled to 0 and 1, in states only.
    """

    views: tuple[str, ...] = ()
    state: tuple[str, ...] = ("observation.state",)
    action: str = "action"
    rotation: str = "none"
    gripper_range: tuple[float, float] | None = None

    def convert(self, item: Episode) -> Noted:
        """Make the record of one episode.

        Raises:
            DataError: 'missing parquet', 'unreadable parquet', 'parquet lacks data', 'no video', 'rows do not match
                frames', or as in `TrajectorySpec.checked` and `check_times`, `transcode.encode_file`,
                `scenes.read_scene` and `copies.local_copy`.
        """
        try:
            info = read_info(item.root)
            keys = view_keys(info, self.views, item.root)
        except ListError as error:
            raise DataError("unreadable metadata", str(error)) from error
        if not keys:
            raise DataError("no video", f"{item.name}: the data set has no camera")
        pictures = [key for key in keys if info["features"][key]["dtype"] == "image"]
        action = (self.action,) if self.action else ()
        table = _read_table(item, [*self.state, *action, *pictures])
        columns = {key: _column(table, key, item.name) for key in self.state}
        states = np.concatenate(list(columns.values()), 1)
        actions = _column(table, self.action, item.name) if action else None
        rate = float(info["fps"])
        notes = self._check_stamps(table.get(_STAMPS), rate, item.name)
        if not self.views and any(is_depth(feature) for feature in info["features"].values()):
            notes.append("depth cameras left out (--views keeps them)")
        views, headers = self._encode_views(item, {key: table.get(key) for key in keys}, pictures, len(states), rate)
        state_names = tuple(name for key, column in columns.items() for name in _names(info, key, column))
        action_names = tuple(_names(info, self.action, actions)) if actions is not None else ()
        posed = self.rotation != "none"
        return self.checked(
            TrajectoryRecord(
                views, states, actions, rate, headers[0] if headers else rate, "true", state_names,
                units_of(state_names, posed), action_names, ("",) * len(action_names),
                "robot base" if posed else "unknown", self.rotation, self.gripper_range,
                item.instruction, item.name, {},
            ),
            notes,
        )  # fmt: skip

    def _check_stamps(self, stamps: list | None, rate: float, name: str) -> list[str]:
        """Compare time stamps with the rate; returns notes."""
        if stamps is None:
            return []
        try:
            seconds = np.asarray(stamps, np.float64).reshape(len(stamps))
        except (TypeError, ValueError) as error:
            raise DataError("parquet lacks data", f"{name}: column {_STAMPS!r} holds no numbers: {error}") from error
        notes = self.check_times(name, seconds, rate)
        off = np.abs(np.diff(seconds) - 1 / rate)
        # Stamps are stored as float32.
        if not notes and (off > _STAMP_TOLERANCE + np.abs(seconds[1:]) * np.finfo(np.float32).eps).any():
            notes.append("time stamps are not one frame apart")
        return notes

    def _encode_views(
        self, item: Episode, shots: Mapping[str, list | None], pictures: Sequence[str], rows: int, rate: float
    ) -> tuple[tuple[View, ...], list[float]]:
        """Encode every camera, from pictures or from files; returns the rates that headers state too."""
        files = {key: (file, start) for key, file, start in item.videos}
        headers, views = [], []
        for key, column in shots.items():
            if key in pictures:
                video = self._encode_pictures(column, rate, item.name)
            else:
                file, start = files[key]
                # Several episodes are in one file.
                with local_copy(file, reused=start >= 0) as copy:
                    video, header = self._encode_video(copy, start, rate, item)
                headers.append(header)
            check_rows(item.name, short_name(key), rows, video.num_frames)
            views.append(View(short_name(key), video.data, video.height, video.width))
        return tuple(views), headers

    def _encode_video(self, file: str, start: float, rate: float, item: Episode) -> tuple[Encoded, float]:
        """Encode a file, or the part of it that holds the episode; returns the rate its header states too."""
        if start < 0:
            video, header = encode_file(file, self, rate)
            return video, float(header)
        # Half a frame early, so that rounded times leave no frame out.
        first = max(0.0, start - 0.5 / rate)
        cut = scenes.read_scene(file, first, start + (item.length - 0.5) / rate)
        return encode_video(cut.frames, storable_rate(rate, file), self, item.name), cut.header_fps or rate

    def _encode_pictures(self, column: list, rate: float, name: str) -> Encoded:
        try:
            images = (decode_image(cell["bytes"] or b"") for cell in column)
            return encode_video(rgb_frames(images), storable_rate(rate, name), self, name)
        except (KeyError, TypeError) as error:
            raise DataError("parquet lacks data", f"{name}: a picture is not stored in its table: {error!r}") from error


def _read_table(item: Episode, columns: Sequence[str]) -> dict[str, list]:
    """Read columns of an episode from its table, in the order of frames."""
    parquet = need("pyarrow.parquet", "sources")
    if not remote.is_file(item.table):
        raise DataError("missing parquet", f"{item.table}: no such file")
    with local_copy(item.table, reused=True) as copy:
        return _read_columns(item, columns, parquet, copy)


def _read_columns(item: Episode, columns: Sequence[str], parquet: ModuleType, file: str) -> dict[str, list]:
    try:
        known = parquet.read_schema(file).names
        lacking = [name for name in (*columns, _EPISODE) if name not in known]
        if lacking:
            raise DataError(
                "parquet lacks data", f"{item.table}: no column {', '.join(lacking)}; it has {', '.join(known)}"
            )
        more = [name for name in (_FRAME, _STAMPS) if name in known and name not in columns]
        whole = _open_table(file, os.stat(file).st_mtime_ns, (*columns, *more, _EPISODE))
        numbers = whole[_EPISODE].to_numpy()
        table = whole.take(np.flatnonzero(numbers == item.number))
        table = table.sort_by(_FRAME) if _FRAME in more else table
        content = table.to_pydict()
    except _arrow_errors() as error:
        raise DataError("unreadable parquet", f"{item.table}: {error}") from error
    if table.num_rows != item.length:
        raise DataError(
            "rows do not match frames", f"{item.name}: {table.num_rows} rows, but its metadata say {item.length} frames"
        )
    return content


@functools.lru_cache(maxsize=1)
def _open_table(file: str, changed: int, columns: tuple[str, ...]):
    """Read a table; the last one is kept, since version 3 puts thousands of episodes into one."""
    return need("pyarrow.parquet", "sources").read_table(file, columns=list(dict.fromkeys(columns)))


def _arrow_errors() -> tuple[type[BaseException], ...]:
    """List what Arrow raises on files that it cannot use."""
    return OSError, ValueError, need("pyarrow", "sources").ArrowException


def _column(table: Mapping[str, list], key: str, name: str) -> np.ndarray:
    """Take a column of numbers or lists of numbers as float32 `[L, n]`."""
    try:
        values = np.asarray(table[key], np.float32)
    except (TypeError, ValueError) as error:
        raise DataError("parquet lacks data", f"{name}: column {key!r} is no table of numbers: {error}") from error
    if not values.size:
        raise DataError("parquet lacks data", f"{name}: column {key!r} is empty")
    return values.reshape(len(values), -1)


def _names(info: Mapping, key: str, column: np.ndarray) -> list[str]:
    """Name the dimensions of a column `[L, n]` as the data set does, or else by number."""
    width = column.shape[1]
    names = info["features"].get(key, {}).get("names")
    if isinstance(names, Mapping):
        names = next(iter(names.values()), None)
    if isinstance(names, list) and len(names) == width:
        return [str(name) for name in names]
    return [f"{short_name(key)}.{number}" for number in range(width)]
