"""Frame features stored in a trajectory, so that training need not encode the same frames again.

A map:

    tokens          bytes  bfloat16 [n, N, D], little-endian, row-major; before any normalization. Or int, in
                           shards as in `divided`: the record of the first frame, [N, D], others following
    frames          list   n rows of the trajectory that were encoded, ascending
    grid            list   [h, w]; N = h * w
    width           int    D
    encoder_sha256  str    identity of the encoder's weights
    crop            list   [size, low aspect, high aspect]: the centered crop that was encoded
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jepa_jax.data.errors import DataError, RecordError

DTYPE = np.dtype(ml_dtypes.bfloat16)


class Origin(NamedTuple):
    """Say what latents were made by; those of one origin can be mixed. The fields are those of `Latents`."""

    grid: tuple[int, int]
    width: int
    encoder_sha256: str
    crop: tuple[float, float, float]

    def __str__(self) -> str:
        size, low, high = self.crop
        height, width = self.grid
        return (
            f"{height}x{width} tokens of {self.width}, encoder sha256 {self.encoder_sha256[:12]}, crops of {size:g} "
            f"pixels, aspect {low:g} to {high:g}"
        )


class Latents(NamedTuple):
    """Hold features of the frames of one view; the module docstring explains the fields.

    Where frames are records of their own, `tokens` is a function that reads them: of places among
    `frames`, it returns the bytes of each.
    """

    tokens: bytes | int | Callable[[Sequence[int]], list[bytes]]
    frames: tuple[int, ...]
    grid: tuple[int, int]
    width: int
    encoder_sha256: str
    crop: tuple[float, float, float]

    @property
    def origin(self) -> Origin:
        """Say what made them."""
        return Origin(tuple(self.grid), self.width, self.encoder_sha256, tuple(self.crop))

    @property
    def num_tokens(self) -> int:
        """Count the tokens N of a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def frame_bytes(self) -> int:
        """Return what one frame takes, bytes."""
        return self.num_tokens * self.width * DTYPE.itemsize

    @property
    def num_bytes(self) -> int:
        """Return what all frames take, bytes."""
        return len(self.frames) * self.frame_bytes

    def rows(self, indices: Sequence[int]) -> np.ndarray:
        """Take the features of some rows of the trajectory.

        Args:
            indices: rows, each one of `frames`.

        Returns:
            bfloat16 `[len(indices), N, D]`.

        Raises:
            DataError: 'corrupt record', or as in `ShardSource`, for frames that lie elsewhere.
        """
        places = np.searchsorted(self.frames, indices)
        shape = (self.num_tokens, self.width)
        if not callable(self.tokens):
            return np.frombuffer(self.tokens, DTYPE).reshape(-1, *shape)[places]
        found = self.tokens(places)
        if wrong := next((part for part in found if len(part) != self.frame_bytes), None):
            raise DataError("corrupt record", f"a frame of features has {len(wrong)} bytes, expected {shape} of bfloat16")
        return np.stack([np.frombuffer(part, DTYPE).reshape(shape) for part in found])

    def packed(self) -> dict:
        """Return the fields as msgpack can write them; frames that lie elsewhere are read."""
        fields = self._asdict()
        return fields | {"tokens": self.rows(self.frames).tobytes()} if callable(self.tokens) else fields


def unpack(fields: Mapping | None, length: int, name: str) -> Latents | None:
    """Read latents back from what msgpack read; None stays None.

    Args:
        fields: the map, or None.
        length: rows of the trajectory.
        name: of the view, for messages.

    Raises:
        RecordError: missing or unknown fields, or parts that do not fit together.
    """
    if fields is None:
        return None
    if not isinstance(fields, Mapping) or set(fields) != set(Latents._fields):
        raise RecordError(f"latents of view {name!r} are no map of {', '.join(Latents._fields)}")
    try:
        latents = Latents(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
        sizes = len(latents.frames), latents.num_tokens, latents.width
        fits = isinstance(latents.tokens, int) or len(latents.tokens) == latents.num_bytes
        ordered = bool(latents.frames) and (np.diff((-1, *latents.frames, length)) > 0).all()
    except (TypeError, IndexError, ValueError) as error:
        raise RecordError(f"latents of view {name!r} have a field of the wrong type: {error}") from error
    if not fits:
        raise RecordError(f"latents of view {name!r} hold {len(latents.tokens)} bytes, expected {sizes} of bfloat16")
    if not ordered:
        raise RecordError(f"latents of view {name!r} are of rows {latents.frames}; they ascend within 0..{length - 1}")
    return latents


def all_finite(tokens: np.ndarray) -> bool:
    """Tell whether bfloat16 numbers are all finite."""
    # All bits of the exponent are set in what is not; numpy has no fast test for this dtype.
    return not ((tokens.view(np.uint16) & 0x7F80) == 0x7F80).any()
