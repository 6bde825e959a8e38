"""Walk COLMAP's binary model files without parsing them, so that a broken one never reaches the C++ reader.

That reader trusts the counts it finds: a truncated or random file can make it spin, take all memory or abort.
What it checks itself (ids that refer to nothing) is left to it. Layouts: https://colmap.github.io/format.html
(little-endian; every file starts with a 64-bit count of its records).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_PARAMETERS = (3, 4, 4, 5, 8, 8, 12, 5, 4, 5, 12, 16, 4, 5, 3, 4, 6, 2)  # how many, by camera model id


class BrokenFile(Exception):
    """A model file that does not hold what its counts say; the message names it."""


def check_binary_model(folder: Path) -> None:
    """Check that the records of every binary file fill it exactly; raise BrokenFile where they do not."""
    for name, next_record in _NEXT_RECORD.items():
        if (folder / name).exists() or name in REQUIRED:
            _walk(folder / name, next_record)


def _walk(path: Path, next_record: Callable[[bytes, int], int]) -> None:
    data = path.read_bytes()
    if len(data) < 8:
        raise BrokenFile(f"{path.name} has {len(data)} bytes, fewer than its header")
    (count,) = _U64.unpack_from(data)
    at = 8
    try:
        for _ in range(count):
            at = next_record(data, at)
    except (struct.error, ValueError, OverflowError, IndexError) as error:  # a field beyond the end
        raise BrokenFile(f"{path.name} ends before the {count} records it says it holds") from error
    if at > len(data):
        raise BrokenFile(f"{path.name} ends before the {count} records it says it holds")
    if at < len(data):
        raise BrokenFile(f"{path.name} has {len(data) - at} bytes after the {count} records it says it holds")


def _camera(data: bytes, at: int) -> int:
    (model,) = _U32.unpack_from(data, at + 4)
    if model >= len(_PARAMETERS):
        raise BrokenFile(f"cameras.bin has a camera of the unknown model {model}")
    return at + 24 + 8 * _PARAMETERS[model]


def _image(data: bytes, at: int) -> int:
    at = data.index(b"\0", at + 64) + 1  # after the id, the pose and the camera id: the name, ended by a zero
    (points,) = _U64.unpack_from(data, at)
    return at + 8 + 24 * points


def _point(data: bytes, at: int) -> int:
    (track,) = _U64.unpack_from(data, at + 43)
    return at + 51 + 8 * track


def _rig(data: bytes, at: int) -> int:
    (sensors,) = _U32.unpack_from(data, at + 4)
    at += 16 if sensors else 8  # the first sensor is the reference and has no pose
    for _ in range(sensors - 1):
        at += 65 if data[at + 8 : at + 9] == b"\1" else 9
        if at > len(data):
            raise ValueError("beyond the end")
    return at


def _frame(data: bytes, at: int) -> int:
    (ids,) = _U32.unpack_from(data, at + 64)
    return at + 68 + 16 * ids


REQUIRED = ("cameras.bin", "images.bin", "points3D.bin")
_NEXT_RECORD = {
    "cameras.bin": _camera,
    "images.bin": _image,
    "points3D.bin": _point,
    "rigs.bin": _rig,
    "frames.bin": _frame,
}
