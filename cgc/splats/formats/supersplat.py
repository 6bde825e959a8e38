"""The compressed PLY of SuperSplat and PlayCanvas.

The element "chunk" has the range of position, log-scale and (in newer files) colour of 256 vertices each. A vertex is
four uint32, its parts from the highest bits: packed_position and packed_scale 11-10-11 and packed_color 8-8-8-8
fractions of these ranges, alpha as it is; packed_rotation 2-10-10-10, which component of wxyz is the largest, and the
others from -sqrt(1/2) to sqrt(1/2). The optional element "sh" has f_rest_* as bytes, 256 steps from -4 to 4.

Source: github.com/playcanvas/splat-transform, src/lib/readers/decompress-ply.ts and src/lib/writers/
{write-compressed-ply,compressed-chunk}.ts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cgc.errors import InputError
from cgc.geometry import SH_C0
from cgc.ply import Header, read_header, read_vertices
from cgc.splats.formats.vertices import (
    TERMS,
    check_count,
    new_vertices,
    put,
    put_alphas,
    put_colors,
    put_quats,
    smallest_three,
)
from cgc.splats.ply import DC, MEANS, SCALES, rest_names

_CHUNK = 256
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_POSITION, _SCALE = ("x", "y", "z"), ("scale_x", "scale_y", "scale_z")  # as a chunk names their ranges
_XYZ_SHIFTS, _XYZ_BITS = (21, 11, 0), (11, 10, 11)
_SH_OF_BYTE = ((np.arange(256) + 0.5) / 256 * 8 - 4).astype(np.float32)
_SH_OF_BYTE[[0, 255]] = -4, 4  # stand for all beyond them


def read_compressed_ply(path: Path) -> np.ndarray | None:
    """Return the vertices [N] of a compressed PLY, None for any other PLY; InputError where it is broken."""
    header = read_header(path)
    if header.vertex < 0 or not any(
        name.startswith("packed_") for name, _ in header.elements[header.vertex].properties
    ):
        return None
    packed = _read(path, header, "vertex", _PACKED, ("uint", "int"))
    count = len(packed)
    check_count(path, count)
    chunks = _read(path, header, "chunk", _ranges(header), ("float", "double"))
    whole = math.ceil(count / _CHUNK)
    if len(chunks) < whole:
        raise _broken(path, f"has {len(chunks):,} chunks where {whole:,} were expected for {count:,} vertices")
    chunks = chunks[:whole]
    sh = _read_sh(path, header, count)
    names = sh.dtype.names or ()
    vertices = new_vertices(count, len(names) // 3)
    means = _fractions(packed["packed_position"], _XYZ_SHIFTS, _XYZ_BITS)
    put(vertices, MEANS, _spread(means, chunks, _POSITION))
    scales = _fractions(packed["packed_scale"], _XYZ_SHIFTS, _XYZ_BITS)
    put(vertices, SCALES, _spread(scales, chunks, _SCALE))
    rotation = packed["packed_rotation"].astype(np.uint32)
    three = (_fractions(rotation, (20, 10, 0), (10, 10, 10)) - 0.5) * math.sqrt(2)
    put_quats(vertices, smallest_three(three, rotation >> 30))
    _put_colors(vertices, packed["packed_color"].astype(np.uint32), chunks)
    for name in names:
        vertices[name] = _SH_OF_BYTE[sh[name]]
    return vertices


def _read(path: Path, header: Header, name: str, needed: Sequence[str], kinds: tuple[str, ...]) -> np.ndarray:
    """Read one element as a structured array [n]; InputError unless it has the properties `needed`, of `kinds`."""
    index = next((i for i, e in enumerate(header.elements) if e.name == name), -1)
    properties = dict(header.elements[index].properties) if index >= 0 else {}
    if any(properties.get(n) not in kinds for n in needed):
        raise _broken(path, f"lacks {', '.join(n for n in needed if properties.get(n) not in kinds)} of {kinds[0]}s")
    if len(properties) < len(header.elements[index].properties) or "list" in properties.values():
        raise _broken(path, f'has a list or a name twice in its element "{name}"')
    before = tuple(e._replace(name="") for e in header.elements[:index])
    return read_vertices(path, header._replace(elements=(*before, header.elements[index]._replace(name="vertex"))))


def _ranges(header: Header) -> list[str]:
    """Name what a chunk needs to have: colours only where it has any."""
    names = {name for e in header.elements if e.name == "chunk" for name, _ in e.properties}
    colors = ["r", "g", "b"] if any(f"{end}_{c}" in names for end in ("min", "max") for c in "rgb") else []
    return [f"{end}_{what}" for what in (*_POSITION, *_SCALE, *colors) for end in ("min", "max")]


def _read_sh(path: Path, header: Header, count: int) -> np.ndarray:
    """Read SH as a structured array [N] of bytes, of no fields where there is none."""
    element = next((e for e in header.elements if e.name == "sh"), None)
    if element is None:
        return np.empty(count, [])
    terms, over = divmod(len(element.properties), 3)
    if over or terms not in TERMS[1:]:
        raise _broken(path, f"has {len(element.properties)} terms of SH where 9, 24 or 45 were expected")
    if element.count != count:
        raise _broken(path, f"has {element.count:,} rows of SH for {count:,} vertices")
    return _read(path, header, "sh", rest_names(3 * terms), ("uchar",))


def _fractions(packed: np.ndarray, shifts: tuple[int, ...], bits: tuple[int, ...]) -> np.ndarray:
    """Unpack unsigned fractions of 0 to 1, [N, len(bits)] float32."""
    words = packed.astype(np.uint32)
    parts = [((words >> shift) & (2**width - 1)) / np.float32(2**width - 1) for shift, width in zip(shifts, bits)]
    return np.stack(parts, axis=1).astype(np.float32)


def _spread(fractions: np.ndarray, chunks: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Spread fractions [N, n] over the ranges of their chunks, float64."""
    made = np.empty(fractions.shape)
    for i, name in enumerate(names):
        low = np.repeat(chunks[f"min_{name}"].astype(np.float64), _CHUNK)[: len(fractions)]
        high = np.repeat(chunks[f"max_{name}"].astype(np.float64), _CHUNK)[: len(fractions)]
        made[:, i] = low * (1 - fractions[:, i]) + high * fractions[:, i]
    return made


def _put_colors(vertices: np.ndarray, packed: np.ndarray, chunks: np.ndarray) -> None:
    rgba = np.stack([(packed >> shift).astype(np.uint8) for shift in (24, 16, 8, 0)], axis=1)
    put_alphas(vertices, rgba[:, 3])
    if "min_r" not in (chunks.dtype.names or ()):
        put_colors(vertices, rgba[:, :3])
        return
    put(vertices, DC, (_spread(rgba[:, :3] / np.float32(255), chunks, ("r", "g", "b")) - 0.5) / SH_C0)


def _broken(path: Path, what: str) -> InputError:
    return InputError(f"{path} is a compressed splat PLY that {what}; export it again from SuperSplat")
