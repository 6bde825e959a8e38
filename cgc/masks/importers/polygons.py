"""Polygons to masks: a pixel is inside where its centre is, by the even-odd rule.

Coordinates are in pixels from the image's upper left corner, so the first pixel's centre is (0.5, 0.5).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cgc.errors import InputError

_MOST = 50_000_000
"""Crossings of edges and rows of pixels that a polygon may have: its drawing stays below a few seconds."""
_FAR = 1e9


def read_points(values: Any, path: object) -> np.ndarray:
    """Return the points [n, 2] of a polygon, given as x, y, x, y, ... or as pairs; InputError where they are none."""
    broken = InputError(f"{path} has a polygon that is no list of x and y in pixels; export it again")
    if not isinstance(values, list):
        raise broken
    try:
        points = np.asarray(values, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise broken from error
    if points.ndim == 1 and len(points) % 2 == 0:
        points = points.reshape(-1, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        raise broken
    if not np.isfinite(points).all():
        raise InputError(f"{path} has a polygon with a point that is no number (NaN or infinite); export it again")
    return points


def fill(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the mask [height, width] bool of a polygon; what is outside the image is cut off."""
    points = np.clip(points, -_FAR, _FAR)
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    upper, lower = np.minimum(y0, y1), np.maximum(y0, y1)
    first = np.clip(np.ceil(upper - 0.5), 0, height).astype(np.int64)  # rows with upper <= centre < lower
    last = np.clip(np.ceil(lower - 0.5), 0, height).astype(np.int64)
    spans = last - first
    if spans.sum() > _MOST:
        raise InputError(
            f"a polygon of {len(points):,} points crosses {spans.sum():,} rows of pixels; expected the outline of an "
            "object, so simplify it"
        )
    edge = np.repeat(np.arange(len(points)), spans)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(spans) - spans, spans) + first[edge]
    x = x0[edge] + (rows + 0.5 - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)  # the first centre that is not left of it
    crossings = np.bincount(rows * (width + 1) + columns, minlength=height * (width + 1))
    return (np.cumsum(crossings.reshape(height, width + 1), axis=1) % 2 == 1)[:, :width]


def disc(x: float, y: float, radius: float, width: int, height: int) -> np.ndarray:
    """Return the mask [height, width] bool of a disc."""
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius * radius
