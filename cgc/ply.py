"""PLY files as tables of vertices: parsing that trusts no header, for splats and point clouds alike.

Only what these need is read: the element "vertex" with scalar properties, ASCII or binary. Counts are checked against
the file's size before anything is allocated by them.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cgc.errors import InputError
from cgc.files import write_beside

_TYPES = {
    **{name: np.dtype(t) for name, t in zip(("char", "uchar", "short", "ushort"), ("i1", "u1", "i2", "u2"))},
    **{name: np.dtype(t) for name, t in zip(("int", "uint", "float", "double"), ("i4", "u4", "f4", "f8"))},
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_ALIASES = {
    "int8": "char",
    "uint8": "uchar",
    "int16": "short",
    "uint16": "ushort",
    "int32": "int",
    "uint32": "uint",
}
_ALIASES |= {"float32": "float", "float64": "double"}
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}

_MAX_HEADER = 1 << 20  # bytes; a real header has a few thousand


class Element(NamedTuple):
    """One element of a header."""

    name: str
    count: int
    properties: tuple[tuple[str, str], ...]  # (name, type), the type "list" among them


class Header(NamedTuple):
    """What a PLY header announces."""

    format: str
    elements: tuple[Element, ...]
    end: int  # offset of the first byte after it
    comments: tuple[str, ...] = ()

    @property
    def vertex(self) -> int:
        """Index of the vertex element, -1 if there is none."""
        return next((i for i, e in enumerate(self.elements) if e.name == "vertex"), -1)


def read_header(path: Path) -> Header:
    """Parse the header; refuse counts beyond the file's bytes, before anything is allocated by them."""
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            within = next(path.rglob("*.ply"), None)
            such = f", such as {within}" if within else ""
            raise InputError(f"{path} is a folder where a PLY file was expected; give the file in it{such}")
        if not stat.S_ISREG(about.st_mode):  # to open a pipe may take for ever
            raise InputError(f"{path} is a pipe or a device where a PLY file was expected; give a file on a disk")
        size = about.st_size
        with open(path, "rb") as file:
            head = file.read(_MAX_HEADER).decode("latin-1")
    except FileNotFoundError as error:
        raise InputError(f"there is no PLY file {path}; check the path") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read as a PLY file: {error.strerror}") from error
    newline = re.match("ply(\r\n|\n|\r)", head)
    if newline is None:
        raise InputError(f"{path} is not a PLY file (it does not start with 'ply'); give a 3DGS .ply")
    end = head.find(f"{newline[1]}end_header{newline[1]}")
    if end < 0:
        raise InputError(f"{path} is broken: its PLY header does not end; copy or export it again")
    kind, elements, comments = "", [], []
    for line in head[:end].split(newline[1])[1:]:
        words = line.split()
        match words:
            case ["comment", *said]:
                comments.append(" ".join(said))
            case [] | ["obj_info", *_]:
                continue
            case ["format", name, "1.0"] if name in _ORDERS:
                kind = name
            case ["element", name, count] if re.fullmatch("[0-9]{1,18}", count):
                elements.append((name, int(count), []))
            case ["property", "list", _, _, name] if elements:
                elements[-1][2].append((name, "list"))
            case ["property", t, name] if elements and _ALIASES.get(t, t) in _TYPES:
                elements[-1][2].append((name, _ALIASES.get(t, t)))
            case _:
                raise InputError(f"{path} is broken: its header says {line.strip()!r}; copy or export it again")
    if not kind:
        raise InputError(f"{path} is broken: its header names no format; copy or export it again")
    for name, count, properties in elements:
        if count * max(1, len(properties)) > size:  # a value takes at least a byte
            raise _truncated(path, name, count, size)
    made = tuple(Element(name, count, tuple(properties)) for name, count, properties in elements)
    return Header(kind, made, end + len(f"{newline[1]}end_header{newline[1]}"), tuple(comments))


