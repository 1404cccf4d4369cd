"""Encoding a labelled set once, as a probe's training sees it, so that epochs read tokens instead of videos."""

import dataclasses
import functools
import os
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm import tqdm

from jepa_jax.data.errors import DataError
from jepa_jax.data.labelled import ListSource, class_of
from jepa_jax.data.probe_tokens import TokenSource, TokenStore
from jepa_jax.data.reading import read_batches, spread
from jepa_jax.data.segments import make_row, read_augmented
from jepa_jax.training import sharding

# Records of shards that tell one set from another.
_LOOKED_AT = 256


def store_tokens(config, sources, seeing, encode, params, origin, tokens_shape, mesh):
    """Encode every video of some sources that is not encoded yet, `data.token_draws` times with other windows and crops.

    Args:
      config: ConfigDict with `seed` and the section `data`.
      sources: labelled data.
      seeing: (`Protocol`, `CropSpec`, `AugmentSpec`, number of classes).
      encode: (params, batch as `LabelledPipeline` makes it) -> `[B, N, D]`; jittable.
      params: of the frozen encoder.
      origin: JSON-able dict: encoder and whatever else decides its tokens.
      tokens_shape: (N, D).
      mesh: device mesh.

    Returns:
      list of `TokenSource`.

    Raises:
      ValueError: if there are several processes, `data.token_draws` is below 1, or as `TokenStore`.
    """
    data = config.data
    if jax.process_count() > 1:
        raise ValueError(f"data.tokens is for one process, and there are {jax.process_count()}; large sets are encoded in every step: leave it empty")
    if data.token_draws < 1:
        raise ValueError(f"data.token_draws is {data.token_draws}; it must be at least 1")
    protocol, crop, augment, classes = seeing
    origin = origin | {"protocol": protocol.to_json(), "seed": config.seed, "still": data.still} | {
        name: {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(spec).items()}
        for name, spec in (("crop", crop), ("augment", augment))
    }
    compiled = jax.jit(lambda params, batch: encode(params, batch).astype(jnp.bfloat16), out_shardings=sharding.replicated(mesh))
    run, found = functools.partial(compiled, jax.device_put(params, sharding.replicated(mesh))), []
    for number, source in enumerate(sources):
        shape = (len(source), data.token_draws, *tokens_shape)
        store = TokenStore(os.path.join(data.tokens, f"source_{number}"), origin | _identify(source, classes), shape)
        read = functools.partial(_read, seeing, config.seed, data.token_draws, data.still)
        with sharding.use_mesh(mesh):
            _encode(store, source, read, run, data.batch_size // config.optim.accumulate, mesh)
        found.append(TokenSource(store, source))
    return found


def _identify(source, classes):
    """Tell one list or set of shards from another: by all files of a list, and by many records of shards, whose names say little.

    Lists say classes themselves, so that another list of the same files, with other labels, reads the same tokens.
    """
    if isinstance(source, ListSource):
        return {"videos": f"{source.files_checksum()} of {len(source)} as {source[0].path}"}
    checksum = 0
    for number in spread(len(source), _LOOKED_AT):
        try:
            record = source[number]
        except DataError as error:
            found = str(error.reason).encode()
        else:
            found = f"{record.source_id} {record.label} ".encode() + record.data
        checksum = zlib.crc32(found, checksum)
    return {"videos": f"{checksum:08x} of {len(source)}", "classes": classes}


def _read(seeing, seed, draws, still, number, record):
    """Read a video as often as it is to be encoded: (number, label, [row, ...])."""
    protocol, crop, augment, classes = seeing
    label, rows = class_of(record, classes), []
    for draw in range(draws):
        seen = read_augmented(record, protocol, crop, augment, np.random.default_rng((seed, number, draw)), still)
        rows.append(make_row(seen, protocol, augment))
    return number, label, rows


def _encode(store, source, read, run, size, mesh):
    """Encode what is to do, in batches of one shape."""
    # Among them what could not be read before: the disk may not have been there.
    todo = np.flatnonzero(~store.done)
    with tqdm(total=len(store), initial=len(store) - len(todo), desc="encoding once", unit=" videos", dynamic_ncols=True) as bar:
        for good, bad in read_batches(source, read, todo, size):
            # The last batch is filled up, so that all have one shape.
            rows = [good[min(at, len(good) - 1)][2] for at in range(size)] if good else []
            draws = zip(*rows)
            batches = [{name: np.stack([row[name] for row in draw]) for name in draw[0]} for draw in draws]
            tokens = [np.asarray(run(sharding.put_batch(batch, mesh))) for batch in batches]
            for at, (number, label, _) in enumerate(good):
                store.put(number, np.stack([part[at] for part in tokens]), label)
            for skip in bad:
                logging.warning("%s is left out: %s", skip.location, skip.message)
            store.flush()
            bar.update(len(good) + len(bad))
    logging.info("%d of %d videos have stored tokens in %s, %.3g GB", int(store.done.sum()), len(store), store.folder, store.num_bytes / 1e9)
