"""A splat file that is read where it is needed: any of its Gaussians, without holding the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cgc.ply import map_vertices, read_header, write_parts
from cgc.splats.ply import check_header, dc_of, from_vertices, to_vertices
from cgc.splats.types import Splats

CHUNK = 1 << 18
"""Gaussians that are read at once: 65 MB at SH degree 3."""


class MappedSplats:
    """The Gaussians of a binary 3DGS PLY, on disk. Pages that were read stay in memory only while there is room."""

    def __init__(self, path: Path) -> None:
        """Look at the header of `path`; InputError as `read_ply`, and for an ASCII file."""
        header = read_header(path)
        self._path, self._rest = path, check_header(path, header)
        self._vertices = map_vertices(path, header)

    def __len__(self) -> int:
        return len(self._vertices)

    def read(self, rows: np.ndarray | slice) -> Splats:
        """Return the Gaussians of some rows; InputError where they are not finite."""
        return from_vertices(self._path, np.asarray(self._vertices[rows]), self._rest)

    def chunks(self) -> Iterator[tuple[int, Splats]]:
        """Yield all Gaussians in their order, CHUNK at a time, each with the number of its first."""
        for begin in range(0, len(self), CHUNK):
            yield begin, self.read(slice(begin, begin + CHUNK))

    def means(self) -> np.ndarray:
        """Return all positions, [N, 3] float32."""
        means = np.empty((len(self), 3), np.float32)
        for axis, name in enumerate("xyz"):
            for begin in range(0, len(self), CHUNK):
                means[begin : begin + CHUNK, axis] = self._vertices[name][begin : begin + CHUNK]
        return means

    def sh_dc(self, rows: np.ndarray) -> Tensor:
        """Return the DC terms of some rows, [n, 1, 3]."""
        return torch.from_numpy(dc_of(self._vertices[rows])[:, None])

    def copy(self, path: Path) -> dict[str, np.ndarray]:
        """Write the Gaussians as `write_ply` does, a chunk at a time; return their extras, [N] each."""
        extras: list[dict[str, np.ndarray]] = []

        def parts() -> Iterator[np.ndarray]:
            for _, some in self.chunks():
                extras.append(some.extras)
                yield to_vertices(some)

        write_parts(path, len(self), to_vertices(self.read(slice(0, 1))).dtype, parts())
        return {name: np.concatenate([some[name] for some in extras]) for name in extras[0]}
