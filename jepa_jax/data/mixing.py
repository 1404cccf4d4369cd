"""An endless list of rows drawn from weighted sources, with bad records replaced. A row is a function of (seed, number)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from jepa_jax.data.copies import FileCache
from jepa_jax.data.errors import DataError
from jepa_jax.data.records import Record, ShardSource
from jepa_jax.data.remote import is_remote
from jepa_jax.data.skips import Skip
from jepa_jax.data.specs import SourceSpec

# Records tried for one row of a batch before giving up: with one bad record in
# ten, ten in a row happen once in 10^10 rows.
MAX_TRIES = 10
# Records opened to estimate the hours of a source.
_SAMPLED = 16


class Notes(NamedTuple):
    """Say what a batch was made of, for this process.

    Args:
        clips: good clips of every source, by label.
        skips: a note for every record that had to be replaced.
    """

    clips: dict[str, int]
    skips: list[Skip]


class Row(NamedTuple):
    """Hold what was made of one record, the number of its source, and notes on the records it stands in for."""

    value: Any
    source: int
    skips: list[Skip]


class _Draw(NamedTuple):
    """Point at one record of one source."""

    source: int
    record: int


class _Tag:
    """Attach the number of its source to a record number; a class so that workers can unpickle it."""

    def __init__(self, source: int):
        self._source = source

    def __call__(self, record: int) -> _Draw:
        return _Draw(self._source, int(record))


class Mixture:
    """Draw records from sources by their weights and turn each into a row.

    Args:
        specs: the sources and their weights.
        labels: a short name for every source.
        make_row: picklable function (record, rng) -> value; a `DataError` from it replaces the record by another of
            the same source.
        kind: of records, as in `ShardSource`.
        seed: of the order and of `rng`.
        stream: separates mixtures of one seed.
        cache: where copies of remote shards are kept.

    Raises:
        FileNotFoundError: shards are missing.
        DataError: 'empty source'.
    """

    def __init__(
        self,
        specs: Sequence[SourceSpec],
        labels: Sequence[str],
        make_row: Callable[[Record, np.random.Generator], Any],
        *,
        kind: str,
        seed: int,
        stream: str,
        cache: FileCache,
    ):
        self.specs, self.labels = tuple(specs), tuple(labels)
        self.sources = [ShardSource(spec.paths, kind, cache) for spec in specs]
        for spec, source in zip(specs, self.sources, strict=True):
            if not len(source):
                raise DataError("empty source", f"the shards at {spec.name} hold no records; prepare it again")
        loader = _Loader(self.sources, self.specs, self.labels, make_row)
        parts = [
            grain.MapDataset.range(len(source))
            .map(_Tag(number))
            .shuffle(seed=_derived_seed(seed, stream, number))
            .repeat()
            for number, source in enumerate(self.sources)
        ]
        mixed = grain.MapDataset.mix(parts, weights=[spec.weight for spec in specs])
        self._rows = mixed.random_map(loader, seed=_derived_seed(seed, stream, len(parts)))

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """Make rows by their numbers in the endless list.

        Raises:
            DataError: 'no usable record', after MAX_TRIES bad records for one row.
        """
        return [self._rows[int(number)] for number in numbers]

    def notes(self, rows: Sequence[Row]) -> Notes:
        """Count the sources of some rows."""
        counts = np.bincount([row.source for row in rows], minlength=len(self.sources))
        clips = dict(zip(self.labels, counts.tolist(), strict=True))
        return Notes(clips, [skip for row in rows for skip in row.skips])

    def describe(self) -> list[str]:
        """Say how large every source is and how much of it is drawn, one line each."""
        total = sum(spec.weight for spec in self.specs)
        return [
            f"  {spec.name}: {_size_text(source)}, weight {spec.weight / total:.3f}"
            for spec, source in zip(self.specs, self.sources, strict=True)
        ]


class _Loader:
    """Turn draws into rows, replacing bad records by others of the same source."""

    def __init__(self, sources, specs, labels, make_row):
        self._sources, self._specs, self._labels, self._make_row = sources, specs, labels, make_row

    def __call__(self, draw: _Draw, rng: np.random.Generator) -> Row:
        source, number, skips = self._sources[draw.source], draw.record, []
        for _ in range(MAX_TRIES):
            source_id = ""
            try:
                record = source[number]
                source_id = record.source_id
                return Row(self._make_row(record, rng), draw.source, skips)
            except DataError as error:
                skips.append(Skip(self._labels[draw.source], source.locate(number), source_id, error.reason))
                number = int(rng.integers(len(source)))
        tried = "\n".join(f"  {skip.location} ({skip.source_id}): {skip.reason}" for skip in skips)
        raise DataError(
            "no usable record",
            f"{MAX_TRIES} records in a row of {self._specs[draw.source].name} could not be used:\n{tried}",
        )


def process_rows(step: int, batch_size: int, process_index: int, process_count: int) -> tuple[np.ndarray, int]:
    """Choose the rows of a step's batch that one process makes.

    Returns:
        (int64 numbers within the batch, number of the batch's first row in the endless list).
    """
    local = batch_size // process_count
    return np.arange(process_index * local, (process_index + 1) * local), step * batch_size


def _derived_seed(seed: int, stream: str, number: int) -> int:
    """Mix a seed with a stream's name and a number, so that no two streams are alike."""
    return int(np.random.SeedSequence([seed, zlib.crc32(stream.encode()), number]).generate_state(1)[0])


def _size_text(source: ShardSource) -> str:
    """Say how many records a source has and, where that needs no transfer, about how many hours."""
    text = f"{len(source)} records in {len(source.files)} shards"
    if any(is_remote(file) for file in source.files):
        return text
    picks = np.unique(np.linspace(0, len(source) - 1, min(_SAMPLED, len(source))).astype(int))
    seconds = []
    for pick in picks:
        try:
            record = source[int(pick)]
        except DataError:
            # Counted when it is drawn in training; here it only costs precision.
            continue
        if record.kind != "image" and record.fps > 0:
            seconds.append(record.num_frames / record.fps)
    return f"{text}, about {np.mean(seconds) * len(source) / 3600:.3g} hours" if seconds else text
