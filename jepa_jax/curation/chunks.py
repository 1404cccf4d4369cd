"""Results in files of many items each: a run that was stopped goes on, and several machines share the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jepa_jax.data.publish import read_json, write_json

_PARTIAL = ".partial"
VECTORS = np.float16


@dataclass(frozen=True)
class Chunks:
    """Name the files of one stage.

    Args:
        folder: where they lie.
        name: first part of their names.
        count: how many there are when the stage is finished.
    """

    folder: str
    name: str
    count: int

    def path(self, index: int, suffix: str) -> str:
        """Name file `index`."""
        return os.path.join(self.folder, f"{self.name}-{index:06d}{suffix}")

    def missing(self, suffix: str, part: int = 0, parts: int = 1) -> list[int]:
        """List what is not there yet, of the share of one machine out of `parts`."""
        return [index for index in range(part, self.count, parts) if not os.path.exists(self.path(index, suffix))]

    def write(self, index: int, content: dict, vectors: np.ndarray | None = None) -> None:
        """Write file `index` in one step: JSON, and vectors beside it, which come last."""
        os.makedirs(self.folder, exist_ok=True)
        write_json(self.path(index, ".json"), content)
        if vectors is not None:
            write_array(self.path(index, ".npy"), vectors.astype(VECTORS))

    def read(self, index: int) -> dict:
        """Read the JSON of file `index`.

        Raises:
            FileNotFoundError: there is none.
        """
        content = read_json(self.path(index, ".json"))
        if content is None:
            raise FileNotFoundError(f"{self.path(index, '.json')} is missing; run the same command again")
        return content

    def contents(self) -> Iterator[dict]:
        """Read the JSON of all files, in order."""
        return (self.read(index) for index in range(self.count))


def write_array(path: str, array: np.ndarray) -> None:
    """Write a `.npy` file in one step."""
    with open(path + _PARTIAL, "wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    os.replace(path + _PARTIAL, path)


class Vectors:
    """Read the vectors of all files as one array, from disk where they are touched.

    Args:
        chunks: all of whose vectors are there.

    Attributes:
        good: int64 `[n]`, row numbers of the vectors that are not failures.
    """

    def __init__(self, chunks: Chunks):
        self._parts = [np.load(chunks.path(index, ".npy"), mmap_mode="r") for index in range(chunks.count)]
        self.ends = np.cumsum([0, *(len(part) for part in self._parts)])
        good = np.ones(self.ends[-1], bool)
        for start, content in zip(self.ends[:-1], chunks.contents(), strict=True):
            good[start + np.array(content["failed"], np.int64)] = False
        self.good = np.flatnonzero(good)

    def __len__(self) -> int:
        return len(self.good)

    @property
    def width(self) -> int:
        """Return the length of a vector."""
        return self._parts[0].shape[1]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read vectors.

        Args:
            rows: int64 `[n]`, positions among the good ones.

        Returns:
            float32 `[n, D]`.
        """
        places = self.good[rows]
        files = np.searchsorted(self.ends, places, side="right") - 1
        found = np.empty((len(rows), self.width), np.float32)
        for file in np.unique(files):
            here = files == file
            found[here] = self._parts[file][places[here] - self.ends[file]]
        return found
