"""How the CPU kernels are compiled, cached and spread over threads.

`@kernel` compiles a function with numba on first use and keeps the machine code beside the package or, where that
is read-only, in the user's cache folder (NUMBA_CACHE_DIR names another). A kernel lets go of the GIL, so `spread`
runs one on every core: `kernel(worker, workers, ...)` does the `worker`-th of `workers` shares. Shares never add
into the same number, so the bits of a result do not depend on how many there are.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numba import njit
from numba.core import event

from cgc.progress import console

if TYPE_CHECKING:
    import torch

_threads = 0  # 0: as the environment says
_uncached = ""  # why kernels are compiled anew in every process; said once, if at all
_quiet = False
_seconds: dict[str, float] | None = None  # of kernels, while someone measures

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT = 1 << 30


def kernel(function: Callable | None = None, **options: Any) -> Any:
    """Compile a function on first use, once for all processes; `options` are numba's."""
    if function is None:
        return lambda f: kernel(f, **options)
    settings = {"error_model": "numpy", "nogil": True, **options}
    try:
        compiled = njit(cache=True, **settings)(function)
    except RuntimeError as error:  # numba found no folder to write to
        return _without_cache(njit(**settings)(function), error)
    machine_code: Any = compiled._cache  # pyright: ignore[reportAttributeAccessIssue]
    machine_code._cache_file._source_stamp = _source_stamp(function)
    save = machine_code.save_overload

    def save_or_go_on(signature: Any, result: Any) -> None:
        try:
            save(signature, result)
        except OSError as error:  # a full disk, say: the kernel itself is fine
            _without_cache(compiled, error)

    machine_code.save_overload = save_or_go_on
    return compiled


def _source_stamp(function: Callable) -> bytes:
    """Hash the file of a kernel and all of ours that it imports from: their code and constants become part of its own.

    numba itself looks at the one file only, and would go on with the old code of the others after an update.
    """
    here = Path(__file__).parent
    names, hashes = [function.__module__], {}
    while names:
        name = names.pop()
        file = here.joinpath(*name.split(".")[1:]).with_suffix(".py")
        if name not in hashes and name.startswith("cgc.") and file.exists():
            hashes[name], imported = _read_source(file, file.stat().st_mtime_ns)
            names += imported
    own = hashlib.sha256(Path(function.__code__.co_filename).read_bytes()).hexdigest()
    return hashlib.sha256(repr((own, sorted(hashes.items()))).encode()).digest()


@cache
def _read_source(file: Path, _modified: int) -> tuple[str, list[str]]:
    """Return the hash of a source file and the modules of ours it imports from."""
    text = file.read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest(), re.findall(r"^from (cgc\.[\w.]+) import", text, re.MULTILINE)


def _without_cache(compiled: Any, error: Exception) -> Any:
    global _uncached
    _uncached = _uncached or str(error)
    return compiled


def serve(device: torch.device) -> bool:
    """Say whether the kernels work on tensors of this device; on any other, torch's operations do all the work."""
    return device.type == "cpu"


def thread_count() -> int:
    """Return how many threads the kernels use: NUMBA_NUM_THREADS, else OMP_NUM_THREADS, else every allowed core."""
    if _threads:
        return _threads
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").split(",")[0].strip()  # OpenMP allows a list, a number a level
        if text.isdigit() and int(text) > 0:
            return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use `count` threads inside the block, whatever the environment says."""
    global _threads
    before, _threads = _threads, count
    try:
        yield
    finally:
        _threads = before


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="cgc")


def spread(work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call work(worker, workers, *arguments) for every worker, each on a thread; return what they give, in order."""
    if _seconds is None:
        return _spread(work, arguments)
    start = time.perf_counter()
    results = _spread(work, arguments)
    _seconds[work.__name__] = _seconds.get(work.__name__, 0.0) + time.perf_counter() - start
    return results


def _spread(work: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
    workers = thread_count()
    if workers == 1:
        return [work(0, 1, *arguments)]
    others = [_pool(workers - 1).submit(work, worker, workers, *arguments) for worker in range(1, workers)]
    first = work(0, workers, *arguments)  # this thread is one of them
    return [first, *(other.result() for other in others)]


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Add up the seconds of every kernel that `spread` runs inside the block, by its name."""
    global _seconds
    before, _seconds = _seconds, {}
    try:
        yield _seconds
    finally:
        _seconds = before


class _SayOnce(event.Listener):
    """Says that kernels are being compiled when the first one is."""

    said = False

    def on_start(self, event: event.Event) -> None:
        if not self.said and not _quiet:
            type(self).said = True
            where = f"; they cannot be kept for the next time ({_uncached})" if _uncached else ", once on this machine"
            console.print(f"compiling the CPU kernels{where}: up to half a minute")

    def on_end(self, event: event.Event) -> None:
        pass


def keep_memory() -> None:
    """Let glibc keep freed memory for the next array, in place of giving it back to the system and asking anew.

    A step's arrays are as large as the last step's, and fresh pages cost a tenth of it. For a whole process, so it is
    for commands to call; does nothing elsewhere than on glibc.
    """
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
    except (OSError, AttributeError):
        return


def be_quiet(quiet: bool) -> None:
    """Say nothing (or again something) when kernels are compiled."""
    global _quiet
    _quiet = quiet


event.register("numba:compile", _SayOnce())
