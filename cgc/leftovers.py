"""What processes that were killed have left half-made: hidden files and folders with their number in the name.

Files are called .STEM.PID.partial.SUFFIX (see `files.write_beside`), folders .NAME.PID.partial.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

from cgc import parallel

STILL_WRITTEN = 60.0
"""Seconds since a file that is not whole was last written to, within which it may yet become so."""


def clear_files(root: Path) -> None:
    """Remove the files below a folder that processes of this machine were writing when they were killed.

    A file that was written to in the last minute stays: it may be another machine's.
    """
    for path in root.rglob(".*.partial*"):
        written_by = re.fullmatch(r"\..*\.(\d+)\.partial(\.\w+)?", path.name)
        if written_by and _is_dead(int(written_by[1])):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STILL_WRITTEN:
                    path.unlink()


def clear_folders(parent: Path, name: str) -> None:
    """Remove the working folders of a name that processes of this machine had when they were killed."""
    with contextlib.suppress(OSError):  # where the parent cannot be read, or is not there
        for folder in parent.iterdir():
            written_by = re.fullmatch(rf"\.{re.escape(name)}\.(\d+)\.partial", folder.name)
            if written_by and _is_dead(int(written_by[1])):
                shutil.rmtree(folder, ignore_errors=True)


def _is_dead(pid: int) -> bool:
    """Say whether a process is no more; nobody is asked where asking is no POSIX matter and may end it."""
    return os.name == "posix" and not parallel.is_alive(pid)
