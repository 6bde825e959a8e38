"""Masks made tidy: small islands and holes removed; masks brought to another size without painting them."""

from __future__ import annotations

from typing import cast

import numpy as np
from scipy import ndimage

from cgc.masks.image_masks import decode

_EIGHT = np.ones((3, 3), bool)


def remove_small_regions(mask: np.ndarray, least: float) -> np.ndarray:
    """Fill holes of fewer than `least` pixels of a mask [H, W] bool, then drop islands of fewer than that.

    Pixels that touch at a corner are of one region. The largest island stays, however small. The same array comes back
    where nothing is changed.
    """
    if least <= 1 or not mask.any():
        return mask
    pieces, rows, columns = _near(mask)
    share = np.outer(rows, columns)
    holes = _small(~pieces, share, least)
    islands = _small(pieces | holes, share, least, keep_largest=True)
    if not holes.any() and not islands.any():
        return mask
    kept = (pieces | holes) & ~islands
    return np.repeat(np.repeat(kept, rows, axis=0), columns, axis=1)


def _near(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squeeze the empty rows and columns before a mask into one, and likewise those after it.

    Returns what is left, and how many rows and columns of the mask each of its rows and columns stands for. Regions
    hang together as before.
    """
    counts, kept = [], []
    for axis in (1, 0):
        used = np.flatnonzero(mask.any(axis=axis))
        first, last, length = max(used[0] - 1, 0), min(used[-1] + 1, mask.shape[1 - axis] - 1), mask.shape[1 - axis]
        stands = np.ones(last - first + 1, np.int64)
        stands[0] += first
        stands[-1] += length - 1 - last
        counts.append(stands)
        kept.append(slice(first, last + 1))
    return mask[kept[0], kept[1]], counts[0], counts[1]


def _small(mask: np.ndarray, share: np.ndarray, least: float, keep_largest: bool = False) -> np.ndarray:
    """Return the pixels of regions of `mask` that have fewer than `least` pixels; `share`: what each one counts."""
    labels, n = cast("tuple[np.ndarray, int]", ndimage.label(mask, _EIGHT))
    sizes = np.bincount(labels.ravel(), weights=share.ravel(), minlength=n + 1)
    drop = sizes < least
    drop[0] = False
    if keep_largest and n:
        drop[1 + np.argmax(sizes[1:])] = False
    return drop[labels]


def resize_counts(counts: np.ndarray, height: int, width: int, to_height: int, to_width: int) -> np.ndarray:
    """Return the run lengths of a mask at another size, each pixel taking the nearest one.

    Only the edges of the mask's columns are moved, so that a large result costs no more than its edges.
    """
    row_of = (2 * np.arange(to_height) + 1) * height // (2 * to_height)
    column_of = (2 * np.arange(to_width) + 1) * width // (2 * to_width)
    columns = np.zeros((width, height + 2), bool)
    columns[:, 1:-1] = decode(counts, height, width).T
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])  # edges lie before rows 0 .. height
    moved = np.searchsorted(row_of, row)  # the first row that takes a pixel at or after the edge
    starts = np.searchsorted(column, np.arange(width + 1))
    lengths = (starts[1:] - starts[:-1])[column_of]  # [to_width] edges of each column
    before = np.cumsum(lengths) - lengths
    taken = np.arange(lengths.sum()) + np.repeat(starts[column_of] - before, lengths)
    at = moved[taken] + np.repeat(np.arange(to_width) * to_height, lengths)
    edges, times = np.unique(at, return_counts=True)
    edges = edges[(times % 2 == 1) & (edges < to_height * to_width)]  # two edges at one place undo each other
    return np.diff(np.concatenate([[0], edges, [to_height * to_width]])).astype(np.uint32)
