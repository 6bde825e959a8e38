"""Copies of splat files without the Gaussians that are no numbers, which a training that has diverged may leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cgc.errors import InputError
from cgc.ply import map_vertices, read_header, read_vertices, write_parts
from cgc.splats.mapped import CHUNK
from cgc.splats.packed import read_packed
from cgc.splats.ply import broken_rows, check_header, rest_of

ROW = "source_row"
"""The attribute of a copy that says which Gaussian of the file each was, from 0."""


def clean(path: Path | str, out: Path | str | None = None) -> tuple[Path, int, int]:
    """Copy a splat file without the Gaussians that `read_splats` refuses; return the copy, those left out, and all.

    The copy is a PLY (None: NAME_clean.ply beside), in the file's order, with all attributes as they were, and with
    `ROW`, unless there is such a one. Large files are not held. InputError for what is no whole splat file, and where
    no Gaussian would be left.
    """
    path = Path(path)
    vertices, rest = _vertices(path)
    out = path.with_name(f"{path.stem}_clean.ply") if out is None else Path(out)
    if out.exists() and out.samefile(path):
        raise InputError(f"{out} is what is cleaned; give the copy another name with --out, so that nothing is lost")
    good = np.concatenate([~broken_rows(part, rest) for _, part in _parts(vertices)])
    if not good.any():
        raise InputError(f"{path} has no Gaussian that is whole, all {len(good):,} are broken; copy or export it again")
    names = vertices.dtype.names or ()
    columns = [(name, vertices.dtype[name].newbyteorder("<")) for name in names]
    dtype = np.dtype(columns if ROW in names else [*columns, (ROW, "<i4")])

    def parts() -> Iterator[np.ndarray]:
        for first, part in _parts(vertices):
            rows = np.flatnonzero(good[first : first + len(part)])
            table = np.empty(len(rows), dtype)
            for name in names:
                table[name] = part[name][rows]
            if ROW not in names:
                table[ROW] = first + rows
            yield table

    write_parts(out, int(good.sum()), dtype, parts())
    return out, int((~good).sum()), len(good)


def _vertices(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the vertices of a splat file, whatever they hold, and the names of f_rest."""
    packed = read_packed(path, whole=False)
    if packed is not None:
        return packed, rest_of(packed.dtype.names or ())
    header = read_header(path)
    rest = check_header(path, header)
    return (read_vertices if header.format == "ascii" else map_vertices)(path, header), rest


def _parts(vertices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield vertices, CHUNK at a time, each with the number of its first."""
    for first in range(0, len(vertices), CHUNK):
        yield first, np.asarray(vertices[first : first + CHUNK])
