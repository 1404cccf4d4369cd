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

from jepa_jax.data import remote
from jepa_jax.data.copies import local_copy
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import LIST_SUFFIXES, ListError, Rejected, place_in_list, read_list
from jepa_jax.data.manifest import reject_duplicates
from jepa_jax.data.poses import GRIPPER_RANGE
from jepa_jax.data.sources.libraries import need
from jepa_jax.data.sources.robots import POSE_NAMES, POSE_UNITS, TrajectorySpec, check_rows, median_rate
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
        return self.path


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
    folders: list[str] = []
    for source in sources:
        found = _walk(source) if remote.is_folder(source) else _read_index(source)
        if not found:
            raise ListError(
                f"{source!r} holds no {_H5}; name the folder of the raw DROID release, or a list of folders"
            )
        folders += found
    seen: dict[str, str] = {}
    items: list[Trajectory | Rejected] = []
    for folder in folders:
        first = seen.setdefault(folder if remote.is_remote(folder) else os.path.realpath(folder), folder)
        alias = first != folder
        items.append(Rejected(folder, "duplicate id", f"{folder} is {first} again") if alias else Trajectory(folder))
    return reject_duplicates(items)


def _walk(source: str) -> list[str]:
    if remote.is_remote(source):
        return [os.path.dirname(file) for file in remote.find(source, lambda name: name == _H5)]
    # Trajectories have many folders below them that need not be looked into.
    found = []
    for folder, below, names in os.walk(source, followlinks=True):
        below.sort()
        if _H5 in names:
            found.append(folder)
            below.clear()
    return sorted(found)


def _read_index(source: str) -> list[str]:
    if not (source.lower().endswith(LIST_SUFFIXES) and remote.is_file(source)):
        raise ListError(f"{source!r} is no folder and no list of folders ({', '.join(LIST_SUFFIXES)}); check the path")
    lines = [line.strip() for line in read_list(source).splitlines() if line.strip()]
    # A folder with spaces in its name is taken whole where it exists.
    return [place_in_list(source, line if os.path.isdir(line) else line.split(" ")[0]) for line in lines]


@dataclass(frozen=True)
class DroidSpec(TrajectorySpec):
    """Say how trajectories of the raw DROID release are read and stored.

    Args:
        size, gop, crf, min_frames, max_turn: as in `TrajectorySpec`.
        views: of 'left', 'right' and 'wrist', in the order they are stored.
        rate: what sampling counts with: 'header' (what the mp4 states, the official
            rule), 'true' (measured from time stamps), or a number of Hz as text.
        row_tolerance: rows and frames whose numbers differ by so many are cut to the
            shorter; more are refused.
    """

    views: tuple[str, ...] = ("left",)
    rate: str = "header"
    row_tolerance: int = 0

    def convert(self, item: Trajectory) -> TrajectoryRecord:
        """Make the record of one folder.

        Raises:
            DataError: 'missing json', 'unreadable json', 'json lacks a view', 'missing h5', 'unreadable h5',
                'h5 lacks data', 'missing mp4', 'no time stamps', 'rows do not match frames', as in
                `TrajectorySpec.checked`, or as in `transcode.encode_file` and `copies.local_copy`.
        """
        metadata = _read_metadata(item.path, self.views)
        places = {view: _video_path(item.path, metadata[_key(view)]) for view in self.views}
        with contextlib.ExitStack() as stack:
            files = {view: stack.enter_context(local_copy(place)) for view, place in places.items()}
            return self._convert(item, metadata, files)

    def _convert(self, item: Trajectory, metadata: dict, files: dict[str, str]) -> TrajectoryRecord:
        """Make the record from the metadata and the videos by view."""
        states, extrinsics, measured = _read_h5(item.path, {view: _camera(file) for view, file in files.items()})
        frames = {view: _count_frames(file) for view, file in files.items()}
        for view, (count, _) in frames.items():
            check_rows(item.path, view, len(states), count, self.row_tolerance)
        length = min(len(states), *(count for count, _ in frames.values()))
        header = frames[self.views[0]][1]
        control = self._control_rate(item.path, header, measured)
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
                instruction if isinstance(instruction, str) else None, item.path, {},
            )
        )  # fmt: skip

    def _control_rate(self, name: str, header: float, measured: float | None) -> float:
        if self.rate == "header":
            return measured or header
        if self.rate != "true":
            return float(self.rate)
        if measured is None:
            raise DataError("no time stamps", f"{name}: {_H5} holds no usable time stamps; give --rate header or in Hz")
        return measured


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


def _read_h5(folder: str, cameras: dict[str, str]) -> tuple[np.ndarray, dict[str, np.ndarray | None], float | None]:
    """Read states float32 `[L, 7]`, extrinsics float32 `[L, 6]` by view, and the rate of the time stamps, Hz."""
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
            rate = _measured_rate(file)
    # h5py reports damage as either.
    except (OSError, RuntimeError) as error:
        raise DataError("unreadable h5", f"{path}: {error}") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise DataError("h5 lacks data", f"{path}: {error}") from error
    gripper = np.reshape(gripper, (-1, 1))
    if pose.ndim != 2 or pose.shape[1] != 6 or len(gripper) != len(pose) or not len(pose):
        raise DataError(
            "h5 lacks data",
            f"{path}: poses are {list(pose.shape)} and grippers {list(gripper.shape)}; expected [L, 6] and [L]",
        )
    return np.concatenate([pose, gripper], 1).astype(np.float32), extrinsics, rate


def _measured_rate(file) -> float | None:
    """Return rows per second by the robot's clock, or else by the control loop's; None if neither is usable."""
    if _CLOCK + "seconds" in file and _CLOCK + "nanos" in file:
        seconds, nanos = (np.asarray(file[_CLOCK + part][()], np.float64) for part in ("seconds", "nanos"))
        stamps = (seconds - seconds[:1]) + nanos * 1e-9
    elif _STEP_START in file:
        stamps = np.asarray(file[_STEP_START][()], np.float64) * 1e-3
    else:
        return None
    rate = median_rate(stamps)
    return rate if rate and rate < _MAX_RATE else None
