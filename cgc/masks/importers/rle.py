"""COCO's run lengths, plain and as text.

The text has six bits a character, from "0" on: five of the number, low ones first, and one that says that more
follow; the highest of the last five is the sign. From the fourth run on, the difference to the run before last is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cgc.errors import InputError
from cgc.masks.importers.base import LARGEST, Frame

_LONGEST = 7  # characters a number: 35 bits


def read_runs(segmentation: Any, frame: Frame) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the run lengths of a COCO mask, and its (width, height); InputError where it is none of this view."""
    size = segmentation.get("size")
    if not (isinstance(size, list) and len(size) == 2):
        raise InputError(f"{frame.path} has run lengths with the size {size!r}; expected [height, width]")
    width, height = frame.check(size[1], size[0])
    counts = _numbers(segmentation.get("counts"), frame)
    if len(counts) and (counts.min() < 0 or counts.max() > width * height):
        raise InputError(
            f"{frame.path} has a run of {counts[(counts < 0) | (counts > width * height)][0]} pixels in a mask of "
            f"{width}x{height}; the file is damaged, export it again"
        )
    if counts.sum() != width * height:
        raise InputError(
            f"{frame.path} has run lengths of {counts.sum():,} pixels where its size {width}x{height} says "
            f"{width * height:,}; it is truncated, or of another image"
        )
    return counts, (width, height)


def _numbers(counts: Any, frame: Frame) -> np.ndarray:
    if isinstance(counts, str):
        try:
            return from_text(counts)
        except ValueError as error:
            raise InputError(f"{frame.path} has compressed run lengths that {error}; export it again") from error
    if not isinstance(counts, list) or not all(type(c) is int and -(2**62) < c < 2**62 for c in counts):
        raise InputError(f"{frame.path} has run lengths that are no list of whole numbers and no text; export it again")
    if len(counts) > 2 * frame_pixels(frame) + 2:
        raise InputError(f"{frame.path} has more runs than pixels; the file is damaged, export it again")
    return np.array(counts, np.int64)


def frame_pixels(frame: Frame) -> int:
    """Return the most pixels that a mask of this frame may have."""
    return LARGEST * frame.photo[0] * frame.photo[1]


def from_text(text: str) -> np.ndarray:
    """Decode compressed run lengths, int64; ValueError says what is wrong with them."""
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError as error:
        raise ValueError("hold characters that none has") from error
    if len(codes) and (codes.min() < 0 or codes.max() > 63):
        raise ValueError("hold characters that none has")
    last = (codes & 32) == 0
    if len(codes) and not last[-1]:
        raise ValueError("end within a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    if len(ends) and (ends - starts).max() >= _LONGEST:
        raise ValueError("hold a number of more than 35 bits")
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts) if len(ends) else np.zeros(0, np.int64)
    negative = (codes[ends] & 16) > 0
    numbers = numbers - np.where(negative, np.int64(1) << (5 * (ends - starts + 1)), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
