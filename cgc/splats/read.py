"""Splats of any kind of file, as a scene has them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from cgc.errors import InputError
from cgc.files import sha256
from cgc.ply import Header, read_header, read_vertices
from cgc.splats.formats.spz import half_turned, is_spz
from cgc.splats.packed import SUFFIXES, read_packed
from cgc.splats.ply import MEANS, check_header, from_vertices, notes_of, origin_of, rest_of
from cgc.splats.types import Splats

TRIED = 2000
"""Points of a model by which it is seen which way an .spz is up."""
COARSE = 1e-4
"""Times the extent: what positions are rounded to more coarsely is said."""


def read_splats(
    path: Path | str, origin: Sequence[float] = (0.0, 0.0, 0.0), points: np.ndarray | None = None, extent: float = 1.0
) -> tuple[Splats, list[str]]:
    """Read a 3DGS PLY, a compressed one of SuperSplat, .splat, .spz, .sog (or its meta.json) or .ksplat, and notes.

    `origin` is taken from positions in the model's world, not from those of a run, which are less the origin already:
    a comment of the file's says so, or that they lie at `points` [P, 3] (of the scene's model, less the origin) as they
    are. `extent` is the scene's. The points also say whether an .spz has the axes of its format. InputError for what is
    no whole, finite splat.
    """
    path = Path(path)
    vertices = read_packed(path)
    if vertices is None:
        _check_kind(path)
        header = read_header(path)
        rest = check_header(path, header)
        vertices = read_vertices(path, header)
        shift, moved = _shift(path, vertices, origin, points, origin_of(header))
        splats = from_vertices(path, vertices, rest, shift)
        return splats, [*notes_of(path, header), *moved, *_rounding(path, header, shift, extent)]
    rest = rest_of(vertices.dtype.names or ())
    shift, moved = _shift(path, vertices, origin, points)
    splats = from_vertices(path, vertices, rest, shift)
    if points is not None and len(points) and is_spz(path):
        turned = half_turned(vertices)
        shift, moved_too = _shift(path, turned, origin, points)
        other = from_vertices(path, turned, rest, shift)
        if _apart(other, points) < _apart(splats, points):
            return other, [
                *moved_too,
                f"{path} has the axes of a PLY and not those of its format, as some converters leave them: that way "
                "its Gaussians lie at the model's points",
            ]
    return splats, moved


def _shift(
    path: Path,
    vertices: np.ndarray,
    origin: Sequence[float],
    points: np.ndarray | None,
    written: Sequence[float] | None = None,
) -> tuple[Sequence[float], list[str]]:
    """Return what to take from the positions of vertices [N], and notes; `written` is the origin that the file says."""
    if not any(origin):
        return origin, []
    if written is not None:
        return [here - there for here, there in zip(origin, written)], []
    positions = np.stack([vertices[name] for name in MEANS], -1).astype(np.float64)
    aim = np.median(points, axis=0) if points is not None and len(points) else np.zeros(3)
    middle = np.median(positions, axis=0) - aim
    if np.linalg.norm(middle - origin) <= np.linalg.norm(middle):
        return origin, []
    return (0.0, 0.0, 0.0), [
        f"the Gaussians of {path} lie where a run of this scene has them, near its origin, and not in the model's "
        "world: they are taken as they are"
    ]


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


def _rounding(path: Path, header: Header, shift: Sequence[float], extent: float) -> list[str]:
    """Say that single-precision positions far from the origin, by about `shift`, are rounded coarsely."""
    step = float(np.spacing(np.float32(max(map(abs, shift)))))
    if dict(header.elements[header.vertex].properties)["x"] == "double" or step < COARSE * extent:
        return []
    return [
        f"positions in {path} are rounded to {step:.2g}, so far from the origin single precision has no more; give "
        "splats with positions in double precision, or train them where the model is"
    ]
