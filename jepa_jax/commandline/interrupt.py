"""The end of a command that Ctrl-C stopped."""

import multiprocessing
import sys

SHARDS_KEPT = "stopped; finished shards are kept, run the same command again to go on"


def stop(message):
    """End what works for this process and say so.

    Args:
      message: what is left, and what to do; a line for people.

    Returns:
      The exit status of a command that was interrupted.
    """
    # Without this, leaving would wait for what the workers are at.
    for child in multiprocessing.active_children():
        child.kill()
    sys.stderr.write(f"{message}\n")
    return 130
