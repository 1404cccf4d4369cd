"""Rows drawn from weighted sources without end, bad records replaced; each a function of (seed, step, number)."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from jepa_jax.data import trajectories
from jepa_jax.data.copies import FileCache
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import checksum
from jepa_jax.data.records import KINDS, Record, ShardSource
from jepa_jax.data.remote import is_remote
from jepa_jax.data.skips import Skip, max_tries
from jepa_jax.data.specs import GroupSpec, SourceSpec

# Records opened to see what a source is like.
_SAMPLED = 16
# Grain's shuffle takes microseconds for a number out of many, but milliseconds out of a handful.
_SHORT = 10_000
# Records named when none of many could be used.
_NAMED = 10
# Commands of `prepare` by the kind of group, or of records.
_MADE_BY = {"video": "videos", "image": "images", trajectories.KIND: "droid (or rlds, or lerobot)"}


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


class _Sample(NamedTuple):
    """Hold what a few records of a source are like.

    Args:
        count: how many could be read; 0 if the source was not looked at.
        seconds: their mean length; 0 for images.
        short_side: of their frames, the median, pixels; 0 for trajectories.
    """

    count: int
    seconds: float
    short_side: int


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


class _Shuffle:
    """Put a short list in another order in every epoch."""

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed

    def __call__(self, index: int, element: int) -> int:
        del element
        epoch, place = divmod(int(index), self._size)
        return int(_permutation(self._size, self._seed, epoch)[place])


@functools.lru_cache(maxsize=64)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


def _shuffled(size: int, seed: int) -> grain.MapDataset:
    """Repeat the numbers below `size` without end, in another order in every epoch."""
    numbers = grain.MapDataset.range(size)
    if size < _SHORT:
        return numbers.repeat().map_with_index(_Shuffle(size, seed))
    return numbers.shuffle(seed=seed).repeat()


class Mixture:
    """Draw records from the sources of a group by their weights and turn each into a row.

    The rows of a step are a stratified sample: every source has its share of them as nearly as whole numbers
    allow, in an order that is drawn anew for every step, so that any part of a batch is a random one.

    Args:
        group: the sources, their weights and the rows of a step.
        sources: those of the group, opened.
        make_row: picklable function (record, rng) -> value; a `DataError` from it replaces the record by another of
            the same source.
        seed: of the order and of `rng`; mixtures of one seed differ by the name of their group.
        max_bad_fraction: of the records of any source, as in `skips.SkipCounter`.

    Raises:
        ValueError: max_bad_fraction is no fraction.
        DataError: 'empty source'.
    """

    def __init__(
        self,
        group: GroupSpec,
        sources: Sequence[ShardSource],
        make_row: Callable[[Record, np.random.Generator], Any],
        *,
        seed: int,
        max_bad_fraction: float,
    ):
        self._group, self._seed = group, seed
        self.labels, self.sources = group.labels(), list(sources)
        for spec, source in zip(group.sources, self.sources, strict=True):
            if not len(source):
                raise DataError("empty source", f"the shards at {spec.name} hold no records; prepare it again")
        parts = [
            _shuffled(len(source), _derived_seed(seed, group.name, number)).map(_Tag(number))
            for number, source in enumerate(self.sources)
        ]
        mixed = grain.MapDataset.mix(parts, weights=[spec.weight for spec in group.sources])
        loader = _Loader(self.sources, group, make_row, max_bad_fraction)
        self._rows = mixed.random_map(loader, seed=_derived_seed(seed, group.name, len(parts)))

    def rows(self, step: int, numbers: Sequence[int]) -> list[Row]:
        """Make some rows of a step.

        Args:
            step: counted from 0.
            numbers: within the batch of all processes.

        Raises:
            DataError: 'no usable record', after `skips.max_tries` bad records for one row.
        """
        size = self._group.batch_size
        # A stream of its own: the numbers up to len(sources) are taken.
        rng = np.random.default_rng(_derived_seed(self._seed, self._group.name, len(self.sources) + 1, step))
        order = rng.permutation(size)
        return [self._rows[step * size + int(order[number])] for number in numbers]

    def notes(self, rows: Sequence[Row]) -> Notes:
        """Count the sources of some rows."""
        counts = np.bincount([row.source for row in rows], minlength=len(self.sources))
        clips = dict(zip(self.labels, counts.tolist(), strict=True))
        return Notes(clips, [skip for row in rows for skip in row.skips])

    def describe(self) -> list[str]:
        """Say how large every source is and how much of it is drawn, one line each.

        Raises:
            DataError: why none of the records of a source that were looked at can be used.
        """
        lines = []
        for (spec, source, share), sample in zip(self._shares(), self._samples, strict=True):
            hours = f", about {sample.seconds * len(source) / 3600:.3g} hours" if sample.seconds else ""
            lines.append(f"  {spec.name}: {_count_text(source)}{hours}, weight {share:.3f}")
        return lines

    def contents(self) -> dict[str, str]:
        """Say by label what decides which records are drawn; the same wherever the shards lie."""
        found = {}
        for label, (_, source, share) in zip(self.labels, self._shares(), strict=True):
            # Lists know their entries; what shards hold is not read for this.
            own = getattr(source, "checksum", None)
            names = own() if own else checksum(map(os.path.basename, source.files))
            found[label] = f"{_count_text(source)}, checksum of their names {names}, weight {share:.3f}"
        return found

    def enlarged(self, size: int) -> list[str]:
        """Name the sources, of those on this host, whose frames are smaller than a crop, one line each.

        Args:
            size: side of the crop, pixels.
        """
        return [
            f"{label}: data.size is {size}, but frames are stored with a short side of {sample.short_side} pixels "
            f"(median of {sample.count} records), so that crops are enlarged and show no more detail; prepare the "
            f"shards with --size {size} or more"
            for label, sample in zip(self.labels, self._samples, strict=True)
            if sample.short_side and sample.short_side < size
        ]

    @functools.cached_property
    def _samples(self) -> list[_Sample]:
        return [_look_at(spec, source) for spec, source in zip(self._group.sources, self.sources, strict=True)]

    def _shares(self) -> list[tuple[SourceSpec, ShardSource, float]]:
        total = sum(spec.weight for spec in self._group.sources)
        return [
            (spec, source, spec.weight / total)
            for spec, source in zip(self._group.sources, self.sources, strict=True)
        ]


class _Loader:
    """Turn draws into rows, replacing bad records by others of the same source."""

    def __init__(self, sources, group, make_row, max_bad_fraction):
        self._sources, self._labels, self._make_row = sources, group.labels(), make_row
        self._names = [spec.name for spec in group.sources]
        self._limit, self._tries = max_bad_fraction, max_tries(max_bad_fraction)

    def __call__(self, draw: _Draw, rng: np.random.Generator) -> Row:
        source, number, skips = self._sources[draw.source], draw.record, []
        for _ in range(self._tries):
            source_id = ""
            try:
                record = source[number]
                source_id = record.source_id
                return Row(self._make_row(record, rng), draw.source, skips)
            except DataError as error:
                skips.append(Skip(self._labels[draw.source], source.locate(number), source_id, error.reason))
                number = int(rng.integers(len(source)))
        tried = "\n".join(f"  {skip.location} ({skip.source_id}): {skip.reason}" for skip in skips[:_NAMED])
        raise DataError(
            "no usable record",
            f"{self._tries} records in a row of {self._names[draw.source]} could not be used. Where no more than the "
            f"allowed fraction {self._limit:g} of a source is bad (data.max_bad_fraction), that does not happen: "
            f"repair these records, leave the source out, or raise the limit. The first of them:\n{tried}",
        )


class RowPipeline:
    """Make the batches of one process out of a mixture whose rows are dicts of arrays.

    Args:
        group: rows per step, for all processes.
        mixture: draws them.
        process_index, process_count: which rows of each global batch are made here.
    """

    def __init__(self, group: GroupSpec, mixture: Mixture, process_index: int, process_count: int):
        self.group, self._mixture = group, mixture
        self._process = (process_index, process_count)

    def batch_at(self, step: int) -> tuple[dict[str, np.ndarray], Notes]:
        """Make the rows of this process for one step.

        Args:
            step: counted from 0; no earlier step needs to have been made.

        Returns:
            The rows' arrays, stacked by name, and `Notes`.

        Raises:
            DataError: 'no usable record', after `skips.max_tries` bad records for one row.
        """
        rows = self._mixture.rows(step, process_rows(self.group.batch_size, *self._process))
        batch = {name: np.stack([row.value[name] for row in rows]) for name in rows[0].value}
        return batch, self._mixture.notes(rows)

    def describe(self) -> list[str]:
        """Say what is in the mixture: a line for a step and one per source; errors as in `Mixture.describe`."""
        return [self.group.shape_text(), *self._mixture.describe()]

    def contents(self) -> dict[str, str]:
        """Say what decides which rows are drawn, as `ClipPipeline.contents`."""
        return {self.group.name: self.group.shape_text()} | self._mixture.contents()


def open_sources(groups: Sequence[GroupSpec], kind: str, cache: FileCache) -> dict[str, list[ShardSource]]:
    """Open the sources of all groups.

    Args:
        groups: name the shards.
        kind: of records, as in `ShardSource`.
        cache: where copies of remote shards are kept.

    Returns:
        The sources by name of the group.

    Raises:
        FileNotFoundError: shards are missing; names all that are.
        DataError: as in `ShardSource`.
    """
    opened: dict[str, list[ShardSource]] = {group.name: [] for group in groups}
    problems = []
    for group in groups:
        made_by = _MADE_BY[kind if kind in _MADE_BY else group.kind]
        for spec in group.sources:
            try:
                opened[group.name].append(ShardSource(spec.paths, kind, cache, made_by))
            except FileNotFoundError as error:
                problems.append(str(error))
    if len(problems) > 1:
        total = sum(len(group.sources) for group in groups)
        raise FileNotFoundError(f"{len(problems)} of {total} sources are missing:\n  " + "\n  ".join(problems))
    if problems:
        raise FileNotFoundError(problems[0])
    return opened


def process_rows(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    """Choose the rows of every batch that one process makes, as int64 numbers within the batch."""
    local = batch_size // process_count
    return np.arange(process_index * local, (process_index + 1) * local)


def _derived_seed(seed: int, stream: str, *numbers: int) -> int:
    """Mix a seed with a stream's name and numbers, so that no two streams are alike."""
    return int(np.random.SeedSequence([seed, zlib.crc32(stream.encode()), *numbers]).generate_state(1)[0])


def _count_text(source: ShardSource) -> str:
    return f"{len(source)} records in {len(source.files)} shards"


def _look_at(spec: SourceSpec, source: ShardSource) -> _Sample:
    """Read a few records of a source, where that needs no transfer.

    Raises:
        DataError: why the first cannot be used, if none can.
    """
    if any(is_remote(file) for file in source.files):
        return _Sample(0, 0.0, 0)
    picks = np.unique(np.linspace(0, len(source) - 1, min(_SAMPLED, len(source))).astype(int))
    seconds, sides, problems = [], [], []
    for pick in picks:
        try:
            record = source[int(pick)]
        except DataError as error:
            # Counted when it is drawn in training; here it only costs precision.
            problems.append(error)
            continue
        if record.kind != "image" and record.fps > 0:
            seconds.append(record.num_frames / record.fps)
        if record.kind in KINDS:
            sides.append(min(record.height, record.width))
    if len(problems) == len(picks):
        raise DataError(
            problems[0].reason,
            f"none of {len(picks)} records of {spec.name} that were looked at can be used; the first: {problems[0]}",
        )
    count, mean = len(picks) - len(problems), float(np.mean(seconds)) if seconds else 0.0
    return _Sample(count, mean, int(np.median(sides or [0])))
