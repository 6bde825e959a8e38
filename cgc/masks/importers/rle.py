"""COCO's run lengths of a view's mask, plain and as text."""

from __future__ import annotations

from typing import Any

import numpy as np

from cgc.errors import InputError
from cgc.masks.image_masks import from_text
from cgc.masks.importers.base import LARGEST, Frame


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
