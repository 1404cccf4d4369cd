"""Say what a run of `prepare` wrote and left out, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping

from jepa_jax.commandline.skipped import count_reasons, list_reasons, too_many
from jepa_jax.data import shards
from jepa_jax.data.publish import write_json
from jepa_jax.data.wording import duration

_RATES_SHOWN = 8


def finish(
    report: shards.ShardReport, plan: shards.ShardPlan, units: str, max_skip_fraction: float, more: Mapping | None = None
) -> tuple[list[str], int]:
    """Write the JSON report beside the shards and judge the run.

    Args:
        report: counts over all shards.
        plan: what was written.
        units: what the items are called.
        max_skip_fraction: larger parts of skipped items fail the run, in [0, 1].
        more: JSON-able entries for the JSON report.

    Returns:
        Lines of text, and the exit status: 1 if nothing was written or too much was skipped.

    Raises:
        OSError: the report cannot be written.
    """
    path = plan.report
    write_json(path, _summary(report) | dict(more or {}))
    total = report.written + len(report.skips)
    timed = f", {duration(report.seconds)}" if plan.spec.kind != "image" else ""
    lines = [f"{report.written} of {total} {units} in {plan.folder}{timed}, {report.bytes / 1e6:.1f} MB"]
    if report.split:
        lines = [f"{report.written} of {total} records of {report.items} {units}" + lines[0].partition(units)[2]]
        divided = f"{report.split} {units} in {report.parts} parts"
        lines.append(f"note: longer than --max-seconds, so stored in parts: {divided}")
    if report.rates:
        lines.append(f"frames/s: {_rates_text(report.rates)}")
    lines += [f"note: {note}: {count} {units}" for note, count in sorted(report.notes.items())]
    lines += list_reasons(report.skips)
    lines.append(f"report: {path}")
    if not report.written:
        lines.append(f"error: nothing was written; all {units} were skipped for the reasons above")
        return lines, 1
    wrong = too_many([message for *_, message in report.skips], total, max_skip_fraction, units,
                     "the shards are complete, raise the limit to accept them")
    return lines + wrong, 1 if wrong else 0


def _summary(report: shards.ShardReport) -> dict:
    return {
        "items": report.items,
        "written": report.written,
        "split": report.split,
        "parts": report.parts,
        "skipped": len(report.skips),
        "hours": report.seconds / 3600,
        "bytes": report.bytes,
        "fps_histogram": dict(sorted(report.rates.items(), key=lambda pair: float(pair[0]))),
        "notes": dict(sorted(report.notes.items())),
        "skips_by_reason": count_reasons(report.skips),
        "skips": [{"path": path, "reason": reason, "message": text} for path, reason, text in report.skips],
    }


def _rates_text(rates: dict[str, int]) -> str:
    """List the most frequent rates in ascending order, and how many records have others."""
    common = sorted(rates, key=lambda rate: (-rates[rate], float(rate)))[:_RATES_SHOWN]
    parts = [f"{rate} ({rates[rate]})" for rate in sorted(common, key=float)]
    others = sum(rates.values()) - sum(rates[rate] for rate in common)
    return ", ".join(parts) + (f", others ({others})" if others else "")
