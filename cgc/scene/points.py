"""Read the points of a model from a PLY file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cgc import ply
from cgc.errors import InputError


def read_points(path: Path, where: Path, instead: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the point cloud of the model `where`: points [M, 3] and colours [M, 3] uint8.

    `instead` says how to start without points, in the error of a broken file.
    """
    try:
        vertices = ply.read_vertices(path, ply.read_header(path))
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is dropped with the NaNs
            points = np.stack([vertices[axis] for axis in "xyz"], 1).astype(np.float64)
            colors = np.full((len(points), 3), 128, np.uint8)
            if {"red", "green", "blue"} <= set(vertices.dtype.names or ()):
                found = np.stack([vertices[c] for c in ("red", "green", "blue")], 1)
                if found.dtype.kind == "f":  # 0 to 1, as a rule
                    scale = 255.0 if np.nanmax(found, initial=0.0) <= 1.0 else 1.0
                    found = np.nan_to_num(found * scale).clip(0, 255).round()
                colors = found.astype(np.uint8)
    except (OSError, ValueError, KeyError, MemoryError) as error:
        raise InputError(
            f"{path}, the point cloud that {where} names, cannot be read: {error}; restore it, or {instead} to start "
            "without points"
        ) from error
    return points, colors
