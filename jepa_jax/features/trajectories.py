"""Frames of trajectories through the encoder: video records in, records with latents out."""

import dataclasses
import time
from typing import NamedTuple

import jax
import numpy as np

from jepa_jax.data import latents
from jepa_jax.data.errors import DataError
from jepa_jax.data.latents import Latents
from jepa_jax.features.encoding import Encoded, encode_windows
from jepa_jax.features.sources import Window


class EncodingError(Exception):
    """Say why the device cannot encode, and what to do."""


@dataclasses.dataclass
class Meter:
    """Measure encoding.

    Attributes:
      frames: encoded so far, those of refused trajectories included.
      waited: seconds in which nothing was left to do but wait for decoded frames; the device may
        have had a batch to finish in that time.
      began: when the first frames arrived, by `time.monotonic`; starting the workers does not count.
    """

    frames: int = 0
    waited: float = 0.0
    began: float | None = None

    def rates(self):
        """Return dict: frames per second, and the share of the time waited."""
        seconds = max(time.monotonic() - self.began, 1e-9) if self.began else 1e-9
        return {"frames_per_s": self.frames / seconds, "wait_share": min(1.0, self.waited / seconds)}


class _End(NamedTuple):
    """The end of an item: what is left to put together, or the error."""

    item: object
    result: object


def warm_up(model, spec, batch):
    """Compile for batches of frames; returns the seconds it took.

    Raises:
      EncodingError: as in `encode_trajectories`.
    """
    began = time.monotonic()
    try:
        frames = np.zeros((batch, 1, spec.size, spec.size, 3), np.uint8)
        jax.block_until_ready(model.encode(model.params, frames).tokens)
    except jax.errors.JaxRuntimeError as error:
        raise EncodingError(_describe(error)) from error
    return time.monotonic() - began


def encode_trajectories(model, results, spec, *, batch, meter):
    """Encode the frames of trajectories one by one, in batches of one shape that cross their borders.

    Args:
      model: `SpreadModel`.
      results: iterable of (item, `DecodedTrajectory` or DataError), as from `convert_all`.
      spec: `trajectory_frames.FrameSpec`.
      batch: frames encoded together, a multiple of the model's devices.
      meter: `Meter`, which is kept up to date.

    Yields:
      (item, `TrajectoryRecord` or DataError) in the same order.

    Raises:
      EncodingError: if the device has too little memory, or fails.
    """
    tokens = []
    events = encode_windows(model, model.params, _events(results, meter), batch=batch, dtype=latents.DTYPE)
    while True:
        try:
            event = next(events)
        except StopIteration:
            return
        except jax.errors.JaxRuntimeError as error:
            raise EncodingError(_describe(error)) from error
        if isinstance(event, Encoded):
            tokens.append(event.tokens)
            meter.frames += 1
        elif isinstance(event.result, DataError):
            yield event.item, event.result
        else:
            yield event.item, _finish(event.result, tokens, spec)
            tokens = []


def _events(results, meter):
    """Yield a `Window` per frame and an `_End` per item."""
    results = iter(results)
    while True:
        asked = time.monotonic()
        found = next(results, None)
        arrived = time.monotonic()
        if meter.began is None:
            meter.began = arrived
        else:
            meter.waited += arrived - asked
        if found is None:
            return
        item, result = found
        if isinstance(result, DataError):
            yield _End(item, result)
            continue
        for frames in result.frames:
            yield from (Window(number, frame[None]) for number, frame in enumerate(frames))
        # The frames may go as soon as they are on the device.
        yield _End(item, result._replace(frames=()))


def _finish(decoded, tokens, spec):
    """Put the latents of all frames, view after view, into the record."""
    record, count = decoded.record, len(decoded.rows)
    views = []
    for number, view in enumerate(record.views):
        part = tokens[number * count : (number + 1) * count]
        if not all(map(latents.all_finite, part)):
            return DataError("not finite", f"{record.source_id}: features of view {view.name!r} are not finite")
        # As plain bytes: joining needs them, and bfloat16 has none of its own.
        stored = b"".join(np.ascontiguousarray(rows).view(np.uint8) for rows in part)
        views.append(view._replace(latents=Latents(stored, decoded.rows, *spec.origin)))
    return record._replace(views=tuple(views))


def _describe(error):
    """Say what to do about an error of the device."""
    first = str(error).splitlines()[0]
    if "RESOURCE_EXHAUSTED" in first:
        return f"the device has too little memory for this; lower --batch ({first})"
    return f"the device failed: {first}"
