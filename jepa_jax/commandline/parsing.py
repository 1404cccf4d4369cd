"""Command lines on which lists of numbers may begin with a minus."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence

_MINUS = re.compile(r"-[\d.]")
# Read as values without help, unless an option looks like one.
_PLAIN = re.compile(r"-\d+|-\d*\.\d+")


class Parser(argparse.ArgumentParser):
    """Parse as argparse does, but take `-0.1,0` and `-1:1` for the value of the option before, not for an option."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse; the arguments are those of `argparse.ArgumentParser.parse_known_args`."""
        return super().parse_known_args(_join(sys.argv[1:] if args is None else args), namespace)


def _join(arguments: Iterable[str]) -> list[str]:
    """Put what begins like a negative number behind the option before it, with an equals sign."""
    joined: list[str] = []
    for text in arguments:
        before = joined[-1] if joined else ""
        if _MINUS.match(text) and not _PLAIN.fullmatch(text) and re.fullmatch(r"--[^=]+", before):
            joined[-1] = f"{before}={text}"
        else:
            joined.append(text)
    return joined
