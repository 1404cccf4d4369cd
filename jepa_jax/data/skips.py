"""Skipped clips: what is noted about each, and when there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from jepa_jax.data.errors import DataError

# Below this many clips a fraction says nothing.
MIN_CLIPS = 100
_NAMES_SHOWN = 5


class Skip(NamedTuple):
    """Name one record that was replaced: its source, place, origin and the reason."""

    source: str
    location: str
    source_id: str
    reason: str


class SkipCounter:
    """Count skipped records by reason and stop a run that loses too many.

    Args:
        max_bad_fraction: largest allowed skipped / (skipped + used) draws, in
            [0, 1]; judged once MIN_CLIPS draws were made.
    """

    def __init__(self, max_bad_fraction: float):
        if not 0.0 <= max_bad_fraction <= 1.0:
            raise ValueError(f"max_bad_fraction is {max_bad_fraction}; it must lie between 0 and 1")
        self._limit = max_bad_fraction
        self.clips = 0
        self.counts: Counter[str] = Counter()
        self._names: dict[str, dict[str, None]] = {}

    def update(self, clips: int, skips: Iterable[Skip]) -> None:
        """Add one batch: `clips` good clips and the notes that came with them.

        Raises:
            DataError: 'too many skips', past the allowed fraction.
        """
        self.clips += clips
        for skip in skips:
            self.counts[skip.reason] += 1
            name = f"{skip.location} ({skip.source_id})" if skip.source_id else skip.location
            self._names.setdefault(skip.reason, {})[name] = None
        bad = self.counts.total()
        drawn = self.clips + bad
        if drawn >= MIN_CLIPS and bad > self._limit * drawn:
            raise DataError(
                "too many skips",
                f"{bad} of {drawn} drawn clips had to be skipped, more than the allowed fraction {self._limit:g} "
                f"(max_bad_fraction). Repair or remove these records, or raise the limit:\n{self.report()}",
            )

    def report(self) -> str:
        """Say in text what was skipped, one line per reason with the first names."""
        if not self.counts:
            return f"no clip skipped in {self.clips}"
        lines = [f"skipped {self.counts.total()} draws beside {self.clips} good clips"]
        for reason, count in self.counts.most_common():
            names = list(self._names[reason])
            more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            lines.append(f"  {reason}: {count} draws of {len(names)} records: {', '.join(names[:_NAMES_SHOWN])}{more}")
        return "\n".join(lines)
