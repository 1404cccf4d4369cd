"""The raw DROID release: one folder per trajectory with trajectory.h5, metadata json and recordings/MP4.

A folder holds

    trajectory.h5           observation/robot_state/{cartesian_position [L, 6], gripper_position [L]},
                            observation/camera_extrinsics/<camera>_left [L, 6], observation/timestamp/...
    *.json                  left_mp4_path, right_mp4_path, wrist_mp4_path; the task in words
    recordings/MP4/*.mp4    one frame per row; <camera>.mp4
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jepa_jax.data import folders, remote
from jepa_jax.data.conversion import Noted
from jepa_jax.data.copies import local_copy
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import (
    LIST_SUFFIXES,
    ListError,
    Rejected,
    place_in_list,
    read_list,
)
from jepa_jax.data.manifest import reject_duplicates
from jepa_jax.data.poses import GRIPPER_RANGE
from jepa_jax.data.sources.libraries import need
from jepa_jax.data.sources.robots import (
    POSE_NAMES,
    POSE_UNITS,
    TrajectorySpec,
    check_rows,
    is_same_rate,
    median_rate,
    snap_rate,
)
from jepa_jax.data.trajectories import TrajectoryRecord, View
from jepa_jax.data.transcode import encode_file
from jepa_jax.data.video import probe

VIEWS = ("left", "right", "wrist")
_H5 = "trajectory.h5"
_VIDEOS = "recordings/MP4/"
_STATE = "observation/robot_state/"
_CLOCK = "observation/timestamp/robot_state/robot_timestamp_"
_STEP_START = "observation/timestamp/control/step_start"
# Time stamps that say more are in another unit than DROID's.
_MAX_RATE = 1000.0


class Trajectory(NamedTuple):
    """Name the folder of one trajectory."""

    path: str

    @property
    def name(self) -> str:
        """Name the trajectory in reports and records."""
        return folders.printable(self.path)


def list_droid(sources: Sequence[str]) -> list[Trajectory | Rejected]:
    """Find trajectories.

    Args:
        sources: folders, searched for trajectory.h5, or indices: text files with the
            folder of one trajectory as the first column of each line (official format).
            Both may be behind URLs; in an index there, relative paths count from its folder.

    Returns:
        One item per folder, sorted within each source; one that was found before,
        under another name too, is rejected as 'duplicate id'.

    Raises:
        ListError: a source does not exist or holds no trajectory.

    Source: app/vjepa_droid/droid.py
    """
    need("h5py", "sources")
    paths: list[str] = []
    for source in sources:
        found = _walk(source) if remote.is_folder(source) else _read_index(source)
        if not found:
            raise ListError(
                f"{source!r} holds no {_H5}; name the folder of the raw DROID release, or a list of folders"
            )
        paths += found
    seen: dict[str, str] = {}
    items: list[Trajectory | Rejected] = []
    for path in paths:
        first = seen.setdefault(path if remote.is_remote(path) else folders.real_path(path), path)
        alias, item = first != path, Trajectory(path)
        items.append(Rejected(item.name, "duplicate id", f"{item.name} is {first} again") if alias else item)
    return reject_duplicates(items)


def index_text(items: Sequence[Trajectory | Rejected], absolute: bool) -> str:
    """Write the list of folders that `list_droid` reads, so that they need not be searched for again.

    Args:
        items: of `list_droid`.
        absolute: for a list that is read elsewhere.
    """
    names = [item.path if isinstance(item, Trajectory) else item.name for item in items]
    return "".join(f"{remote.absolute(name) if absolute else name}\n" for name in names)


def _walk(source: str) -> list[str]:
    if remote.is_remote(source):
        return [os.path.dirname(file) for file in remote.find(source, lambda name: name == _H5)]
    # Trajectories have many folders below them that need not be looked into.
    found = []
    for folder, below, names in folders.walk(source):
        if _H5 in names:
            found.append(folder)
            below.clear()
    return sorted(found)


def _read_index(source: str) -> list[str]:
    if not (source.lower().endswith(LIST_SUFFIXES) and remote.is_file(source)):
        raise ListError(f"{source!r} is no folder and no list of folders ({', '.join(LIST_SUFFIXES)}); check the path")
    lines = [line.strip() for line in read_list(source).splitlines() if line.strip()]
    # A folder with spaces in its name is taken whole where it exists.
    return [_place(source, line) for line in lines]


def _place(source: str, line: str) -> str:
    whole = place_in_list(source, line)
    return whole if " " not in line or remote.is_folder(whole) else place_in_list(source, line.split(" ")[0])


@dataclass(frozen=True)
class DroidSpec(TrajectorySpec):
    """Say how trajectories of the raw DROID release are read and stored.

    Args:
        size, gop, crf, min_frames, max_turn, max_gap: as in `TrajectorySpec`.
        views: of 'left', 'right' and 'wrist', in the order they are stored.
        rate: what sampling counts with: 'header' (what the mp4 states, the official
            rule), 'true' (measured from time stamps), or a number of Hz as text.
        row_tolerance: so many rows beyond the last frame are cut off, and then one frame beyond
            the last row is too; what differs by more is refused.
    """

    views: tuple[str, ...] = ("left",)
    rate: str = "header"
    # The exporter of the release leaves out the last frame of many recordings; row k still belongs to frame k.
    row_tolerance: int = 2

    def convert(self, item: Trajectory) -> Noted:
        """Make the record of one folder.

        Raises:
            DataError: 'missing json', 'unreadable json', 'json lacks a view', 'missing h5', 'unreadable h5',
                'h5 lacks data', 'missing mp4', 'no time stamps', 'rows do not match frames', 'views differ in rate',
                as in `TrajectorySpec.checked` and `check_times`, or as in `transcode.encode_file` and
                `copies.local_copy`.
        """
        metadata = _read_metadata(item.path, self.views)
        places = {view: _video_path(item.path, metadata[_key(view)]) for view in self.views}
        with contextlib.ExitStack() as stack:
            files = {view: stack.enter_context(local_copy(place)) for view, place in places.items()}
            return self._convert(item, metadata, files)

    def _convert(self, item: Trajectory, metadata: dict, files: dict[str, str]) -> Noted:
        """Make the record from the metadata and the videos by view."""
        states, extrinsics, stamps = _read_h5(item.path, {view: _camera(file) for view, file in files.items()})
        frames = {view: _count_frames(file) for view, file in files.items()}
        counts = [count for count, _ in frames.values()]
        for view, (count, _) in frames.items():
            check_rows(item.name, view, len(states), count, self.row_tolerance)
        length = min(len(states), *counts)
        header = self._header_rate(item.name, frames)
        control, notes = self._control_rate(item.name, header, stamps)
        notes += _cut_notes(len(states), counts)
        videos = {view: encode_file(file, self, control, limit=length)[0] for view, file in files.items()}
        views = tuple(
            View(view, video.data, video.height, video.width, _first(extrinsics[view], length))
            for view, video in videos.items()
        )
        instruction = metadata.get("current_task") or metadata.get("language_instruction")
        return self.checked(
            TrajectoryRecord(
                views, states[:length], None, control, header, "header" if self.rate == "header" else "true",
                POSE_NAMES, POSE_UNITS, (), (), "robot base", "xyz euler", GRIPPER_RANGE,
                instruction if isinstance(instruction, str) else None, item.name, {},
            ),
            notes,
        )  # fmt: skip

    def _header_rate(self, name: str, frames: dict[str, tuple[int, float]]) -> float:
        """Return the rate that the headers state, frames per second: sampling by it needs one for all views."""
        rates = {view: rate for view, (_, rate) in frames.items()}
        first = rates[self.views[0]]
        if self.rate == "header" and not all(is_same_rate(rate, first) for rate in rates.values()):
            stated = ", ".join(f"{view} {rate:g}" for view, rate in rates.items())
            raise DataError(
                "views differ in rate",
                f"{name}: the video headers state {stated} frames/s, and --rate header samples by one of them: give "
                "--rate true, a rate in Hz, or fewer --views",
            )
        return first

    def _control_rate(self, name: str, header: float, stamps: np.ndarray | None) -> tuple[float, list[str]]:
        """Return rows per second, and notes on how sure that is."""
        measured = None if stamps is None else median_rate(stamps)
        if not measured or measured >= _MAX_RATE:
            if self.rate == "true":
                raise DataError(
                    "no time stamps", f"{name}: {_H5} holds no usable time stamps; give --rate header or in Hz"
                )
            given = self.rate != "header"
            taken = "--rate" if given else "the rate of the video header"
            return float(self.rate) if given else header, [f"no time stamps, {taken} taken for the robot's"]
        notes = self.check_times(name, stamps, measured)
        return (float(self.rate) if self.rate not in ("header", "true") else snap_rate(measured, header)), notes


def _cut_notes(rows: int, counts: Sequence[int]) -> list[str]:
    notes = []
    if (more := rows - min(counts)) > 0:
        notes.append(f"{more} row{'s' * (more > 1)} more than frames, cut at the end")
    if max(counts) > rows:
        notes.append("1 frame more than rows, cut at the end")
    return notes


def _key(view: str) -> str:
    return f"{view}_mp4_path"


def _first(array: np.ndarray | None, length: int) -> np.ndarray | None:
    return None if array is None else array[:length]


def _read_metadata(folder: str, views: Sequence[str]) -> dict:
    """Read the first json that names the videos of all views; the official loader takes whichever is listed first."""
    files = remote.glob(os.path.join(glob.escape(folder), "*.json"))
    if not files:
        raise DataError("missing json", f"{folder}: holds no metadata *.json")
    lacking = ""
    for file in files:
        try:
            content = json.loads(remote.read_text(file))
        except (OSError, ValueError) as error:
            lacking = lacking or f"{file} is no readable JSON: {error}"
            continue
        missing = [_key(view) for view in views if not isinstance(content, dict) or not content.get(_key(view))]
        if not missing:
            return content
        lacking = f"{file} lacks {', '.join(missing)}"
    reason = "json lacks a view" if " lacks " in lacking else "unreadable json"
    raise DataError(reason, f"{folder}: {lacking}")


def _video_path(folder: str, value: str) -> str:
    name = str(value).replace("\\", "/").rpartition(_VIDEOS)[2]
    path = os.path.join(folder, _VIDEOS, name)
    if not remote.is_file(path):
        raise DataError("missing mp4", f"{path}: no such file, although the metadata name it")
    return path


def _camera(file: str) -> str:
    return os.path.basename(file).split(".")[0]


def _count_frames(file: str) -> tuple[int, float]:
    """Return a file's frames and the rate its header states, frames per second."""
    try:
        info = probe(file)
    except DataError as error:
        raise DataError(error.reason, f"{file}: {error}") from error
    if not info.fps > 0:
        raise DataError("no frame rate", f"{file}: its header states no frame rate")
    return info.num_frames, info.fps


