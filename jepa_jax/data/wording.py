"""How amounts are said to people."""

from __future__ import annotations

_SECONDS_PER_HOUR = 3600
# Shorter times are said in seconds: 0.00925 hours tell nobody anything.
_LEAST_HOURS = 0.1


def duration(seconds: float) -> str:
    """Say a time in hours, or in seconds if it is short."""
    hours = seconds / _SECONDS_PER_HOUR
    return f"{hours:.3g} hours" if hours >= _LEAST_HOURS else f"{seconds:.3g} seconds"
