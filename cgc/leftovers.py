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

STILL_WRITTEN = 3600.0
"""Seconds since something half-made was last written to, within which it may yet become whole: on another machine."""


def clear_files(root: Path) -> None:
    """Remove the files below a folder that processes of this machine were writing when they were killed."""
    for path in root.rglob(".*.partial*"):
        written_by = re.fullmatch(r"\..*\.(\d+)\.partial(\.\w+)?", path.name)
        if written_by and path.is_file() and _is_left(path, int(written_by[1])):
            with contextlib.suppress(OSError):
                path.unlink()


def clear_folders(parent: Path, name: str) -> None:
    """Remove the working folders of a name that processes of this machine had when they were killed."""
    with contextlib.suppress(OSError):  # where the parent cannot be read, or is not there
        for folder in parent.iterdir():
            written_by = re.fullmatch(rf"\.{re.escape(name)}\.(\d+)\.partial", folder.name)
            if written_by and _is_left(folder, int(written_by[1])):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left(path: Path, pid: int) -> bool:
    """Say whether what a process was making is left: the process is no more, and nobody has written to it lately.

    Where asking for a process is no POSIX matter, and may end it, nothing is.
    """
    if os.name != "posix" or parallel.is_alive(pid):
        return False
    with contextlib.suppress(OSError):
        return time.time() - max(p.stat().st_mtime for p in (path, *path.rglob("*"))) > STILL_WRITTEN
    return False