def _read_h5(
    folder: str, cameras: dict[str, str]
) -> tuple[np.ndarray, dict[str, np.ndarray | None], np.ndarray | None]:
    """Read states float32 `[L, 7]`, extrinsics float32 `[L, 6]` by view, and time stamps float64 `[L]`, seconds."""
    h5py = need("h5py", "sources")
    path = os.path.join(folder, _H5)
    if not remote.is_file(path):
        raise DataError("missing h5", f"{path}: no such file")
    try:
        with local_copy(path) as copy, h5py.File(copy, "r") as file:
            pose, gripper = file[_STATE + "cartesian_position"][()], file[_STATE + "gripper_position"][()]
            extrinsics = {
                view: np.asarray(file[key][()], np.float32)
                if (key := f"observation/camera_extrinsics/{camera}_left") in file
                else None
                for view, camera in cameras.items()
            }
            stamps = _read_stamps(file)
    # h5py reports damage as any of them.
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError("unreadable h5", f"{path}: {error}") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise DataError("h5 lacks data", f"{path}: {error}") from error
    gripper = np.reshape(gripper, (-1, 1))
    if pose.ndim != 2 or pose.shape[1] != 6 or len(gripper) != len(pose) or not len(pose):
        raise DataError(
            "h5 lacks data",
            f"{path}: poses are {list(pose.shape)} and grippers {list(gripper.shape)}; expected [L, 6] and [L]",
        )
    if stamps is not None and stamps.shape != (len(pose),):
        raise DataError("h5 lacks data", f"{path}: {list(stamps.shape)} time stamps for {len(pose)} rows")
    return np.concatenate([pose, gripper], 1).astype(np.float32), extrinsics, stamps


def _read_stamps(file) -> np.ndarray | None:
    """Read when rows were recorded by the robot's clock, or else by the control loop's; None if there is neither."""
    if _CLOCK + "seconds" in file and _CLOCK + "nanos" in file:
        seconds, nanos = (np.asarray(file[_CLOCK + part][()], np.float64) for part in ("seconds", "nanos"))
        if seconds.shape != nanos.shape:
            raise KeyError(f"{list(seconds.shape)} seconds and {list(nanos.shape)} nanos of the clock")
        return (seconds - seconds[:1]) + nanos * 1e-9
    if _STEP_START in file:
        return np.asarray(file[_STEP_START][()], np.float64) * 1e-3
    return None
