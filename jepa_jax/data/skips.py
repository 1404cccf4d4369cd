"""What a run was fed: clips by source, skipped records by source and reason, and when those are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

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

    def metrics(self) -> dict[str, float]:
        """Return numbers to plot.

        Returns:
            `data/share/SOURCE`, the part of all clips so far that came from a source;
            `data/skipped/SOURCE`, how many of its draws were replaced; `data/skipped`, all of them.
        """
        clips = self.clips.total()
        skipped = self._skipped()
        rows = {f"data/share/{source}": count / clips for source, count in sorted(self.clips.items())}
        rows |= {f"data/skipped/{source}": float(skipped[source]) for source in sorted(self.clips)}
        return rows | {"data/skipped": float(self.counts.total())}

    def mixture(self) -> str:
        """Say in one line what the clips so far came from."""
        clips, skipped = self.clips.total(), self._skipped()
        parts = [
            f"{source} {count} ({count / clips:.1%}{f', {skipped[source]} replaced' if skipped[source] else ''})"
            for source, count in sorted(self.clips.items())
        ]
        return f"mixture of {clips} clips: {', '.join(parts)}"

    def report(self) -> str:
        """Say in text what was used and what was skipped, by source and reason, with the first names."""
        lines = [self.mixture()] if self.clips else []
        if not self.counts:
            return "\n".join([*lines, f"no clip skipped in {self.clips.total()}"])
        lines.append(f"skipped {self.counts.total()} draws beside {self.clips.total()} good clips")
        for (source, reason), count in self.counts.most_common():
            names = list(self._names[source, reason])
            more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            shown = ", ".join(names[:_NAMES_SHOWN])
            lines.append(f"  {source}, {reason}: {count} draws of {len(names)} records: {shown}{more}")
        return "\n".join(lines)

    def _skipped(self) -> Counter[str]:
        by_source: Counter[str] = Counter()
        for (source, _), count in self.counts.items():
            by_source[source] += count
        return by_source
