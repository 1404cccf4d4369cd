"""What every process that this package starts does first."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import connection

import cv2

# Of mallopt, in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_TRACKER_FILTER = "ignore:resource_tracker"


def prepare_worker() -> None:
    """Set up a worker process: one thread per image, silent, and gone when its parent is gone."""
    one_thread_per_image()
    reuse_memory()
    # PyAV keeps FFmpeg silent unless a level is set, and setting one can block threads that decode.
    # Ctrl-C reaches the whole group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def usable_cores() -> int:
    """Count the processor cores that this process may use: in containers and under SLURM fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_thread_per_image() -> None:
    """Keep OpenCV from starting its own threads: parallelism is over files and batches."""
    cv2.setNumThreads(1)


def reuse_memory() -> None:
    """Keep freed memory in this process, where the system's C library is glibc.

    Frames and clips are megabytes that live for milliseconds. By default each is given back to the system, which has
    to clear the pages anew for the next one: some percent of the time of a batch.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_TRIM_THRESHOLD, 512 * 2**20)
        library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)


def silence_resource_tracker() -> None:
    """Let Python delete shared memory at exit without a warning; call it before the first process is started.

    Grain leaves the last batches for Python's resource tracker, which deletes them and warns. The
    tracker is a process of its own that takes its filters from here when it starts.
    """
    if _TRACKER_FILTER not in sys.warnoptions:
        sys.warnoptions.append(_TRACKER_FILTER)


def _exit_with_parent() -> None:
    # A parent killed outright cannot stop its workers, which would wait for ever.
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
