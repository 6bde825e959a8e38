"""Packed splat files, read as the vertices of a plain 3DGS PLY.

A file is told by what it begins with, and by its suffix only where the format has no mark of its own.
"""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np

from cgc.splats.formats.antimatter import read_splat
from cgc.splats.formats.ksplat import read_ksplat
from cgc.splats.formats.sog import is_sog, read_sog, read_sog_folder
from cgc.splats.formats.spz import is_spz, read_spz
from cgc.splats.formats.supersplat import read_compressed_ply
from cgc.splats.formats.vertices import check_finite

_BY_SUFFIX = {".spz": read_spz, ".sog": read_sog, ".ksplat": read_ksplat, ".splat": read_splat}
SUFFIXES = (".ply", *_BY_SUFFIX)
"""What files of splats end in."""


def read_packed(path: Path, whole: bool = True) -> np.ndarray | None:
    """Return the Gaussians of a packed splat file, [N] structured, None for a file of no format known here.

    Fields are float32, in the order x y z, f_dc_0..2, f_rest_0..(3K-1) channel-major, opacity (a logit),
    scale_0..2 (natural logarithms), rot_0..3 (wxyz, unit); all finite, if `whole`. Axes and units are those of a
    trainer's PLY.
    Raise InputError for a packed file that is broken, empty, or of a version unknown here.
    """
    path = Path(path)
    head = _head(path)
    with np.errstate(over="ignore", invalid="ignore"):  # what is no number in the end is reported then
        vertices = None if head is None else _read(path, head)
    if vertices is not None and whole:
        check_finite(path, vertices)
    return vertices


def _read(path: Path, head: bytes) -> np.ndarray | None:
    if head.startswith(b"ply"):
        return read_compressed_ply(path)
    if head.startswith((b"NGSP", b"\x1f\x8b")) and is_spz(path):
        return read_spz(path)
    if head.startswith(b"PK\3\4") and is_sog(path):
        return read_sog(path)
    if head.lstrip().startswith(b"{") and (vertices := read_sog_folder(path)) is not None:
        return vertices
    reader = _BY_SUFFIX.get(path.suffix.lower())
    return None if reader is None else reader(path)


def _head(path: Path) -> bytes | None:
    """Return the first bytes, None of what is no file or cannot be read: to open a pipe may take for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with open(path, "rb") as file:
            return file.read(64)
    except (OSError, ValueError):
        return None
