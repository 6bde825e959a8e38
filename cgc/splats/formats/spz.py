"""The .spz of Niantic, versions 1 to 4: a header, and one attribute after the other.

All little-endian: "NGSP", version, count, SH degree, bits after the point, flags, a byte unused; then of all Gaussians
positions (3 int24 in fixed point, in version 1 half floats), opacities, colours, log-scales (byte / 16 - 10),
rotations (3 bytes of xyz, from version 3 2-10-10-10: which of xyzw is the largest, sign and magnitude of the others),
SH above degree 0 ((byte - 128) / 128, all channels of a term, then of the next). A colour's f_dc is
(byte / 255 - 0.5) / 0.15. Extensions follow where the flags say so.

All that is in gzip. In version 4 nothing is but the attributes, each in zstd: the byte unused counts them, a number
of 4 bytes says where their table begins, 12 bytes are unused, and extensions come next. The table has two numbers of
8 bytes an attribute, its size in zstd and without; the attributes follow.

Axes are right, up, back (RUB), in an extension of Adobe others; those of a trainer's PLY are right, down, front (RDF).
They are turned here, as Niantic's library does for `UnpackOptions.to = RDF`. Its tool ply_to_spz and splat-transform
leave a PLY's axes as they are, against the format, and nothing in the file tells: such files come out turned by half a
turn about x (github.com/nianticlabs/spz/issues/84), which `half_turned` takes back.

Source: github.com/nianticlabs/spz, README.md, src/cc/{load-spz.cc,splat-types.h} and extensions/README.md.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zstandard

from cgc.errors import InputError
from cgc.splats.formats.vertices import (
    TERMS,
    check_count,
    new_vertices,
    put,
    put_alphas,
    put_quats,
    smallest_three,
    truncated,
)
from cgc.splats.ply import DC, MEANS, SCALES

MAGIC = b"NGSP"
_HEADER, _TABLE = struct.Struct("<4s2I4B"), struct.Struct("<I12x")  # the second is version 4's
_HALVES, _PLAIN_ROTATIONS, _IN_GZIP, _LATEST = 1, 2, 3, 4  # versions
_EXTENDED, _LEVELS = 0x2, 0x80  # flags; the second is Spark's, for a tree of coarser and coarser Gaussians
_MAX_FRACTION = 30
_MAX_EXTENSIONS = 1 << 16  # bytes; those known take 20

_AXES_EXTENSION = 0xADBE0003
_RUB, _MAX_UNTURNED = 4, 8  # axes; those above are turned by a quarter about x

_BYTES = np.arange(256)
_DC_OF_BYTE = ((_BYTES / 255 - 0.5) / 0.15).astype(np.float32)
_SH_OF_BYTE = ((_BYTES - 128) / 128).astype(np.float32)
_ODD_IN = ("y", "z", "x", "xy", "yz", "", "xz", "", "y", "xyz", "y", "z", "x", "z", "x")
"""The axes whose reversal changes the sign of each function above degree 0."""


class _Header(NamedTuple):
    version: int
    count: int
    terms: int  # of SH above degree 0
    fraction: int  # bits
    flags: int

    def widths(self) -> tuple[int, ...]:
        """Bytes of a Gaussian's position, opacity, colour, scales, rotation and SH."""
        position = 6 if self.version == _HALVES else 9
        return position, 1, 3, 3, 3 if self.version <= _PLAIN_ROTATIONS else 4, 3 * self.terms


def is_spz(path: Path) -> bool:
    """Say whether a file is an .spz, whatever it is called."""
    try:
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                return True
        with gzip.open(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, EOFError, zlib.error):
        return False


