"""Arrays that are made once and read often: in memory up to a limit, past it in a temporary file mapped into memory.

There is one file, however many arrays (a mapping holds on to a file's handle, and a process may have about a thousand),
and where the system allows it has no name: it is gone with the last array that lies in it, even after a kill.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from cgc.errors import InputError

ALIGNMENT = 64  # bytes: a line of the processor's cache, and a multiple of every item's size


class _Place(NamedTuple):
    """Where an array lies in the file."""

    begin: int
    dtype: np.dtype
    shape: tuple[int, ...]


class Cache(AbstractContextManager):
    """Keeps groups of arrays; asked for once all are there. What it gave outlives it."""

    def __init__(self, limit_gb: float, folder: Path | None = None) -> None:
        """Take up to `limit_gb` GB of memory; what is more goes to a file in `folder` (None: the system's)."""
        self._limit_gb, self._left = limit_gb, limit_gb * 1e9
        self._folder = folder or Path(tempfile.gettempdir())
        self._groups: list[list[np.ndarray] | list[_Place]] = []
        self._file: IO[bytes] | None = None
        self._end = 0
        self._open = ExitStack()

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def keep(self, arrays: Sequence[np.ndarray]) -> None:
        """Keep a group of arrays, C-contiguous; InputError where neither memory nor disk may take it."""
        size = sum(a.nbytes for a in arrays)
        if size <= self._left:
            self._left -= size
            self._groups.append(list(arrays))
            return
        try:
            self._groups.append([self._write(a) for a in arrays])
        except OSError as error:
            raise InputError(
                f"the sampled weights need more than the {self._limit_gb:g} GB of memory they may take, and the rest "
                f"could not be written to a temporary file in {self._folder} ({os.strerror(error.errno or 0)}); make "
                "room there, raise --lift.cache-gb, or lower --lift.pixels-per-view"
            ) from error

    def _write(self, array: np.ndarray) -> _Place:
        if self._file is None:
            file = tempfile.TemporaryFile(prefix="cgc.", dir=self._folder, buffering=0)  # noqa: SIM115
            self._file = self._open.enter_context(file)
        place = _Place(self._end, array.dtype, array.shape)
        data = array.reshape(-1).view(np.uint8)
        data = np.append(data, np.zeros(-len(data) % ALIGNMENT, np.uint8))
        self._end += len(data)
        while len(data):
            data = data[self._file.write(data.data) :]
        return place

    def groups(self) -> list[list[np.ndarray]]:
        """Return the groups in the order they came; those on the disk are read when they are used."""
        mapped = np.empty(0, np.uint8)
        if self._file is not None:  # mode c: nothing is written back, and numba and torch see an ordinary array
            mapped = np.asarray(np.memmap(self._file, np.uint8, mode="c", shape=(self._end,)))
        return [[self._find(mapped, a) for a in group] for group in self._groups]

    @staticmethod
    def _find(mapped: np.ndarray, kept: np.ndarray | _Place) -> np.ndarray:
        if isinstance(kept, np.ndarray):
            return kept
        size = int(np.prod(kept.shape)) * kept.dtype.itemsize
        return mapped[kept.begin : kept.begin + size].view(kept.dtype).reshape(kept.shape)