def _truncated(path: Path, name: str, count: int, size: int) -> InputError:
    return InputError(
        f"{path} is truncated: its header announces {count:,} of {name}, "
        f"more than its {size:,} bytes can hold; copy or export it again"
    )


def read_vertices(path: Path, header: Header) -> np.ndarray:
    """Read the vertices as a structured array [N]."""
    if header.format == "ascii":
        before, vertex = _vertex(path, header)
        return _read_text(path, header.end, sum(e.count for e in before), vertex)
    dtype, count, offset = _layout(path, header)
    return np.fromfile(path, dtype, count=count, offset=offset)


def map_vertices(path: Path, header: Header) -> np.ndarray:
    """Map the vertices of a binary file into memory, [N], to be read where they are used; InputError for ASCII."""
    if header.format == "ascii":
        raise InputError(f"{path} is an ASCII file, of which no part can be read alone; export it as a binary PLY")
    dtype, count, offset = _layout(path, header)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=(count,))


def _vertex(path: Path, header: Header) -> tuple[tuple[Element, ...], Element]:
    """Return the elements before the vertices, and the vertices'."""
    if header.vertex < 0:
        raise InputError(f"{path} has no vertices; give another .ply")
    before = header.elements[: header.vertex]
    if any(kind == "list" for e in before for _, kind in e.properties):
        raise InputError(f"{path} has lists before its vertices, which no splat has; export it again")
    return before, header.elements[header.vertex]


def _layout(path: Path, header: Header) -> tuple[np.dtype, int, int]:
    """Return what a vertex of a binary file is, how many there are, and where they begin."""
    before, vertex = _vertex(path, header)
    order = _ORDERS[header.format]
    offset = header.end + sum(e.count * _TYPES[kind].itemsize for e in before for _, kind in e.properties)
    dtype = np.dtype([(name, _TYPES[kind].newbyteorder(order)) for name, kind in vertex.properties])
    size = path.stat().st_size
    if offset + vertex.count * dtype.itemsize > size:
        raise _truncated(path, "vertex", vertex.count, size)
    return dtype, vertex.count, offset


def _read_text(path: Path, start: int, skipped: int, vertex: Element) -> np.ndarray:
    with open(path, "rb") as file:
        file.seek(start)
        lines = [line for line in file.read().decode("latin-1").splitlines() if line.strip()]
    lines = lines[skipped : skipped + vertex.count]
    try:
        values = np.array([line.split() for line in lines], np.float64)
        if values.shape != (vertex.count, len(vertex.properties)):
            raise ValueError(f"{vertex.count} lines of {len(vertex.properties)} numbers were expected")
        made = np.empty(vertex.count, [(name, _TYPES[kind]) for name, kind in vertex.properties])
        with np.errstate(over="ignore", invalid="ignore"):  # "1e99" for a float is infinite, which is reported later
            for i, (name, _) in enumerate(vertex.properties):
                made[name] = values[:, i]
        return made
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path} is broken or truncated ({error}); copy or export it again") from error


def write_vertices(path: Path, table: np.ndarray, comments: Sequence[str] = ()) -> None:
    """Write a structured array as a binary little-endian PLY, whole or not at all; comments are a line each."""
    write_parts(path, len(table), table.dtype, [table], comments)


def write_parts(
    path: Path, count: int, dtype: np.dtype, parts: Iterable[np.ndarray], comments: Sequence[str] = ()
) -> None:
    """Write structured arrays of one type, `count` vertices in all, one after the other, as `write_vertices` does."""
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {text}" for text in comments)]
    lines.append(f"element vertex {count}")
    lines += [f"property {_NAMES[dtype[name].newbyteorder('=')]} {name}" for name in dtype.names or ()]
    with write_beside(path) as temporary, open(temporary, "wb") as file:
        file.write("\n".join([*lines, "end_header\n"]).encode("latin-1"))  # as names are read
        for part in parts:
            file.write(part.tobytes())
