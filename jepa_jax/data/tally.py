"""Add up what `survey` found in records, and say it as JSON."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from jepa_jax.data.latents import Origin
from jepa_jax.data.motion import Dimensions, Layout, Motion, Numbers
from jepa_jax.data.survey import Facts, FeatureFacts

_BINS = 30
_EXAMPLES = 3
_QUANTILES = {"min": 0.0, "p05": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


@dataclass
class MotionTally:
    """Add up trajectories of one layout.

    Args:
        motions: of each.
    """

    motions: list[Motion] = field(default_factory=list)

    def numbers(self, kind: str) -> Numbers | None:
        """Return the 'states', 'actions' or 'extras' of all trajectories; None if none has any."""
        found = [numbers for motion in self.motions if (numbers := getattr(motion, kind)) is not None]
        if not found:
            return None
        kept, low, high = zip(*found)
        return Numbers(np.concatenate(kept), np.min(low, axis=0), np.max(high, axis=0))

    def summary(self, layout: Layout) -> dict:
        """Return everything as JSON can hold it."""
        motions = self.motions
        turns = [motion.turn for motion in motions if motion.turn is not None]
        states, actions, extras = (self.numbers(kind) for kind in ("states", "actions", "extras"))
        return {
            "trajectories": len(motions),
            "frame": layout.frame,
            "rotation": layout.rotation,
            "control_rate_hz": _counts(f"{motion.control_rate:.4g}" for motion in motions),
            "header_fps": _counts(f"{motion.header_fps:.4g}" for motion in motions),
            "views": _counts(name for motion in motions for name in motion.views),
            "views_with_extrinsics": _counts(name for motion in motions for name in motion.with_extrinsics),
            "gaps": _steps(motion.gaps for motion in motions) | {"measured_by": layout.gap_measure()},
            "angle_wraps": _steps(motion.wraps for motion in motions) if layout.angles().any() else None,
            "idle_share": sum(motion.idle for motion in motions) / max(1, sum(motion.steps for motion in motions)),
            "fastest_turn_rad_per_s": quantiles(turns),
            "states": _summaries(layout.states, states),
            "actions": _summaries(layout.actions, actions) if actions else "derived from the states",
            "extras": _summaries(layout.extras, extras) if extras else [],
        }  # fmt: skip


@dataclass
class Tally:
    """Add up the facts of records.

    Args:
        shards: files that were looked at.
        shard_bytes: size of those on this host.
        records: looked at, damaged ones included.
        total: records of all shards; more than `records` where a sample was drawn.
        kinds, rates, sizes, labels, notes: readable records by these.
        damage: [location, reason, message] of everything that is damaged.
        num_bytes, seconds: of every readable record, in order.
        motions: of trajectories, by layout.
        features: what is stored of frames, by what made it.
        prefix: folder that all sources have in common.
        examples: the first source ids.
        duplicates: [source id, location] of records whose source was seen before.
    """

    shards: int = 0
    shard_bytes: int = 0
    records: int = 0
    total: int = 0
    frames: int = 0
    kinds: Counter = field(default_factory=Counter)
    rates: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)
    damage: list[tuple[str, str, str]] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    motions: dict[Layout, MotionTally] = field(default_factory=dict)
    features: dict[Origin, list[FeatureFacts]] = field(default_factory=dict)
    prefix: str | None = None
    examples: list[str] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set)

    def add(self, facts: Facts) -> None:
        """Add one record."""
        self.records += 1
        if facts.damage:
            self.damage.append((facts.location, *facts.damage))
        if facts.kind is None:
            return
        self.kinds[facts.kind] += 1
        self.frames += facts.num_frames
        self.num_bytes.append(facts.num_bytes)
        if facts.kind != "image":
            self.seconds.append(facts.seconds)
            self.rates[f"{facts.fps:.2f}".rstrip("0").rstrip(".")] += 1
        self.sizes[facts.size] += 1
        self.labels[facts.label] += 1
        self.notes.update(facts.notes)
        if facts.motion:
            self.motions.setdefault(facts.motion.layout, MotionTally()).motions.append(facts.motion)
        if facts.features:
            self.features.setdefault(facts.features.origin, []).append(facts.features)
        self._add_source(facts.source_id, facts.location)

    def _add_source(self, source_id: str, location: str) -> None:
        folder = os.path.dirname(source_id.partition("#")[0])
        self.prefix = folder if self.prefix is None else _common_folder(self.prefix, folder)
        if len(self.examples) < _EXAMPLES:
            self.examples.append(source_id)
        # Eight bytes each: the names of millions of clips would fill the memory.
        key = hashlib.blake2b(source_id.encode(errors="surrogateescape"), digest_size=8).digest()
        if key in self._seen:
            self.duplicates.append((source_id, location))
        self._seen.add(key)

    def damage_counts(self) -> dict[str, int]:
        """Count what is damaged by reason, most frequent first."""
        return dict(Counter(reason for _, reason, _ in self.damage).most_common())

    def summary(self) -> dict:
        """Return everything as JSON can hold it."""
        seconds = sum(self.seconds)
        return {
            "shards": self.shards,
            "shard_bytes": self.shard_bytes,
            "records": self.records,
            "records_in_shards": self.total,
            "kinds": dict(self.kinds),
            "hours": seconds / 3600,
            "frames": self.frames,
            "bytes_per_record": quantiles(self.num_bytes),
            "mean_bytes_per_record": float(np.mean(self.num_bytes)) if self.num_bytes else None,
            "seconds_per_record": quantiles(self.seconds),
            "fps_histogram": dict(sorted(self.rates.items(), key=lambda pair: float(pair[0]))),
            "sizes": {f"{height}x{width}": count for (height, width), count in self.sizes.most_common()},
            "labels": {str(label): count for label, count in sorted(self.labels.items(), key=_label_order)},
            "sources": {
                "distinct": len(self._seen), "folder": self.prefix, "examples": self.examples,
                "duplicates": [{"source_id": name, "location": place} for name, place in self.duplicates],
            },
            "notes": dict(sorted(self.notes.items())),
            "features": [
                origin._asdict() | {
                    "trajectories": len(found), "frames": sum(one.frames for one in found),
                    "bytes": sum(one.num_bytes for one in found),
                }
                for origin, found in self.features.items()
            ],
            "trajectories": [tally.summary(layout) for layout, tally in self.motions.items()],
            "damage_by_reason": self.damage_counts(),
            "damage": [{"location": place, "reason": reason, "message": text} for place, reason, text in self.damage],
        }  # fmt: skip


def _common_folder(left: str, right: str) -> str:
    # os.path.commonpath would take a slash out of URLs.
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left.split("/"), right.split("/")))
    return "/".join(part for part, _ in pairs)


def _label_order(pair: tuple[int | None, int]) -> tuple[bool, int]:
    return pair[0] is None, pair[0] or 0


def quantiles(values: Iterable[float]) -> dict[str, float] | None:
    """Return least, greatest and some values between; None if there are none."""
    values = np.asarray(list(values), np.float64)
    return {name: float(np.quantile(values, part)) for name, part in _QUANTILES.items()} if len(values) else None


def _steps(counts: Iterable[int]) -> dict[str, int]:
    counts = list(counts)
    return {"steps": sum(counts), "trajectories": sum(count > 0 for count in counts)}


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count float `[n]` in bins between their extremes.

    Returns:
        int64 `[bins]` counts and float64 `[bins + 1]` edges.
    """
    values = np.asarray(values, np.float64)
    low, high = values.min(), values.max()
    # Numbers that do not differ still need a bin that has a width.
    margin = 0.5 if low == high else 0.0
    return np.histogram(values, _BINS, (low - margin, high + margin))


def _summaries(dimensions: Dimensions, numbers: Numbers) -> list[dict]:
    found = []
    for column, (name, unit) in enumerate(zip(*dimensions, strict=True)):
        values = numbers.kept[:, column].astype(np.float64)
        counts, edges = histogram(values)
        found.append({
            "name": name, "unit": unit, "min": float(numbers.low[column]), "max": float(numbers.high[column]),
            "mean": float(values.mean()), "std": float(values.std()),
            "histogram": {"counts": counts.tolist(), "low": float(edges[0]), "high": float(edges[-1])},
        })  # fmt: skip
    return found
