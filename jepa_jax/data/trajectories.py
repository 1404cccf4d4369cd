"""Robot trajectories: their schema and their bytes.

A trajectory is a msgpack map, one record of a shard:

    version       int    schema version, SCHEMA_VERSION
    kind          str    'trajectory'
    views         list   one map per camera, each with as many frames as there are states:
        name          str    'left', 'right', 'wrist', ...
        data          bytes  H.264 in mp4, at control_rate; empty where latents replace it
        height,width  int    pixels, as decoded
        extrinsics    array [L, 6] or nil   pose of the camera in `frame`: x y z (m), three angles (rad)
        latents       map or nil            features of the frames; see `latents`
    states        array [L, S]  row k belongs to frame k
    actions       array [L, A] or nil   as recorded, the gripper too; used where a robot's source is 'recorded', while
                         others, and nil, mean that actions are derived from the states
    control_rate  float  rows per second in truth, Hz
    header_fps    float  rows per second as the header of the source's video file states
    rate          str    'header' or 'true': which of the two sampling rules count with
    state_names, state_units, action_names, action_units   lists of str, one per dimension
    frame         str    what positions and angles are relative to, 'robot base' or 'unknown'
    rotation      str    ROTATIONS: how three of the state's numbers say an orientation
    gripper_range [low, high] or nil   the state's gripper when fully open and fully closed: 0 and 1, since sources
                         rescale what they know; nil: unknown, and as recorded
    instruction   str or nil   the task in words
    source_id     str    where the trajectory was made from
    extras        map    name to array [L, K]: what else is known of each row, such as where a simulator's objects
                         are; for reports only, no model is given it

An array is the map {shape: list of int, data: bytes}, float32, little-endian, row-major.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jepa_jax.data import latents
from jepa_jax.data.errors import RecordError
from jepa_jax.data.latents import Latents

SCHEMA_VERSION = 2
KIND = "trajectory"
# 'xyz euler' is extrinsic: R = Rz(c) Ry(b) Rx(a), angles at places 3..5 of a state.
ROTATIONS = ("xyz euler", "none")
RATES = ("header", "true")
# A header that is off by more than this part misleads a loader that believes it.
_RATE_TOLERANCE = 0.1
_TEXTS = ("state_names", "state_units", "action_names", "action_units")


class View(NamedTuple):
    """Hold what one camera saw; the module docstring explains the fields."""

    name: str
    data: bytes
    height: int
    width: int
    extrinsics: np.ndarray | None = None
    latents: Latents | None = None


class TrajectoryRecord(NamedTuple):
    """Hold one trajectory; the module docstring explains the fields."""

    views: tuple[View, ...]
    states: np.ndarray
    actions: np.ndarray | None
    control_rate: float
    header_fps: float
    rate: str
    state_names: tuple[str, ...]
    state_units: tuple[str, ...]
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    frame: str
    rotation: str
    gripper_range: tuple[float, float] | None
    instruction: str | None
    source_id: str
    extras: Mapping[str, np.ndarray]

    @property
    def kind(self) -> str:
        """Name the kind of record."""
        return KIND

    @property
    def num_frames(self) -> int:
        """Count the frames, which are as many as the states."""
        return len(self.states)

    @property
    def fps(self) -> float:
        """Return the true rate, rows per second."""
        return self.control_rate

    @property
    def sampling_fps(self) -> float:
        """Return the rate that sampling rules count with, rows per second."""
        return self.header_fps if self.rate == "header" else self.control_rate

    @property
    def seconds(self) -> float:
        """Return how long the trajectory lasts."""
        return self.num_frames / self.control_rate

    @property
    def num_features(self) -> int:
        """Count the frames whose features are stored, over all views."""
        return sum(len(view.latents.frames) for view in self.views if view.latents)

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what is odd about the trajectory."""
        found = []
        if abs(self.header_fps / self.control_rate - 1) > _RATE_TOLERANCE:
            # Rounded, so that a report counts them together.
            true, stated = round(self.control_rate), round(self.header_fps)
            found.append(f"video header says {stated} frames/s, recorded at {true} Hz")
        if not any(view.extrinsics is not None for view in self.views):
            found.append("no extrinsics")
        return tuple(found)


def to_fields(record: TrajectoryRecord) -> dict:
    """Turn a trajectory into what msgpack can write.

    Raises:
        RecordError: its parts do not fit together.
    """
    _check(record)
    fields = {"version": SCHEMA_VERSION, "kind": KIND, **record._asdict()}
    fields["views"] = [_pack_view(view) for view in record.views]
    fields["states"], fields["actions"] = _pack_array(record.states), _pack_array(record.actions)
    fields["extras"] = {name: _pack_array(array) for name, array in record.extras.items()}
    return fields