def read_spz(path: Path) -> np.ndarray:
    """Return the vertices [N] of an .spz; InputError where it is broken or of another version.

    No more bytes are unpacked than the header announces, and the header is held against the file's size.
    """
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            return _read_streams(path)
    try:
        with gzip.open(path) as file:
            header = _parse(path, file.read(_HEADER.size), (_HALVES, _IN_GZIP))
            expected = header.count * sum(header.widths())
            content = file.read(expected)
            after = file.read(_MAX_EXTENSIONS + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is broken or truncated as an .spz ({error}); copy or export it again") from error
    if len(content) < expected:
        raise truncated(path, _HEADER.size + expected, _HEADER.size + len(content))
    if len(after) > (_MAX_EXTENSIONS if header.flags & _EXTENDED else 0):
        raise InputError(f"{path} goes on after the {header.count:,} Gaussians its header announces; export it again")
    return _decode(header, content, _signs(path, after))


def _read_streams(path: Path) -> np.ndarray:
    """Return the vertices [N] of an .spz of version 4."""
    whole = path.read_bytes()
    header = _parse(path, whole[: _HEADER.size], (_IN_GZIP + 1, _LATEST))
    sizes = [header.count * width for width in header.widths() if width]
    begin, count = _HEADER.size + _TABLE.size, whole[_HEADER.size - 1]
    if len(whole) < begin:
        raise truncated(path, begin, len(whole))
    (table,) = _TABLE.unpack_from(whole, _HEADER.size)
    at = table + 16 * len(sizes)
    if not begin <= table or count != len(sizes):
        raise InputError(
            f"{path} announces {count} attributes from byte {table} on where {len(sizes)} and {begin} or later were "
            "expected; it is broken: copy or export it again"
        )
    if len(whole) < at:
        raise truncated(path, at, len(whole))
    entries = np.frombuffer(whole, "<u8", 2 * len(sizes), table).reshape(-1, 2).tolist()
    parts = []
    for (packed, unpacked), size in zip(entries, sizes):
        if unpacked != size:
            raise _odd(path, size, unpacked)
        if at + packed > len(whole):
            raise truncated(path, at + packed, len(whole))
        parts.append(_unpacked(path, whole[at : at + packed], size))
        at += packed
    return _decode(header, b"".join(parts), _signs(path, whole[begin:table] if header.flags & _EXTENDED else b""))


def _unpacked(path: Path, packed: bytes, size: int) -> bytes:
    """Unpack an attribute of so many bytes from zstd, and no more than these."""
    try:
        content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed), read_across_frames=True).read(size + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise InputError(f"{path} is broken as an .spz ({error}); copy or export it again") from error
    if len(content) != size:
        raise _odd(path, size, len(content))
    return content


def _odd(path: Path, expected: int, got: int) -> InputError:
    return InputError(
        f"{path} has an attribute of {got:,} bytes where {expected:,} were expected by its header; it is broken: copy "
        "or export it again"
    )


def half_turned(vertices: np.ndarray) -> np.ndarray:
    """Return vertices [N] turned by half a turn about x: what an .spz that has the axes of a PLY was meant to be."""
    turned, sign = vertices.copy(), {"x": 1, "y": -1, "z": -1}
    for name in ("y", "z", "rot_2", "rot_3"):
        turned[name] = -vertices[name]
    rest = [name for name in vertices.dtype.names or () if name.startswith("f_rest_")]
    for i, name in enumerate(rest):
        turned[name] = _sign_of(i % (len(rest) // 3), sign) * vertices[name]
    return turned


def _sign_of(term: int, sign: Mapping[str, int]) -> int:
    """Return by what a term of SH above degree 0 is multiplied where axes are, by their `sign`."""
    return math.prod(sign[axis] for axis in _ODD_IN[term])


def _parse(path: Path, head: bytes, versions: tuple[int, int]) -> _Header:
    """Check the header, its count against the file's size before anything is allocated by it.

    `versions` are the first and the last that are packed as this file is.
    """
    if head[:4] != MAGIC:
        raise InputError(f"{path} is not an .spz (it holds no NGSP in gzip); give a splat file, such as a 3DGS .ply")
    if len(head) < _HEADER.size:
        raise truncated(path, _HEADER.size, len(head))
    _, version, count, degree, fraction, flags, _ = _HEADER.unpack(head)
    if not versions[0] <= version <= versions[1]:
        packed = "in gzip" if versions[1] == _IN_GZIP else "not in gzip"
        raise InputError(
            f"{path} is an .spz of version {version} {packed}, where version 1 to {_IN_GZIP} in gzip or {_LATEST} was "
            "expected; export it as one of these, or as .ply"
        )
    if degree >= len(TERMS):
        raise InputError(f"{path} has SH of degree {degree} where 0 to 3 was expected; export it with a lower one")
    if fraction > _MAX_FRACTION:
        raise InputError(
            f"{path} has positions of {fraction} bits after the point where {_MAX_FRACTION} was the most expected; "
            "it is broken: copy or export it again"
        )
    if flags & _LEVELS:
        raise InputError(
            f"{path} is a tree of levels of detail, whose coarse Gaussians lie over the fine ones; "
            "give the .spz or .ply that it was made from"
        )
    check_count(path, count, path.stat().st_size)
    return _Header(version, count, TERMS[degree], fraction, flags)


def _signs(path: Path, after: bytes) -> tuple[int, int, int]:
    """Return the signs by which x, y and z become right, down and front, of the extensions."""
    axes, at = _RUB, 0
    while at + 8 <= len(after):
        kind, length = struct.unpack_from("<2I", after, at)
        if kind == _AXES_EXTENSION and at + 12 <= len(after):
            axes = int.from_bytes(after[at + 8 : at + 12], "little") or _RUB
            break
        at += 8 + length
    if axes > _MAX_UNTURNED:
        raise InputError(
            f"{path} has axes of kind {axes} where 1 to 8 was expected (z up); export it as RUB or as .ply"
        )
    right, up, front = (axes - 1) & 1, (axes - 1) & 2, (axes - 1) & 4
    return 1 if right else -1, -1 if up else 1, 1 if front else -1


def _decode(header: _Header, content: bytes, signs: tuple[int, int, int]) -> np.ndarray:
    sign = dict(zip("xyz", signs))
    ends = np.cumsum(header.widths()) * header.count
    parts = np.split(np.frombuffer(content, np.uint8), ends[:-1])
    positions, alphas, colors, scales, rotations, sh = (part.reshape(header.count, -1) for part in parts)
    vertices = new_vertices(header.count, header.terms)
    put(vertices, MEANS, _positions(header, positions) * np.array(signs, np.float32))
    put_alphas(vertices, alphas[:, 0])
    put(vertices, DC, _DC_OF_BYTE[colors])
    put(vertices, SCALES, scales / np.float32(16) - 10)
    quats = _rotations(header, rotations)
    put_quats(vertices, quats * np.array([1, *(math.prod(signs) * s for s in signs)], np.float32))
    for term in range(header.terms):
        turned = _SH_OF_BYTE * np.float32(_sign_of(term, sign))
        for channel in range(3):
            vertices[f"f_rest_{channel * header.terms + term}"] = turned[sh[:, 3 * term + channel]]
    return vertices


def _positions(header: _Header, packed: np.ndarray) -> np.ndarray:
    """Unpack positions [N, 3] float32."""
    if header.version == _HALVES:
        return packed.view("<f2").astype(np.float32)
    parts = packed.reshape(header.count, 3, 3).astype(np.int32)
    fixed = parts[..., 0] | parts[..., 1] << 8 | parts[..., 2] << 16
    return ((fixed ^ 0x800000) - 0x800000) * np.float32(0.5**header.fraction)


def _rotations(header: _Header, packed: np.ndarray) -> np.ndarray:
    """Unpack quaternions [N, 4] wxyz."""
    if header.version <= _PLAIN_ROTATIONS:
        xyz = packed / np.float32(127.5) - 1
        return smallest_three(xyz, np.zeros(header.count, np.intp))
    words = packed.view("<u4")[:, 0]
    three = np.empty((header.count, 3), np.float32)
    for i, shift in enumerate((20, 10, 0)):
        size = ((words >> shift) & 511).astype(np.float32) * np.float32(math.sqrt(0.5) / 511)
        three[:, i] = np.where((words >> shift) & 512, -size, size)
    return smallest_three(three, words >> 30)[:, [3, 0, 1, 2]]
