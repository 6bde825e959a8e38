"""The .splat of antimatter15: 32 bytes a Gaussian, no header, no view-dependent colour.

Three float32 of position, three float32 of standard deviations (no logarithms), four bytes RGBA, four bytes of rotation
wxyz, (byte - 128) / 128. All is little-endian. Nothing marks the format, so that a file is taken for one by its suffix.

Source: github.com/antimatter15/splat, convert.py and main.js.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cgc.errors import InputError
from cgc.splats.formats.vertices import (
    check_count,
    new_vertices,
    put,
    put_alphas,
    put_colors,
    put_linear_scales,
    put_quats,
)
from cgc.splats.ply import MEANS

_RECORD = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])
_LEAST = float(np.finfo(np.float32).tiny)


def read_splat(path: Path) -> np.ndarray:
    """Return the vertices [N] of a .splat; InputError where it cannot be one."""
    size = path.stat().st_size
    if size % _RECORD.itemsize:
        raise InputError(
            f"{path} has {size:,} bytes where a multiple of {_RECORD.itemsize} was expected of a .splat: "
            "it is truncated or of another format; copy or export it again"
        )
    check_count(path, size // _RECORD.itemsize)
    records = np.fromfile(path, _RECORD)
    vertices = new_vertices(len(records), 0)
    put(vertices, MEANS, records["mean"])
    put_linear_scales(vertices, path, records["scale"], _LEAST)
    put_colors(vertices, records["rgba"][:, :3])
    put_alphas(vertices, records["rgba"][:, 3])
    put_quats(vertices, (records["quat"].astype(np.float32) - 128) / 128)
    return vertices
