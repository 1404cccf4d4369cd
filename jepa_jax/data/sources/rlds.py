"""Robot episodes as RLDS (DROID, Open X-Embodiment), read without TensorFlow.

One record is one episode. The features of its steps are stored under 'steps/...', each as
one list over all steps: pictures as encoded files, numbers flattened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jepa_jax.data.conversion import Noted
from jepa_jax.data.encoding import encode_video, rgb_frames, storable_rate
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import ListError
from jepa_jax.data.sources.examples import Example, read_example
from jepa_jax.data.sources.robots import (
    POSE_NAMES,
    TrajectorySpec,
    check_rows,
    units_of,
)
from jepa_jax.data.trajectories import TrajectoryRecord, View
from jepa_jax.data.video import decode_image

_STEPS = "steps/"
_Values = Mapping[str, list[bytes] | np.ndarray]


@dataclass(frozen=True)
class Fields:
    """Say which features of the steps mean what; names without 'steps/'.

    Args:
        views: (name of the view, feature) pairs.
        state: features that make up the state, in order.
        action: recorded actions; '' for none.
        instruction: the task in words, the first that is not empty counts.
        rate: steps per second; RLDS does not store it. 0.0 if it must be given.
        rotation: as in `trajectories.ROTATIONS`.
        gripper_range: value when fully open and fully closed, if known; numbers named 'gripper', or
            the seventh of a pose, are then rescaled to 0 and 1, in states only.
    """

    views: tuple[tuple[str, str], ...] = ()
    state: tuple[str, ...] = ()
    action: str = ""
    instruction: tuple[str, ...] = ("language_instruction", "observation/natural_language_instruction")
    rate: float = 0.0
    rotation: str = "none"
    gripper_range: tuple[float, float] | None = None


PRESETS = {
    "none": Fields(),
    "droid": Fields(
        views=(
            ("exterior_1", "observation/exterior_image_1_left"),
            ("exterior_2", "observation/exterior_image_2_left"),
            ("wrist", "observation/wrist_image_left"),
        ),
        state=("observation/cartesian_position", "observation/gripper_position"),
        instruction=("language_instruction", "language_instruction_2", "language_instruction_3"),
        rate=15.0,
        rotation="xyz euler",
        gripper_range=(0.0, 1.0),
    ),
    "bridge": Fields(
        views=(("image", "observation/image_0"),),
        state=("observation/state",),
        action="action",
        rate=5.0,
        rotation="xyz euler",
        gripper_range=(1.0, 0.0),
    ),
}


@dataclass(frozen=True)
class RldsSpec(TrajectorySpec):
    """Say how RLDS episodes are read and stored.

    Args:
        size, gop, crf, min_frames, max_turn, max_gap: as in `TrajectorySpec`.
        fields: which features mean what.

    Raises:
        ListError: no view, no state or no rate is named.
    """

    fields: Fields = Fields()

    def __post_init__(self):
        lacking = [
            flag
            for flag, given in (
                ("--view", self.fields.views),
                ("--state", self.fields.state),
                ("--rate", self.fields.rate > 0),
            )
            if not given
        ]
        if lacking:
            raise ListError(f"give {', '.join(lacking)}, or a --preset of {', '.join(sorted(set(PRESETS) - {'none'}))}")

    def convert(self, item: Example) -> Noted:
        """Make the record of one episode.

        Raises:
            DataError: 'example lacks data', 'rows do not match frames', as in `examples.read_example`,
                `video.decode_image`, `encoding.encode_video` or `TrajectorySpec.checked`.
        """
        fields, values = self.fields, read_example(item)
        pictures = {view: _feature(values, feature, item.name, list) for view, feature in fields.views}
        length = len(next(iter(pictures.values())))
        for view, shots in pictures.items():
            check_rows(item.name, view, length, len(shots))
        columns = {feature: _rows(values, feature, length, item.name) for feature in fields.state}
        states = np.concatenate(list(columns.values()), 1)
        actions = _rows(values, fields.action, length, item.name) if fields.action else None
        views = tuple(self._encode(view, shots, item.name) for view, shots in pictures.items())
        names = tuple(
            f"{feature.rpartition('/')[2]}.{k}" for feature, rows in columns.items() for k in range(rows.shape[1])
        )
        posed = fields.rotation != "none"
        if posed and states.shape[1] == len(POSE_NAMES):
            names = POSE_NAMES
        action_names = tuple(f"action.{k}" for k in range(actions.shape[1])) if actions is not None else ()
        return self.checked(
            TrajectoryRecord(
                views, states, actions, fields.rate, fields.rate, "true",
                names, units_of(names, posed),
                action_names, ("",) * len(action_names), "robot base" if posed else "unknown", fields.rotation,
                fields.gripper_range, _instruction(values, fields.instruction), item.name, {},
            )
        )  # fmt: skip

    def _encode(self, view: str, shots: Sequence[bytes], name: str) -> View:
        try:
            frames = rgb_frames(decode_image(shot) for shot in shots)
            video = encode_video(frames, storable_rate(self.fields.rate, name), self, name)
        except DataError as error:
            raise DataError(error.reason, f"{name}, view {view}: {error}") from error
        return View(view, video.data, video.height, video.width)


def with_views(fields: Fields, names: Sequence[str]) -> Fields:
    """Keep some of a preset's views.

    Raises:
        ListError: there is none of that name.
    """
    known = dict(fields.views)
    if not set(names) <= set(known):
        raise ListError(f"views {', '.join(names)} asked for, but the preset has {', '.join(known) or 'none'}")
    return replace(fields, views=tuple((name, known[name]) for name in names))


def _feature(values: _Values, feature: str, name: str, kind: type):
    found = values.get(_STEPS + feature)
    if not isinstance(found, kind) or not len(found):
        what = "encoded pictures" if kind is list else "numbers"
        have = ", ".join(sorted(key.removeprefix(_STEPS) for key, value in values.items() if isinstance(value, kind)))
        raise DataError(
            "example lacks data", f"{name}: feature {feature!r} holds no {what}; those that do: {have or 'none'}"
        )
    return found


def _rows(values: _Values, feature: str, length: int, name: str) -> np.ndarray:
    """Take numbers as float32 `[L, n]`."""
    numbers = _feature(values, feature, name, np.ndarray)
    if len(numbers) % length:
        raise DataError(
            "rows do not match frames", f"{name}: {len(numbers)} numbers of {feature!r} for {length} frames"
        )
    return numbers.reshape(length, -1).astype(np.float32)


def _instruction(values: _Values, features: Sequence[str]) -> str | None:
    texts = (text for feature in features for text in values.get(_STEPS + feature, ()) if isinstance(text, bytes))
    return next((text.decode(errors="replace") for text in texts if text), None)
