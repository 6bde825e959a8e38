"""Compiling, caching and spreading the CPU kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cgc.kernels import kernel, measured, spread, thread_count, threads

PROGRAM = """
import os
import numpy as np
from numba.core.caching import CacheImpl
if {nowhere}:
    CacheImpl._locator_classes = []
from cgc.kernels import be_quiet
from cgc.rasterize.bins import _sort_by_depth
be_quiet({quiet})
order = _sort_by_depth(np.array([2.0, 1.0], np.float32), np.ones((2, 2), np.int32))
assert order.tolist() == [1, 0]
"""


ROOT = Path(__file__).parent.parent


def run(folder: Path, *, quiet: bool = False, nowhere: bool = False, root: Path = ROOT) -> str:
    """Sort two depths in a new process that keeps machine code under `folder`; return what it prints."""
    settings = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(root)}
    program = PROGRAM.format(quiet=quiet, nowhere=nowhere)
    done = subprocess.run(
        [sys.executable, "-c", program], env=settings, cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def test_compiled_once_for_all_processes(tmp_path: Path) -> None:
    """The first process says that it compiles, the second finds it done; quiet ones say nothing."""
    assert "compiling the CPU kernels, once on this machine" in run(tmp_path / "a")
    assert run(tmp_path / "a") == ""
    assert run(tmp_path / "b", quiet=True) == ""


def test_compiled_anew_when_any_of_its_sources_changes(tmp_path: Path) -> None:
    """Also one that a kernel only takes code or constants from: no old machine code after an update."""
    shutil.copytree(ROOT / "cgc", tmp_path / "cgc", ignore=shutil.ignore_patterns("__pycache__"))
    assert "compiling" in run(tmp_path / "cache", root=tmp_path)
    with open(tmp_path / "cgc" / "rasterize" / "checks.py", "a") as file:
        file.write("# bins.py takes nothing from here\n")
    assert run(tmp_path / "cache", root=tmp_path) == ""
    with open(tmp_path / "cgc" / "kernels.py", "a") as file:
        file.write("# which it imports\n")
    assert "compiling" in run(tmp_path / "cache", root=tmp_path)
    with open(tmp_path / "cgc" / "progress.py", "a") as file:
        file.write("# which that imports\n")
    assert "compiling" in run(tmp_path / "cache", root=tmp_path)


def test_a_cache_that_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    """Where no folder can be written the kernels are compiled in memory, and the note says so."""
    said = run(tmp_path, nowhere=True)
    assert "they cannot be kept for the next time" in said


def test_a_cache_that_is_full_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose code cannot be saved still runs."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.CacheImpl.reduce", refuse)
    plus = kernel(_plus)
    assert plus(1, 2) == 3


def _plus(a, b):  # a function of a file, which a cache can belong to
    return a + b


@kernel
def _share(worker, workers, out):
    for i in range(worker * out.shape[0] // workers, (worker + 1) * out.shape[0] // workers):
        out[i] += i
    return worker


@pytest.mark.parametrize("count", [1, 2, 5])
def test_spread_does_every_share_once(count: int) -> None:
    """Each index is visited once, and results come in the order of the workers."""
    out = np.zeros(23)
    with threads(count):
        assert thread_count() == count and spread(_share, out) == list(range(count))
    np.testing.assert_array_equal(out, np.arange(23))


def test_kernels_can_be_measured() -> None:
    """By name, inside the block only."""
    with measured() as seconds:
        spread(_share, np.zeros(3))
        spread(_share, np.zeros(3))
    spread(_share, np.zeros(3))
    assert list(seconds) == ["_share"] and seconds["_share"] > 0


def test_errors_of_a_share_are_raised() -> None:
    """Whichever worker fails."""

    def fail(worker: int, workers: int) -> None:
        if worker == workers - 1:
            raise ValueError("no")

    with threads(3), pytest.raises(ValueError, match="no"):
        spread(fail)


@pytest.mark.parametrize(
    ("numba", "omp", "expected"), [("3", "2", 3), (None, "2", 2), (None, "4,2", 4), ("x", "2", 2), ("0", "7", 7)]
)
def test_threads_follow_the_environment(
    monkeypatch: pytest.MonkeyPatch, numba: str | None, omp: str, expected: int
) -> None:
    """NUMBA_NUM_THREADS, else OMP_NUM_THREADS; what is no number does not count."""
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    if numba is not None:
        monkeypatch.setenv("NUMBA_NUM_THREADS", numba)
    monkeypatch.setenv("OMP_NUM_THREADS", omp)
    assert thread_count() == expected


def test_without_settings_every_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that this process may use."""
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 1 <= thread_count() <= (os.cpu_count() or 1)
