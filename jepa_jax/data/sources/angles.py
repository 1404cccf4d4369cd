"""Whether numbers of each row are angles: those of an end effector, in the order and unit that is expected, or any that wrap."""

from __future__ import annotations

import itertools

import numpy as np

from jepa_jax.data import poses
from jepa_jax.data.errors import DataError

# Beyond this an angle is in degrees, or no angle.
_MAX_ANGLE = 2 * np.pi + 0.1
# A guess must explain the jumps this much better to be named.
_BETTER = 0.5
# A gripper that looks down has a roll within this of half a turn, rad.
_DOWN = 0.6
# Parts of a turn: a longer step wraps, in a range that is no longer.
_JUMP, _ONE_TURN = 0.9, 1.02


def check_turns(name: str, angles: np.ndarray, rate: float, limit: float) -> None:
    """Refuse angles that cannot be those of an end effector.

    Args:
        name: of the trajectory, for messages.
        angles: float64 `[L, 3]`, extrinsic xyz, rad.
        rate: rows per second.
        limit: fastest believable rotation, rad/s.

    Raises:
        DataError: 'angles not in radians', 'implausible rotation'.
    """
    largest = float(np.abs(angles).max())
    if largest > _MAX_ANGLE:
        raise DataError(
            "angles not in radians", f"{name}: an angle is {largest:.4g}; radians lie within {_MAX_ANGLE:.2f}: degrees?"
        )
    if len(angles) < 2:
        return
    turns = poses.rotation_steps(angles)
    worst = int(turns.argmax())
    if turns[worst] * rate <= limit:
        return
    guess = _better_reading(angles, float(turns[worst]))
    raise DataError(
        "implausible rotation",
        f"{name}: between rows {worst} and {worst + 1} the end effector turns by {turns[worst]:.2f} rad, "
        f"{turns[worst] * rate:.3g} rad/s (at most {limit:g} is believed, --max-turn): the angles are damaged or are "
        f"not extrinsic xyz radians{guess}",
    )


def seems_reversed(angles: np.ndarray) -> bool:
    """Tell whether the third angle, not the first, behaves like the roll of a gripper that looks down.

    Only a suspicion: angles in another order turn as smoothly as those in the right one.

    Args:
        angles: float64 `[L, 3]`, rad.
    """
    off = np.median(np.abs(np.abs(angles) - np.pi), axis=0)
    return bool(off[2] < _DOWN < off[0])


def find_wraps(states: np.ndarray) -> np.ndarray:
    """Tell which numbers jump by nearly a whole turn while they never leave one, as angles do that wrap.

    Args:
        states: float64 `[L, S]`, radians or degrees.

    Returns:
        bool `[S]`. A number that knows two values only, as some grippers do, is none.
    """
    found = np.zeros(states.shape[1], bool)
    steps, spans = np.abs(np.diff(states, axis=0)), np.ptp(states, axis=0)
    for turn in (2 * np.pi, 360.0):
        jumps = steps > _JUMP * turn
        between = (steps > 0).any(axis=0, where=~jumps)
        found |= jumps.any(axis=0) & between & (spans < _ONE_TURN * turn)
    return found


def _better_reading(angles: np.ndarray, worst: float) -> str:
    """Name another reading of the numbers under which they turn smoothly, if there is one.

    Another order of the three rotations is not among them: every order repeats itself at its own
    lock in the same way, so it never makes jumps.
    """
    readings = {
        f"angles about x, y, z in columns {', '.join(map(str, order))}": poses.euler_to_matrix(angles[:, order])
        for order in itertools.permutations(range(3))
    }
    readings["rotation vectors"] = _vectors_to_matrices(angles)
    turns = {reading: float(poses.matrix_steps(matrices).max()) for reading, matrices in readings.items()}
    best = min(turns, key=turns.get)
    return f"; read as {best} they turn by at most {turns[best]:.2f} rad a row" if turns[best] < worst * _BETTER else ""


def _vectors_to_matrices(vectors: np.ndarray) -> np.ndarray:
    """Turn rotation vectors `[L, 3]`, rad, into matrices `[L, 3, 3]`."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    x, y, z = (vectors / np.maximum(angle[:, 0], 1e-12)).T
    zero = np.zeros_like(x)
    cross = np.stack([np.stack(row, -1) for row in ([zero, -z, y], [z, zero, -x], [-y, x, zero])], -2)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
