"""Tokens of labelled videos on disk, so that a small set is encoded once and then probed again and again.

A folder:

    tokens.json  what made them; tokens of one description can be used together
    tokens.bin   bfloat16 [n, draws, N, D], little-endian, before any normalization
    labels.bin   int32 [n], of shards; lists say it themselves
    done.bin     uint8 [n]: 1 where they are stored; what could not be read is tried again at every start
"""

from __future__ import annotations

import functools
import os
import shutil
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jepa_jax.data import remote
from jepa_jax.data.errors import DataError
from jepa_jax.data.labelled import ListSource
from jepa_jax.data.mixing import Mixture, RowPipeline
from jepa_jax.data.publish import read_json, write_json
from jepa_jax.data.skips import MAX_BAD_FRACTION
from jepa_jax.data.specs import GroupSpec, check_process

DTYPE = np.dtype(ml_dtypes.bfloat16)
_DESCRIPTION, _TOKENS, _LABELS, _DONE = "tokens.json", "tokens.bin", "labels.bin", "done.bin"


class TokenRecord(NamedTuple):
    """Hold the tokens of one video: bfloat16 `[draws, N, D]`, mapped from the file. `kind` and `fps` as in `LabelledFile`."""

    tokens: np.ndarray
    label: int
    source_id: str
    kind: str = "tokens"
    fps: float = 0.0


class TokenStore:
    """The tokens of one source of videos.

    Args:
        folder: where they are, or will be; made if there is none.
        origin: JSON-able dict: everything that decides what is stored.
        shape: (n, draws, N, D).

    Raises:
        ValueError: the folder is remote, too small, or holds tokens of another origin; the message names what differs.
        OSError: it cannot be written.
    """

    def __init__(self, folder: str, origin: dict[str, Any], shape: tuple[int, int, int, int]):
        if remote.is_remote(folder):
            raise ValueError(f"data.tokens is {folder!r}; tokens are mapped into memory, which needs a folder of this machine")
        self.folder = folder
        description = {"origin": origin, "shape": list(shape), "dtype": DTYPE.name}
        self._shape = tuple(shape)
        path = os.path.join(folder, _DESCRIPTION)
        if os.path.exists(path):
            _compare(folder, read_json(path), description)
            return
        os.makedirs(folder, exist_ok=True)
        needed, free = self.num_bytes, shutil.disk_usage(folder).free
        if needed > free:
            raise ValueError(f"tokens of {shape[0]} videos take {needed / 1e9:.3g} GB, but {folder} has {free / 1e9:.3g} GB free; "
                             "leave data.tokens empty to encode in every step, or lower data.token_draws")
        for array in self._map("w+"):
            array.flush()
        # The description comes last: a folder that has one is whole.
        write_json(path, description)

    def __getstate__(self) -> dict:
        # To worker processes go names, not the bytes.
        return {"folder": self.folder, "_shape": self._shape}

    def _map(self, mode: str) -> list[np.memmap]:
        files = {_TOKENS: (np.uint16, self._shape), _LABELS: (np.int32, self._shape[:1]), _DONE: (np.uint8, self._shape[:1])}
        return [np.memmap(os.path.join(self.folder, name), dtype, mode, shape=shape) for name, (dtype, shape) in files.items()]

    @functools.cached_property
    def _arrays(self) -> list[np.memmap]:
        return self._map("r+")

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def num_bytes(self) -> int:
        """Return what all tokens take, bytes."""
        return int(np.prod(self._shape)) * DTYPE.itemsize

    @property
    def done(self) -> np.ndarray:
        """Say of which videos tokens are stored, bool `[n]`."""
        return np.asarray(self._arrays[2], bool)

    def put(self, number: int, tokens: np.ndarray, label: int) -> None:
        """Keep the tokens of a video, bfloat16 `[draws, N, D]`, and its class."""
        stored, labels, done = self._arrays
        stored[number], labels[number], done[number] = np.asarray(tokens, DTYPE).view(np.uint16), label, 1

    def flush(self) -> None:
        """Write to disk what was put: what says that tokens are there comes after them."""
        for array in self._arrays:
            array.flush()

    def get(self, number: int) -> tuple[np.ndarray, int]:
        """Return bfloat16 `[draws, N, D]`, without reading it yet, and the class."""
        stored, labels, _ = self._arrays
        return stored[number].view(DTYPE), int(labels[number])


def _compare(folder: str, then: dict[str, Any], now: dict[str, Any]) -> None:
    then, now = ({**found["origin"], "shape": found["shape"], "dtype": found["dtype"]} for found in (then, now))
    wrong = [f"{key}: {then.get(key)!r} there, {now.get(key)!r} now" for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    if wrong:
        raise ValueError(f"{folder} holds tokens that were made otherwise ({'; '.join(wrong)}); give data.tokens another folder, or remove it")


class TokenSource:
    """Give random access to stored tokens, as `ListSource` and `ShardSource` do to videos.

    Args:
        store: all of it done.
        videos: the source that was encoded, for its names, and for the classes of a list.
    """

    def __init__(self, store: TokenStore, videos):
        self._store = store
        self.files, self.locate = videos.files, videos.locate
        self.checksum = getattr(videos, "checksum", None)
        self._labels = videos.labels() if isinstance(videos, ListSource) else None

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> TokenRecord:
        if not self._store.done[index]:
            raise DataError("not encoded", f"{self.locate(index)} could not be used when tokens were stored in {self._store.folder}; the next start tries again")
        tokens, label = self._store.get(index)
        return TokenRecord(tokens, label if self._labels is None else int(self._labels[index]), self.locate(index))


class TokenPipeline(RowPipeline):
    """Make batches out of stored tokens: `{'tokens': bfloat16 [b, N, D], 'label': int32 [b]}`, each time one of the draws.

    Args:
        group, seed, max_bad_fraction, process_index, process_count: as in `LabelledPipeline`.
        sources: `TokenSource` for each of the group.
    """

    def __init__(
        self, group: GroupSpec, sources: list[TokenSource], *, seed: int, max_bad_fraction: float = MAX_BAD_FRACTION,
        process_index: int = 0, process_count: int = 1,
    ):  # fmt: skip
        check_process([group], process_index, process_count)
        mixture = Mixture(group, sources, make_row, seed=seed, max_bad_fraction=max_bad_fraction)
        super().__init__(group, mixture, process_index, process_count)


def make_row(record: TokenRecord, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Take one of the draws of a video."""
    return {"tokens": np.array(record.tokens[rng.integers(len(record.tokens))]), "label": np.int32(record.label)}
