"""What a run was fed: clips by source, skipped records by source and reason, and when those are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jepa_jax.data.errors import DataError

# Below this many clips a fraction says nothing.
MIN_CLIPS = 100
_NAMES_SHOWN = 5


class Skip(NamedTuple):
    """Name one record that was replaced: its source as in `Notes.clips`, place, origin and the reason."""

    source: str
    location: str
    source_id: str
    reason: str


class SkipCounter:
    """Count clips and skipped records of this process since it started, and stop a run that loses too many.

    Args:
        max_bad_fraction: largest allowed skipped / (skipped + used) draws, in
            [0, 1]; judged once MIN_CLIPS draws were made, over all sources.
    """

    def __init__(self, max_bad_fraction: float):
        if not 0.0 <= max_bad_fraction <= 1.0:
            raise ValueError(f"max_bad_fraction is {max_bad_fraction}; it must lie between 0 and 1")
        self._limit = max_bad_fraction
        self.clips: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()
        self._names: dict[tuple[str, str], dict[str, None]] = {}

    def update(self, clips: Mapping[str, int], skips: Iterable[Skip]) -> None:
        """Add one batch: the good clips by source, and the notes that came with them.

        Raises:
            DataError: 'too many skips', past the allowed fraction.
        """
        self.clips.update(clips)
        for skip in skips:
            self.counts[skip.source, skip.reason] += 1
            name = f"{skip.location} ({skip.source_id})" if skip.source_id else skip.location
            self._names.setdefault((skip.source, skip.reason), {})[name] = None
        bad = self.counts.total()
        drawn = self.clips.total() + bad
        if drawn >= MIN_CLIPS and bad > self._limit * drawn:
            raise DataError(
                "too many skips",
                f"{bad} of {drawn} drawn clips had to be skipped, more than the allowed fraction {self._limit:g} "
                f"(max_bad_fraction). Repair or remove these records, or raise the limit:\n{self.report()}",
            )

    def totals(self) -> np.ndarray:
        """Return int64 `[2, sources]`, good clips and replaced draws, by name of source.

        The columns are the same in every process of a run, so totals of processes can be added.
        """
        skipped = Counter()
        for (source, _), count in self.counts.items():
            skipped[source] += count
        return np.array([[table[source] for source in sorted(self.clips)] for table in (self.clips, skipped)], np.int64)

    def metrics(self, totals: np.ndarray) -> dict[str, float]:
        """Return numbers to plot.

        Args:
            totals: from `totals`, of this process or of all.

        Returns:
            `data/share/SOURCE`, the part of all clips so far that came from a source;
            `data/skipped/SOURCE`, how many of its draws were replaced; `data/skipped`, all of them.
        """
        rows = {f"data/share/{source}": used / totals[0].sum() for source, (used, _) in self._rows(totals)}
        rows |= {f"data/skipped/{source}": replaced for source, (_, replaced) in self._rows(totals)}
        return {name: float(value) for name, value in (rows | {"data/skipped": totals[1].sum()}).items()}

    def mixture(self, totals: np.ndarray) -> str:
        """Say in one line what the clips so far came from; `totals` as in `metrics`."""
        clips = totals[0].sum()
        parts = [
            f"{source} {used} ({used / clips:.1%}{f', {replaced} replaced' if replaced else ''})"
            for source, (used, replaced) in self._rows(totals)
        ]
        return f"mixture of {clips} clips: {', '.join(parts)}"

    def _rows(self, totals: np.ndarray) -> list[tuple[str, tuple[int, int]]]:
        return list(zip(sorted(self.clips), totals.T.tolist(), strict=True))

    def report(self) -> str:
        """Say in text what this process skipped, by source and reason, with the first names."""
        if not self.counts:
            return f"no clip skipped in {self.clips.total()}"
        lines = [f"skipped {self.counts.total()} draws beside {self.clips.total()} good clips"]
        for (source, reason), count in self.counts.most_common():
            names = list(self._names[source, reason])
            more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            shown = ", ".join(names[:_NAMES_SHOWN])
            lines.append(f"  {source}, {reason}: {count} draws of {len(names)} records: {shown}{more}")
        return "\n".join(lines)
