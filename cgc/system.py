"""What not every operating system has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

try:
    import fcntl
    import resource
except ImportError:  # on Windows
    fcntl = resource = None


def hold(folder: Path) -> int | None:
    """Hold a folder for this process until it ends or lets go; BlockingIOError where another process has it.

    Returns what `let_go` takes. Where the system knows no such locks nothing is held, nor on disks that have none.
    """
    if fcntl is None:
        return None
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise
    except OSError:  # a disk without locks
        pass
    return held


def let_go(held: int | None) -> None:
    """Let go of what `hold` has returned."""
    if held is not None:
        os.close(held)


def peak_rss_bytes() -> int:
    """The largest resident memory that this process has had; 0 where the system does not say."""
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