def from_fields(fields: Mapping) -> TrajectoryRecord:
    """Read a trajectory back.

    Args:
        fields: made by `to_fields`.

    Returns:
        The trajectory.

    Raises:
        RecordError: another schema version, missing or unknown fields, or parts that
            do not fit together.
    """
    fields = dict(fields)
    version, _ = fields.pop("version", None), fields.pop("kind", None)
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"trajectory has schema version {version!r}; this code reads version {SCHEMA_VERSION}: "
            "make the shards again with `python -m jepa_jax.prepare`"
        )
    _check_keys("trajectory", fields, TrajectoryRecord)
    try:
        length = fields["states"]["shape"][0]
        views = tuple(_unpack_view(view, length) for view in fields["views"])
        texts = {key: tuple(fields[key]) for key in _TEXTS}
        gripper = None if fields["gripper_range"] is None else tuple(map(float, fields["gripper_range"]))
        extras = {name: _unpack_array(array, f"extra {name!r}") for name, array in fields["extras"].items()}
    except (AttributeError, TypeError, KeyError, IndexError) as error:
        raise RecordError(f"trajectory has a field of the wrong type: {error}") from error
    states, actions = _unpack_array(fields["states"], "states"), _unpack_array(fields["actions"], "actions")
    record = TrajectoryRecord(
        **{**fields, **texts, "views": views, "states": states, "actions": actions, "gripper_range": gripper, "extras": extras}
    )
    _check(record)
    return record


def _pack_view(view: View) -> dict:
    stored = None if view.latents is None else view.latents.packed()
    return {**view._asdict(), "extrinsics": _pack_array(view.extrinsics), "latents": stored}


def _unpack_view(fields: Mapping, length: int) -> View:
    if not isinstance(fields, Mapping):
        raise RecordError(f"view is a {type(fields).__name__}, expected a map")
    _check_keys("view", fields, View)
    name = fields["name"]
    extrinsics = _unpack_array(fields["extrinsics"], f"extrinsics of {name!r}")
    return View(**{**fields, "extrinsics": extrinsics, "latents": latents.unpack(fields["latents"], length, name)})


def _check_keys(what: str, fields: Mapping, expected: type) -> None:
    if set(fields) != set(expected._fields):
        raise RecordError(f"{what} has fields {sorted(fields)}, expected {sorted(expected._fields)}")


def _pack_array(array: np.ndarray | None) -> dict | None:
    if array is None:
        return None
    return {"shape": list(array.shape), "data": np.ascontiguousarray(array, "<f4").tobytes()}


def _unpack_array(fields: Mapping | None, name: str) -> np.ndarray | None:
    if fields is None:
        return None
    try:
        return np.frombuffer(fields["data"], "<f4").reshape(fields["shape"]).astype(np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{name} is no float32 array: {error}") from error


def _check(record: TrajectoryRecord) -> None:
    """Raise RecordError unless all parts fit together."""
    if not isinstance(record.states, np.ndarray) or record.states.ndim != 2 or not record.states.size:
        raise RecordError(f"{record.source_id}: states must be [L, S], got {np.shape(record.states)}")
    length = len(record.states)
    names = [view.name for view in record.views]
    if not names or len(set(names)) < len(names) or not all(view.data or view.latents for view in record.views):
        raise RecordError(
            f"{record.source_id}: views are {names}; give at least one, all different, each with a video or latents"
        )
    for view in record.views:
        _check_array(record, f"extrinsics of {view.name!r}", view.extrinsics, length, 6)
    _check_array(record, "states", record.states, length, len(record.state_names))
    _check_array(record, "actions", record.actions, length, len(record.action_names))
    for name, extra in record.extras.items():
        _check_array(record, f"extra {name!r}", extra, length, np.shape(extra)[-1] if np.ndim(extra) == 2 else 1)
    for names, units in ((record.state_names, record.state_units), (record.action_names, record.action_units)):
        if len(names) != len(units):
            raise RecordError(f"{record.source_id}: {len(names)} dimensions {list(names)} have {len(units)} units")
    for name, rate in (("control_rate", record.control_rate), ("header_fps", record.header_fps)):
        if not (math.isfinite(rate) and rate > 0):
            raise RecordError(f"{record.source_id}: {name} is {rate}; it must be above 0 per second")
    for name, value, allowed in (("rate", record.rate, RATES), ("rotation", record.rotation, ROTATIONS)):
        if value not in allowed:
            raise RecordError(f"{record.source_id}: {name} is {value!r}; allowed: {', '.join(allowed)}")
    if record.rotation != "none" and record.states.shape[1] < 6:
        raise RecordError(f"{record.source_id}: states of {record.states.shape[1]} numbers cannot hold a pose")


def _check_array(record: TrajectoryRecord, name: str, array: np.ndarray | None, length: int, width: int) -> None:
    if array is None:
        return
    if array.shape != (length, width):
        raise RecordError(f"{record.source_id}: {name} is {list(array.shape)}, expected {[length, width]}")
    if not np.isfinite(array).all():
        raise RecordError(f"{record.source_id}: {name} holds numbers that are not finite")
