"""The .ksplat of mkkellogg's GaussianSplats3D, version 0.1, compression levels 0 to 2.

A header of 4096 bytes, headers of 1024 bytes of each section, then the sections: sizes of the buckets that are not
full, centres of the buckets (3 float32), Gaussians. These have position, standard deviations (no logarithms), rotation
wxyz, RGBA, and SH above degree 0, channel-major within each degree. Level 0 has float32. Levels 1 and 2 have half
floats, positions in 16-bit fixed point about the centre of their bucket, and level 2 has SH in bytes, over a range in
the header. All is little-endian. Nothing marks the format, so that a file is taken for one by its suffix.

Source: github.com/mkkellogg/GaussianSplats3D, src/loaders/SplatBuffer.js, and for the order of SH
src/loaders/ply/INRIAV1PlyParser.js.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cgc.errors import InputError
from cgc.splats.formats.vertices import (
    TERMS,
    check_count,
    new_vertices,
    put,
    put_alphas,
    put_colors,
    put_linear_scales,
    put_quats,
    truncated,
)
from cgc.splats.ply import MEANS

_HEADER, _SECTION = 4096, 1024  # bytes
_MAX_DEGREE, _MAX_LEVEL = 2, 2
_SCALE_RANGE = 32767  # of fixed point, where the section names none
_SH_RANGE = 1.5
_LEAST = (float(np.finfo(np.float32).tiny), 2.0**-25)  # half of the smallest half float, for those that became 0

_FILE = np.dtype(
    {
        "names": ["major", "minor", "sections", "level", "sh_min", "sh_max"],
        "formats": ["u1", "u1", "<u4", "<u2", "<f4", "<f4"],
        "offsets": [0, 1, 4, 20, 36, 40],
        "itemsize": _HEADER,
    }
)
_SECTION_FIELDS = ["count", "room", "bucket", "buckets", "block", "center_size", "range", "full", "partial", "degree"]
_SECTIONS = np.dtype(
    {
        "names": _SECTION_FIELDS,
        "formats": ["<u4", "<u4", "<u4", "<u4", "<f4", "<u2", "<u4", "<u4", "<u4", "<u2"],
        "offsets": [0, 4, 8, 12, 16, 20, 24, 32, 36, 40],
        "itemsize": _SECTION,
    }
)


class _Header(NamedTuple):
    level: int
    sh_min: float
    sh_max: float

    def gaussian(self, degree: int) -> np.dtype:
        """Return what a Gaussian is."""
        number = "<f4" if self.level == 0 else "<f2"
        center = "<f4" if self.level == 0 else "<u2"
        sh = "u1" if self.level == 2 else number
        fields = [("mean", center, 3), ("scale", number, 3), ("quat", number, 4), ("rgba", "u1", 4)]
        return np.dtype([*fields, ("sh", sh, 3 * TERMS[degree])])


def read_ksplat(path: Path) -> np.ndarray:
    """Return the vertices [N] of a .ksplat; InputError where it is broken or of another version."""
    content = path.read_bytes()
    header, sections = _parse(path, content)
    count = int(sections["count"].sum(dtype=np.int64))
    check_count(path, count)
    least = count * header.gaussian(0).itemsize
    if least > len(content):
        raise truncated(path, least, len(content))
    terms = TERMS[int(sections["degree"][sections["count"] > 0].max())]
    vertices = new_vertices(count, terms)
    at, row = _HEADER + _SECTION * len(sections), 0
    for fields in sections.tolist():
        section = dict(zip(_SECTION_FIELDS, fields))
        part = vertices[row : row + section["count"]]
        at = _read_section(path, header, section, content, at, part)
        row += len(part)
    return vertices


def _parse(path: Path, content: bytes) -> tuple[_Header, np.ndarray]:
    """Check the header and those of the sections, [S]."""
    if len(content) < _HEADER:
        raise truncated(path, _HEADER, len(content))
    file = np.frombuffer(content, _FILE, count=1)[0]
    major, minor, level = (int(file[name]) for name in ("major", "minor", "level"))
    if (major, minor) != (0, 1) or level > _MAX_LEVEL:
        raise InputError(
            f"{path} is a .ksplat of version {major}.{minor} and level {level} where version 0.1 and level 0 to "
            f"{_MAX_LEVEL} was expected; open it in SuperSplat and export it as .ply"
        )
    room = _HEADER + _SECTION * int(file["sections"])
    if len(content) < room:
        raise truncated(path, room, len(content))
    sections = np.frombuffer(content, _SECTIONS, count=int(file["sections"]), offset=_HEADER)
    degree = int(sections["degree"].max(initial=0))
    if degree > _MAX_DEGREE:
        raise InputError(f"{path} has SH of degree {degree} where 0 to {_MAX_DEGREE} was expected; export it again")
    return _Header(level, float(file["sh_min"]) or -_SH_RANGE, float(file["sh_max"]) or _SH_RANGE), sections


def _read_section(
    path: Path, header: _Header, section: dict[str, int], content: bytes, at: int, vertices: np.ndarray
) -> int:
    """Fill the vertices [n] of the section that begins at byte `at`; return where it ends."""
    gaussian = header.gaussian(section["degree"])
    buckets = at + 4 * section["partial"]
    begin = buckets + section["center_size"] * section["buckets"]
    end = begin + gaussian.itemsize * section["room"]
    if section["count"] > section["room"]:
        raise _broken(path, f"{section['count']:,} Gaussians in a section that has room for {section['room']:,}")
    if end > len(content):
        raise truncated(path, end, len(content))
    records = np.frombuffer(content, gaussian, count=section["count"], offset=begin)
    if header.level == 0:
        put(vertices, MEANS, records["mean"])
    else:
        if section["buckets"] and section["center_size"] != 12:
            raise _broken(path, f"centres of buckets of {section['center_size']} bytes where 12 were expected")
        partial = np.frombuffer(content, "<u4", count=section["partial"], offset=at)
        centers = np.frombuffer(content, "<f4", count=3 * section["buckets"], offset=buckets).reshape(-1, 3)
        put(vertices, MEANS, _means(path, section, records["mean"], partial, centers))
    put_linear_scales(vertices, path, records["scale"], _LEAST[header.level > 0])
    put_quats(vertices, records["quat"])
    put_colors(vertices, records["rgba"][:, :3])
    put_alphas(vertices, records["rgba"][:, 3])
    _put_sh(vertices, header, records["sh"], TERMS[section["degree"]])
    return end


def _means(
    path: Path, section: dict[str, int], fixed: np.ndarray, partial: np.ndarray, centers: np.ndarray
) -> np.ndarray:
    """Return positions [n, 3] of fixed-point ones: the buckets that are full come first, then those in `partial`."""
    rows = np.arange(len(fixed))
    in_full = min(section["full"] * section["bucket"], len(fixed))
    ends = in_full + np.append(0, np.cumsum(partial, dtype=np.int64))
    in_partial = section["full"] + np.searchsorted(ends[1:], rows, side="right")
    which = np.where(rows < in_full, rows // max(section["bucket"], 1), in_partial)
    if len(fixed) > ends[-1] or which.max(initial=-1) >= len(centers):
        raise _broken(path, f"Gaussians outside of its {len(centers):,} buckets")
    scale_range = section["range"] or _SCALE_RANGE
    return (fixed.astype(np.float64) - scale_range) * (section["block"] / 2 / scale_range) + centers[which]


def _put_sh(vertices: np.ndarray, header: _Header, sh: np.ndarray, terms: int) -> None:
    """Set f_rest of SH [n, 3K], to 0 what is of a degree that the section has not."""
    if header.level == 2:
        step = np.float32((header.sh_max - header.sh_min) / 255)
        sh = sh.astype(np.float32) * step + np.float32(header.sh_min)
    names = [name for name in vertices.dtype.names or () if name.startswith("f_rest_")]
    channels = np.zeros((len(sh), 3, len(names) // 3), np.float32)
    for begin, end in pairwise(n for n in TERMS if n <= min(terms, channels.shape[2])):  # an empty section may say more
        channels[:, :, begin:end] = sh[:, 3 * begin : 3 * end].reshape(len(sh), 3, end - begin)
    put(vertices, names, channels.reshape(len(sh), len(names)))


def _broken(path: Path, what: str) -> InputError:
    return InputError(f"{path} is broken as a .ksplat: it has {what}; open it in SuperSplat and export it as .ply")
