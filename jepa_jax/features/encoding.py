"""Windows through the encoder, in batches of one shape."""

from typing import NamedTuple

import numpy as np

from jepa_jax.features.sources import Window


class Encoded(NamedTuple):
    """The tokens of one window.

    Attributes:
      number: of the window in its file.
      tokens: float32, or as asked for, `[N, D]`, or `[L, N, D]` where several layers were asked for.
      grid: (t, h, w).
    """

    number: int
    tokens: np.ndarray
    grid: tuple[int, int, int]


def encode_windows(model, params, events, *, batch, layers=(), dtype=np.float32):
    """Encode the windows of a stream of events; everything else passes through in its place.

    Windows of several files share a batch. A batch that cannot be filled, at the end or where
    the next window has another shape, is padded, so that every shape is compiled once. The
    device works on one batch while the caller handles the one before.

    Args:
      model, params: as returned by `jepa_jax.weights.load.load`.
      events: iterable with `Window`s among other things.
      batch: windows per call.
      layers: 0-based blocks whose outputs are wanted; empty for the encoder's output.
      dtype: of the tokens.

    Yields:
      `Encoded` for every `Window`, and the other events, in order.
    """
    waiting, clips, running = [], [], None
    for event in events:
        if isinstance(event, Window):
            if clips and clips[0].shape != event.frames.shape:
                started = _start(model, params, clips, batch, layers)
                yield from _release(running, dtype)
                running, waiting, clips = (started, waiting), [], []
            clips.append(event.frames)
            event = event.number
        if not clips and running is None:
            yield event
            continue
        # What follows a batch is done when that batch is.
        (waiting if clips else running[1]).append(event)
        if len(clips) == batch:
            started = _start(model, params, clips, batch, layers)
            yield from _release(running, dtype)
            running, waiting, clips = (started, waiting), [], []
    started = _start(model, params, clips, batch, layers) if clips else None
    yield from _release(running, dtype)
    yield from _release((started, waiting) if clips else None, dtype)


def _start(model, params, clips, batch, layers):
    padding = [np.zeros_like(clips[0])] * (batch - len(clips))
    return model.encode(params, np.stack(clips + padding), layers)


def _release(running, dtype):
    """Wait for a batch, and yield its events with the tokens put in."""
    if running is None:
        return
    features, events = running
    tokens = np.asarray(features.tokens, dtype)
    if tokens.ndim == 4:
        # A layer alone needs no axis.
        tokens = tokens[0] if len(tokens) == 1 else tokens.swapaxes(0, 1)
    row = 0
    for event in events:
        if isinstance(event, int):
            yield Encoded(event, tokens[row], features.grid)
            row += 1
        else:
            yield event
