"""Results on standard output, which may be read by a program that stops reading."""

import os
import sys
from collections.abc import Iterable


def write_lines(lines: Iterable[str]) -> None:
    """Write lines; when nobody reads them any more, as after `| head`, do without.

    The command goes on and ends as it would have: what it stores and its exit status stay the same.
    """
    try:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still held back would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
