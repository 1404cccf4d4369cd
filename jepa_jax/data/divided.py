"""Shards of features in which every frame is a record of its own, so that a clip is read without the rest.

A shard ending in `SUFFIX` holds, for each trajectory, the tokens of its encoded frames, view after
view, one record per frame, and then the trajectory itself, in which a view's `latents.tokens` is the
number of the record with its first frame. The last record of a shard lists the numbers of the
trajectories, as msgpack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgpack
import numpy as np

from jepa_jax.data.errors import RecordError
from jepa_jax.data.trajectories import TrajectoryRecord

SUFFIX = ".frames.array_record"


def is_divided(path: str) -> bool:
    """Tell by its name whether a shard is of this kind."""
    return path.endswith(SUFFIX)


def split_frames(record: TrajectoryRecord, number: int) -> tuple[list[bytes], TrajectoryRecord]:
    """Take the frames out of a trajectory that is about to be written.

    Args:
        record: its features are at hand.
        number: of the record that comes next in the shard.

    Returns:
        The records of its frames, in order, and the trajectory that follows them.
    """
    frames, views = [], []
    for view in record.views:
        if view.latents is not None:
            first = number + len(frames)
            frames += [row.tobytes() for row in view.latents.rows(view.latents.frames)]
            view = view._replace(latents=view.latents._replace(tokens=first))
        views.append(view)
    return frames, record._replace(views=tuple(views))


def find_frames(record: TrajectoryRecord, read: Callable[[Sequence[int]], list[bytes]]) -> TrajectoryRecord:
    """Give a trajectory that was read the means to read its frames.

    Args:
        record: from a shard.
        read: returns the records of that shard with these numbers.
    """
    views = [
        view._replace(latents=view.latents._replace(tokens=_Frames(view.latents.tokens, read)))
        if view.latents is not None and isinstance(view.latents.tokens, int)
        else view
        for view in record.views
    ]
    return record._replace(views=tuple(views))


class _Frames:
    """Read frames by their place among those of a view."""

    def __init__(self, first: int, read: Callable[[Sequence[int]], list[bytes]]):
        self._first, self._read = first, read

    def __call__(self, places: Sequence[int]) -> list[bytes]:
        return self._read([self._first + int(place) for place in places])


def pack_index(numbers: Sequence[int]) -> bytes:
    """Write the last record of a shard: the numbers of its trajectories."""
    return msgpack.packb(list(numbers))


def unpack_index(payload: bytes, num_records: int) -> np.ndarray:
    """Read the last record of a shard of so many records; int64.

    Raises:
        RecordError: it is no such list.
    """
    try:
        numbers = np.array(msgpack.unpackb(payload), np.int64)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise RecordError(f"its last record is no list of trajectories: {error}") from error
    if numbers.ndim != 1 or (np.diff((-1, *numbers, num_records - 1)) <= 0).any():
        raise RecordError(f"its last record is no list of trajectories within its {num_records} records")
    return numbers
