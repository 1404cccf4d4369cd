"""Results in files of many items each: a run that was stopped goes on, and several machines share the work."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jepa_jax.data.publish import read_json, write_json

_PARTIAL = ".partial"
VECTORS = np.float16
# Vectors are read from so many files at a time: a pool of millions of videos has more than may be open.
_OPEN_FILES = 256


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
        """Write file `index` in one step: JSON, and vectors beside it, which come last.

        Args:
            index: number of the file.
            content: of the JSON; with vectors `count`, how many there are, and `failed`, rows that are none.
            vectors: float `[count, D]`.
        """
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
        self._chunks = chunks
        ends, failed = [0], []
        for content in chunks.contents():
            failed += [ends[-1] + row for row in content["failed"]]
            ends.append(ends[-1] + content["count"])
        self.ends = np.array(ends)
        good = np.ones(self.ends[-1], bool)
        good[failed] = False
        self.good = np.flatnonzero(good)
        self._part = functools.lru_cache(_OPEN_FILES)(self._open)

    def _open(self, index: int) -> np.ndarray:
        part = np.load(self._chunks.path(index, ".npy"), mmap_mode="r")
        if len(part) != self.ends[index + 1] - self.ends[index]:
            raise ValueError(
                f"{self._chunks.path(index, '.npy')} holds {len(part)} vectors, its JSON says "
                f"{self.ends[index + 1] - self.ends[index]}; remove both and run the same command again"
            )
        return part

    def __len__(self) -> int:
        return len(self.good)

    @property
    def width(self) -> int:
        """Return the length of a vector."""
        return self._part(0).shape[1]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read vectors.

        Args:
            rows: int64 `[n]`, positions among the good ones.

        Returns:
            float32 `[n, D]`.

        Raises:
            ValueError: a file does not hold what its JSON says.
        """
        places = self.good[rows]
        files = np.searchsorted(self.ends, places, side="right") - 1
        found = np.empty((len(rows), self.width), np.float32)
        for file in np.unique(files):
            here = files == file
            found[here] = self._part(int(file))[places[here] - self.ends[file]]
        return found
