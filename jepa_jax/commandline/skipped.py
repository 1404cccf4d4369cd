"""How a command ends that left out what it could not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

_NAMES_SHOWN = 5


def count_reasons(skips: Sequence[tuple[str, str, str]]) -> dict[str, int]:
    """Count skipped items, each (name, reason, message), by reason, the most frequent first."""
    return dict(Counter(reason for _, reason, _ in skips).most_common())


def list_reasons(skips: Sequence[tuple[str, str, str]]) -> list[str]:
    """Say why items were skipped, and name the first of each reason.

    Args:
        skips: (name, reason, message) of every item.

    Returns:
        A line per reason.
    """
    lines = []
    for reason, count in count_reasons(skips).items():
        names = [name for name, other, _ in skips if other == reason]
        more = f", and {count - _NAMES_SHOWN} more" if count > _NAMES_SHOWN else ""
        lines.append(f"skipped, {reason}: {count} ({', '.join(names[:_NAMES_SHOWN])}{more})")
    return lines


def too_many(messages: Sequence[str], total: int, limit: float, units: str, then: str = "") -> list[str]:
    """Complain about more skipped items than are allowed.

    Args:
        messages: why, of every item that was skipped.
        total: number of items, skipped and not; above 0.
        limit: largest allowed part of them, in [0, 1].
        units: what the items are, in the plural.
        then: what to say about the rest; empty to show the first message.

    Returns:
        One line, or none where the command may succeed.
    """
    fraction = len(messages) / total
    if fraction <= limit:
        return []
    then = then or f"first: {messages[0]}"
    return [f"error: {fraction:.1%} of the {units} were skipped, more than --max-skip-fraction {limit:g}; {then}"]
