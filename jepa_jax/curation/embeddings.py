"""One vector per scene: the mean of an encoder's tokens, of length one."""

import contextlib
from typing import NamedTuple

import numpy as np

from jepa_jax.data.conversion import convert_all
from jepa_jax.data.errors import DataError
from jepa_jax.features.encoding import Encoded, encode_windows
from jepa_jax.features.pooling import pool_tokens
from jepa_jax.features.sources import Window


class Failure(NamedTuple):
    """A scene that has no vector, and why."""

    error: DataError


def embed_chunks(model, todo, chunks, spec, *, batch, workers, on_item=lambda failed: None):
    """Embed the scenes of chunks, and write each chunk when it is done.

    Args:
      model: `SpreadModel`.
      todo: list of (chunk number, function that lists its scenes); lists are asked for when they are needed.
      chunks: `Chunks` to write to: JSON with `failed` rows and `skips`, and the vectors.
      spec: `frames.FrameSpec`.
      batch: scenes encoded together; raised to a multiple of the devices.
      workers: processes that decode; 0 decodes in this one.
      on_item: called with whether the scene failed.
    """
    batch = -(-batch // model.devices) * model.devices
    # Decoding runs ahead of the chunk that is being filled; lists are short, so they are read twice.
    scenes = (scene for _, load in todo for scene in load())
    vectors = _vectors(model, scenes, spec, batch, workers)
    with contextlib.closing(vectors):
        for index, load in todo:
            items, rows, skips = load(), [], []
            for place, item in enumerate(items):
                found = next(vectors)
                if isinstance(found, Failure):
                    skips.append([place, item.name, found.error.reason, str(found.error)])
                    found = np.zeros(model.width)
                rows.append(found)
                on_item(bool(skips) and skips[-1][0] == place)
            content = {
                "count": len(items),
                "failed": [skip[0] for skip in skips],
                "skips": [skip[1:] for skip in skips],
            }
            chunks.write(index, content, np.reshape(rows, (len(items), model.width)))


def _vectors(model, scenes, spec, batch, workers):
    """Yield per scene float32 `[D]` of length one, or a `Failure`."""
    with contextlib.closing(convert_all(scenes, spec, workers)) as results:
        events = (
            Failure(result) if isinstance(result, DataError) else Window(number, result)
            for number, (_, result) in enumerate(results)
        )
        for event in encode_windows(model, model.params, events, batch=batch):
            if not isinstance(event, Encoded):
                yield event
                continue
            mean = pool_tokens(event.tokens, event.grid, "mean")
            length = np.linalg.norm(mean)
            if np.isfinite(length) and length > 0:
                yield mean / length
            else:
                yield Failure(DataError("not finite", f"the features have length {length}"))
