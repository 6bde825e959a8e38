"""Run a command as a user does, in a process of its own: how long it takes, and how much memory.

Run as a script it is what stands between: Linux counts to a new process the memory of the one that started it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import NamedTuple

from cgc.errors import InputError


class Taken(NamedTuple):
    """Seconds by the clock and of all processors, and the largest resident memory of any of its processes, in bytes."""

    seconds: float
    cpu: float
    peak: int

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.cpu:.1f} CPU s, {self.peak / 1e9:.2f} GB"


def time_python(*arguments: str) -> Taken:
    """Run this Python with some arguments and wait for it; InputError where it fails."""
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"`python {' '.join(arguments)}` failed; see what it says")
    return Taken(*json.loads(done.stdout))


def main(arguments: list[str]) -> int:
    """Do what `time_python` asks for, and print what it takes."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds, process.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss if sys.platform == "darwin" else 1024 * usage.ru_maxrss
    print(json.dumps([seconds, usage.ru_utime + usage.ru_stime, peak]))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
