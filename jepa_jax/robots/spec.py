"""What the numbers in a robot's states and actions mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jepa_jax.robots.rotations import NO_ROTATION, ROTATIONS

FRAMES = ("base", "camera", "tool")
MODES = ("delta", "absolute")
SOURCES = ("states", "recorded")
LAYOUTS = ("auto", "states", "own")
_TEXTS = ("state_names", "state_units", "action_names", "action_units", "planned", "absolute")
_NUMBERS = ("state_scale", "action_scale", "action_low", "action_high", "gripper_range")
_PLACES = ("position", "rotation_at", "gripper")


class Part(NamedTuple):
    """Name neighbouring numbers of a state: 'position', 'rotation', 'gripper' or 'other', at start..stop - 1."""

    kind: str
    start: int
    stop: int

    @property
    def where(self) -> slice:
        """Return where the numbers are along the last axis."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, kw_only=True)
class RobotSpec:
    """Say what the numbers of a robot mean. Hashable; lists become tuples, whole numbers floats.

    Actions can be laid out like the states: each action number changes the state number at its place. Those derived from
    states are; of recorded ones, and as far as `action_layout` leaves it open, it is believed where they are as many and every
    pair has one name, a name that was made up, or one stated unit, and none has two.

    Attributes:
        name: of the robot, for messages.
        state_names, state_units: one text for each number of a state; '' is an unstated unit.
        action_names, action_units: likewise for an action.
        state_scale, action_scale: numbers are divided by these before a network sees them.
        action_low, action_high: bounds of an action of one step, for planning; () if not known.
        planned: names of the actions that a planner may move; () for all.
        frame: what deltas and poses are relative to: the robot's 'base', the 'camera', or the
            'tool', which is the pose that the action starts from.
        mode: 'delta' is a change, 'absolute' the value to arrive at. In frame 'tool' a pose is
            relative in both modes.
        absolute: names of actions that are absolute though `mode` is 'delta', such as a gripper's.
        source: 'states' derives actions from states; 'recorded' takes those of the record,
            deltas composed over all rows between two samples, absolute ones from the last row.
        position: place of the first of 3 coordinates (2 with rotation 'yaw'), or None.
        rotation: how an orientation is written: 'none' or one of `rotations.ROTATIONS`; a quaternion is x y z w.
        rotation_at: place of its first number, or None.
        gripper: place of the gripper's number, or None.
        gripper_range: low and high limit of that number when actions are applied; () if not known, for none.
        action_layout: of recorded actions: 'states' if they are laid out like the states, 'own' if not, 'auto' to
            believe what names and units say.

    Raises:
        ValueError: a field does not fit; the message names it, its value and what is allowed.
    """

    name: str
    state_names: tuple[str, ...]
    state_units: tuple[str, ...]
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    state_scale: tuple[float, ...]
    action_scale: tuple[float, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    planned: tuple[str, ...]
    frame: str
    mode: str
    source: str
    position: int | None
    rotation: str
    rotation_at: int | None
    gripper: int | None
    gripper_range: tuple[float, ...]
    absolute: tuple[str, ...] = ()
    action_layout: str = "auto"

    def __post_init__(self):
        """Bring fields into their types and check them."""
        self._require(isinstance(self.name, str) and self.name, "name", "a text that is not empty")
        for field in _TEXTS:
            object.__setattr__(self, field, self._texts(field))
        for field in _NUMBERS:
            object.__setattr__(self, field, self._floats(field))
        rotations = (NO_ROTATION, *ROTATIONS)
        choices = {"frame": FRAMES, "mode": MODES, "source": SOURCES, "rotation": rotations, "action_layout": LAYOUTS}
        for field, allowed in choices.items():
            self._require(getattr(self, field) in allowed, field, f"one of {', '.join(map(repr, allowed))}")
        self._check_lengths()
        self._check_bounds()
        self._check_places()
        self._check_frame()
        self._check_layout()
        self._check_absolute()
        if self.source == "states":
            self._check_derivable()

    @property
    def state_dim(self) -> int:
        """Count the numbers of a state."""
        return len(self.state_names)

    @property
    def action_dim(self) -> int:
        """Count the numbers of an action."""
        return len(self.action_names)

    @property
    def integrable(self) -> bool:
        """Say whether actions are laid out like states, so that they can be applied to them."""
        if self.action_layout != "auto":
            return self.action_layout == "states"
        if self.state_dim != self.action_dim or self._foreign_units():
            return False
        return self.source == "states" or all(
            action == state or is_made_up(action) or is_made_up(state) or (unit and unit == expected)
            for action, unit, state, expected in self._pairs()
        )

    @property
    def planned_dims(self) -> tuple[int, ...]:
        """Return the places of the actions that a planner may move, ascending."""
        return tuple(at for at, name in enumerate(self.action_names) if not self.planned or name in self.planned)

    @property
    def absolute_dims(self) -> tuple[int, ...]:
        """Return the places of the actions that say a value to arrive at, ascending."""
        every = self.mode == "absolute"
        return tuple(at for at, name in enumerate(self.action_names) if every or name in self.absolute)

    @property
    def pose_dim(self) -> int:
        """Count the dimensions of space that the robot moves in: 2 with rotation 'yaw', else 3."""
        return 2 if self.rotation == "yaw" else 3

    @property
    def parts(self) -> tuple[Part, ...]:
        """Divide a state into position, rotation, gripper and others, in order and without gaps."""
        parts, end = [], 0
        for part in [*self._known_parts(), Part("other", self.state_dim, self.state_dim)]:
            if part.start > end:
                parts.append(Part("other", end, part.start))
            if part.stop > part.start:
                parts.append(part)
            end = part.stop
        return tuple(parts)

    def part(self, kind: str) -> Part | None:
        """Return the position, rotation or gripper of a state, or None if it has none."""
        return next((part for part in self._known_parts() if part.kind == kind), None)

    def to_json(self) -> dict:
        """Return the fields as plain data; tuples become lists."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_json(cls, fields: Mapping) -> RobotSpec:
        """Build a description from what `to_json` returned.

        Raises:
            ValueError: a field is missing, unknown or wrong.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        needed = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        missing, unknown = sorted(needed - set(fields)), sorted(set(fields) - known)
        if missing or unknown:
            wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(
                unknown
            )
            raise ValueError(
                f"the description of robot {fields.get('name')!r} {' and '.join(wrong)}; it must have the fields "
                f"{', '.join(sorted(known))}"
            )
        return cls(**fields)

    def _known_parts(self) -> list[Part]:
        parts = []
        if self.position is not None:
            parts.append(Part("position", self.position, self.position + self.pose_dim))
        if self.rotation != NO_ROTATION:
            parts.append(Part("rotation", self.rotation_at, self.rotation_at + ROTATIONS[self.rotation].width))
        if self.gripper is not None:
            parts.append(Part("gripper", self.gripper, self.gripper + 1))
        return sorted(parts, key=lambda part: part.start)

    def _require(self, holds: object, field: str, allowed: str) -> None:
        if not holds:
            raise ValueError(f"robot {self.name!r}: {field} is {getattr(self, field)!r}; it must be {allowed}")

    def _texts(self, field: str) -> tuple[str, ...]:
        value = getattr(self, field)
        good = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
        self._require(good, field, "a list of texts")
        return tuple(value)

    def _floats(self, field: str) -> tuple[float, ...]:
        value = getattr(self, field)
        good = isinstance(value, (list, tuple)) and all(
            isinstance(item, (int, float)) and not isinstance(item, bool) and math.isfinite(item) for item in value
        )
        self._require(good, field, "a list of finite numbers")
        return tuple(map(float, value))

    def _check_lengths(self) -> None:
        for kind in ("state", "action"):
            names = getattr(self, f"{kind}_names")
            unique = names and len(set(names)) == len(names) and all(names)
            self._require(unique, f"{kind}_names", "at least one name, all different and not empty")
            for field in (f"{kind}_units", f"{kind}_scale"):
                self._require(len(getattr(self, field)) == len(names), field, f"{len(names)} long, as {kind}_names is")
            scale = getattr(self, f"{kind}_scale")
            self._require(all(number > 0 for number in scale), f"{kind}_scale", "above 0 everywhere")

    def _check_bounds(self) -> None:
        dims = len(self.action_names)
        for field, other in (("action_low", "action_high"), ("action_high", "action_low")):
            # An unknown bound makes sense only on both sides.
            fits = len(getattr(self, field)) in (0, dims) and len(getattr(self, field)) == len(getattr(self, other))
            self._require(fits, field, f"() or {dims} long, as action_names is, and {other} likewise")
        self._require(len(set(self.planned)) == len(self.planned), "planned", "without repetition")
        self._require(set(self.planned) <= set(self.action_names), "planned", f"of {', '.join(self.action_names)}")
        for name, low, high in zip(self.action_names, self.action_low, self.action_high, strict=False):
            if low > high or (low == high and name in self.planned):
                raise ValueError(
                    f"robot {self.name!r}: action_low to action_high of {name!r} is {low:g} to {high:g}; "
                    "low must be below high (equal only for an action that is not planned)"
                )
        low_first = not self.gripper_range or (len(self.gripper_range) == 2 and self.gripper_range[0] < self.gripper_range[1])
        self._require(low_first, "gripper_range", "two numbers, the lower one first, or () if they are not known")

    def _check_places(self) -> None:
        turns = self.rotation != NO_ROTATION
        self._require(
            (self.rotation_at is not None) == turns, "rotation_at",
            f"a place, as rotation is {self.rotation!r}" if turns else f"None, as rotation is {NO_ROTATION!r}",
        )  # fmt: skip
        for field in _PLACES:
            place = getattr(self, field)
            whole = place is None or (isinstance(place, int) and not isinstance(place, bool) and place >= 0)
            self._require(whole, field, "a place from 0 on, or None")
        end, before = 0, ""
        for part in self._known_parts():
            field = "rotation_at" if part.kind == "rotation" else part.kind
            last = self.state_dim - (part.stop - part.start)
            self._require(part.start <= last, field, f"at most {last}: there are {self.state_dim} numbers")
            self._require(part.start >= end, field, f"at least {end}: the {before} ends there")
            end, before = part.stop, part.kind

    def _check_frame(self) -> None:
        if self.frame == "tool":
            self._require(self.rotation != NO_ROTATION, "rotation", "stated, as frame is 'tool'")
        if self.frame == "camera":
            self._require(self.rotation != "yaw", "rotation", "another, not of the plane, as frame is 'camera'")
            self._require(self.position is not None, "position", "a place, as frame is 'camera'")
            self._require(self.source == "states", "source", "'states', as frame is 'camera'")

    def _check_layout(self) -> None:
        if self.source == "states":
            self._require(self.action_layout != "own", "action_layout", "'auto' or 'states', as source is 'states'")
        elif self.action_layout == "states":
            fits = self.state_dim == self.action_dim and not self._foreign_units()
            self._require(fits, "action_layout", f"another: of {self.action_dim} actions and {self.state_dim} states, each pair must have one unit")

    def _check_absolute(self) -> None:
        self._require(self.mode == "delta" or not self.absolute, "absolute", "(), as mode is 'absolute' for all actions")
        self._require(set(self.absolute) <= set(self.action_names), "absolute", f"of {', '.join(self.action_names)}")
        if not self.integrable:
            return
        for part in self._known_parts():
            names = self.action_names[part.where]
            chosen = [name for name in names if name in self.absolute]
            if part.kind != "gripper" and self.frame == "tool":
                self._require(not chosen, "absolute", f"without {', '.join(chosen)}: in frame 'tool' poses are relative")
            whole = len(chosen) in (0, len(names))
            self._require(whole, "absolute", f"with all of {', '.join(names)}, the {part.kind}, or none of them")

    def _check_derivable(self) -> None:
        self._require(
            self.action_dim == self.state_dim, "action_names", f"{self.state_dim} names, one for each of state_names, "
            "as source is 'states'",
        )  # fmt: skip
        for action, unit, state, expected in self._foreign_units():
            raise ValueError(
                f"robot {self.name!r}: action_units of {action!r} is {unit!r}, but it changes {state!r} in "
                f"{expected!r}; units must agree, as source is 'states'"
            )

    def _foreign_units(self) -> list[tuple[str, str, str, str]]:
        """List (action, its unit, state at its place, its unit) where stated units differ."""
        return [row for row in self._pairs() if row[1] and row[3] and row[1] != row[3]]

    def _pairs(self) -> list[tuple[str, str, str, str]]:
        """List (action, its unit, state at its place, its unit) for places that both have."""
        return list(zip(self.action_names, self.action_units, self.state_names, self.state_units, strict=False))


def is_made_up(name: str) -> bool:
    """Say whether a source made a name up, as 'state.3', because the data had none."""
    return not name or name.rpartition(".")[2].isdigit()
