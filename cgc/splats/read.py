"""Splats of any kind of file, as a scene has them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from cgc.errors import InputError
from cgc.files import sha256
from cgc.ply import Header, read_header
from cgc.splats.formats.spz import half_turned, is_spz
from cgc.splats.packed import SUFFIXES, read_packed
from cgc.splats.ply import from_vertices, notes_of, read_ply, rest_of
from cgc.splats.types import Splats

TRIED = 2000
"""Points of a model by which it is seen which way an .spz is up."""
COARSE = 1e-4
"""Times the extent: what positions are rounded to more coarsely is said."""


def read_splats(
    path: Path | str, origin: Sequence[float] = (0.0, 0.0, 0.0), points: np.ndarray | None = None, extent: float = 1.0
) -> tuple[Splats, list[str]]:
    """Read a 3DGS PLY, a compressed one of SuperSplat, .splat, .spz, .sog (or its meta.json) or .ksplat, and notes.

    `origin` is taken from the positions; `points` [P, 3] are of the scene's model, less the origin, and `extent` is the
    scene's: they only say whether an .spz has the axes of its format. InputError for what is no whole, finite splat.
    """
    path = Path(path)
    vertices = read_packed(path)
    if vertices is None:
        _check_kind(path)
        splats, header = read_ply(path, origin), read_header(path)
        return splats, [*notes_of(path, header), *_rounding(path, header, origin, extent)]
    rest = rest_of(vertices.dtype.names or ())
    splats = from_vertices(path, vertices, rest, origin)
    if points is not None and len(points) and is_spz(path):
        other = from_vertices(path, half_turned(vertices), rest, origin)
        if _apart(other, points) < _apart(splats, points):
            return other, [
                f"{path} has the axes of a PLY and not those of its format, as some converters leave them: that way "
                "its Gaussians lie at the model's points"
            ]
    return splats, []


def _check_kind(path: Path) -> None:
    """Raise InputError for a file that is neither a PLY nor packed as is known here."""
    if not path.is_file():  # which reading it says
        return
    with open(path, "rb") as file:
        if file.read(3) == b"ply":
            return
    raise InputError(
        f"{path} is not a splat file of a kind that is read here ({', '.join(SUFFIXES)}); export it as a 3DGS .ply, "
        "which trainers, editors and converters write"
    )


def hash_splats(path: Path) -> str:
    """Return the SHA-256 of a splat file, of a meta.json with the pictures that it names; InputError without one."""
    if not path.is_file():
        raise InputError(f"there is no splat file {path}; check the path")
    if path.suffix.lower() != ".json":
        return sha256(path)
    named = path.read_text("utf-8", errors="replace")
    pictures = sorted(p for p in path.parent.iterdir() if p.is_file() and p.suffix and f'"{p.name}"' in named)
    parts = [f"{p.name} {sha256(p)}" for p in (path, *pictures)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _apart(splats: Splats, points: np.ndarray) -> float:
    """Return how far a model's points are from the nearest Gaussian, the median of TRIED at most."""
    some = points[:: 1 + len(points) // TRIED]
    return float(np.median(KDTree(splats.means.numpy()).query(some)[0]))


def _rounding(path: Path, header: Header, origin: Sequence[float], extent: float) -> list[str]:
    """Say that single-precision positions far from the origin are rounded coarsely, where they are."""
    step = float(np.spacing(np.float32(max(map(abs, origin)))))
    if dict(header.elements[header.vertex].properties)["x"] == "double" or step < COARSE * extent:
        return []
    return [
        f"positions in {path} are rounded to {step:.2g}, so far from the origin single precision has no more; give "
        "splats with positions in double precision, or train them where the model is"
    ]
