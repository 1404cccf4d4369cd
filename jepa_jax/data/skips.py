"""What a run was fed: clips by source, skipped records by source and reason, and when those are too many."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging
# The largest allowed part of bad records, where nothing else is said.
MAX_BAD_FRACTION = 0.05
# Below this many draws a fraction says nothing.
MIN_DRAWS = 100
# How many standard deviations of a count lie between the limit and a stop: a source that
# is as bad as allowed then stops one run in thousands, however often it is judged.
_MARGIN = 4.0
# A row fails by chance, in a source as bad as allowed, less often than this.
_UNLUCKY_ROW = 1e-15
_FEWEST_TRIES, _MOST_TRIES = 10, 1000
_NAMES_SHOWN = 5
# Rows of a table of counts: clips used and draws replaced, and those before the run last stopped over them.
_ROWS = 4


class Skip(NamedTuple):
    """Name one record that was replaced: its source as in `Notes.clips`, place, origin and the reason."""

    source: str
    location: str
    source_id: str
    reason: str


def max_tries(max_bad_fraction: float) -> int:
    """Return how many records are tried for one row of a batch.

    So many that they are all bad by chance in no run, as long as the source is within the limit.

    Args:
        max_bad_fraction: largest allowed skipped / (skipped + used) draws of a source.

    Raises:
        ValueError: it is no fraction.
    """
    _check_limit(max_bad_fraction)
    if not 0 < max_bad_fraction < 1:
        return _MOST_TRIES if max_bad_fraction else _FEWEST_TRIES
    tries = math.log(_UNLUCKY_ROW) / math.log(max_bad_fraction)
    return math.ceil(min(max(tries, _FEWEST_TRIES), _MOST_TRIES))


def _check_limit(fraction: float) -> None:
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"max_bad_fraction is {fraction}; it must lie between 0 and 1")


class Totals:
    """Hold what a run was fed so far, over all its processes and restarts.

    Args:
        table: int64 `[4, sources]`: clips used and draws replaced, and how many of both were
            made before the run last stopped over them; those are not held against it again.
        sources: names of the columns.
        max_bad_fraction: largest allowed replaced / (replaced + used) draws of any source, and of all.
    """

    def __init__(self, table: np.ndarray, sources: Iterable[str], max_bad_fraction: float):
        self._table, self._sources, self._limit = table, tuple(sources), max_bad_fraction

    def metrics(self) -> dict[str, float]:
        """Return numbers to plot.

        Returns:
            `data/share/SOURCE`, the part of all clips that came from a source;
            `data/skipped/SOURCE`, how many of its draws were replaced; `data/skipped`, all of them.
        """
        clips = max(1, int(self._table[0].sum()))
        rows = {f"data/share/{source}": used / clips for source, (used, *_) in self._columns()}
        rows |= {f"data/skipped/{source}": replaced for source, (_, replaced, *_) in self._columns()}
        return {name: float(value) for name, value in (rows | {"data/skipped": self._table[1].sum()}).items()}

    def mixture(self) -> str:
        """Say in one line what the clips came from."""
        clips = int(self._table[0].sum())
        parts = [
            f"{source} {used} ({used / max(1, clips):.1%}{f', {replaced} replaced' if replaced else ''})"
            for source, (used, replaced, *_) in self._columns()
        ]
        return f"mixture of {clips} clips: {', '.join(parts)}"

    def excess(self) -> str:
        """Say which sources lost more draws than is allowed; empty if none did.

        A count is allowed to exceed its limit by some standard deviations, since it is judged again and again.
        """
        columns = [("all sources", self._table.sum(axis=1).tolist())] if len(self._sources) > 1 else []
        lines = []
        for source, (used, replaced, used_before, replaced_before) in [*self._columns(), *columns]:
            bad = replaced - replaced_before
            drawn = bad + used - used_before
            allowed = self._limit * drawn
            if drawn >= MIN_DRAWS and bad > allowed + _MARGIN * math.sqrt(allowed):
                lines.append(f"  {source}: {bad} of {drawn} draws ({bad / drawn:.1%})")
        if not lines:
            return ""
        return (
            "too many records cannot be used, more than the allowed fraction "
            f"{self._limit:g} (data.max_bad_fraction):\n" + "\n".join(lines) + "\nThe log names some of them, with "
            "the reasons. Repair these records, leave the source out, or raise the limit; the same command then goes on"
        )

    def record(self, *, forgiven: bool) -> dict[str, list[int]]:
        """Return what a checkpoint keeps, for `SkipCounter.restore`.

        Args:
            forgiven: whether the run stops over these counts. What follows is judged by itself: whoever starts the
                run again has seen to it.
        """
        table = np.concatenate([self._table[:2], self._table[:2]]) if forgiven else self._table
        return dict(zip(self._sources, table.T.tolist(), strict=True))

    def _columns(self) -> list[tuple[str, list[int]]]:
        return list(zip(self._sources, self._table.T.tolist(), strict=True))


class SkipCounter:
    """Count the clips and skipped records of a run.

    Args:
        max_bad_fraction: largest allowed skipped / (skipped + used) draws of any source, and of all, in [0, 1].
        add_up: (int64 array) -> its sum over the processes of the run, the same in all of them.
    """

    def __init__(self, max_bad_fraction: float, add_up: Callable[[np.ndarray], np.ndarray] = lambda counts: counts):
        _check_limit(max_bad_fraction)
        self._limit, self._add_up = max_bad_fraction, add_up
        self.clips: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()
        self._names: dict[tuple[str, str], dict[str, None]] = {}
        self._earlier: dict[str, list[int]] = {}

    def restore(self, record: Mapping[str, list[int]]) -> None:
        """Go on from what `Totals.record` kept; with the same record in every process."""
        self._earlier = {source: list(counts) for source, counts in record.items()}

    def update(self, clips: Mapping[str, int], skips: Iterable[Skip]) -> None:
        """Add one batch of this process: the good clips by source, and the notes that came with them.

        The first skip of every source and reason is logged.
        """
        self.clips.update(clips)
        for skip in skips:
            name = f"{skip.location} ({skip.source_id})" if skip.source_id else skip.location
            if (skip.source, skip.reason) not in self.counts:
                logging.warning(
                    "%s: a record cannot be used (%s) and is replaced by another of its source: %s; further ones are "
                    "only counted", skip.source, skip.reason, name,
                )  # fmt: skip
            self.counts[skip.source, skip.reason] += 1
            self._names.setdefault((skip.source, skip.reason), {})[name] = None

    def totals(self) -> Totals:
        """Add up all processes and what came before the last restart; all processes must call it together.

        The sources must be the same in all of them, as they are after the first `update`.
        """
        skipped = Counter()
        for (source, _), count in self.counts.items():
            skipped[source] += count
        sources = sorted(self.clips)
        counts = [[table[source] for source in sources] for table in (self.clips, skipped)]
        summed = self._add_up(np.array(counts, np.int64))
        everywhere = sorted({*sources, *self._earlier})
        table = np.zeros((_ROWS, len(everywhere)), np.int64)
        for number, source in enumerate(everywhere):
            table[:, number] = self._earlier.get(source, 0)
            if source in self.clips:
                table[:2, number] += summed[:, sources.index(source)]
        return Totals(table, everywhere, self._limit)

    def report(self) -> str:
        """Say in text what this process skipped since it started, by source and reason, with the first names."""
        if not self.counts:
            return f"no clip skipped in {self.clips.total()}"
        lines = [f"skipped {self.counts.total()} draws beside {self.clips.total()} good clips"]
        for (source, reason), count in self.counts.most_common():
            names = list(self._names[source, reason])
            more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            shown = ", ".join(names[:_NAMES_SHOWN])
            lines.append(f"  {source}, {reason}: {count} draws of {len(names)} records: {shown}{more}")
        return "\n".join(lines)
