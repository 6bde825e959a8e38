"""Rows of W from gsplat's lists: bands of tiles at a time, so that memory stays within a bound.

gsplat's kernel tells which entries count; it can go on from a transmittance, but not from a pixel that has stopped, so
a tile's whole list is looked at in one call. What a call finds is bounded by taking a run of tiles at a time, whose
pixels and pairs are at most `memory_limit` / ENTRY_BYTES products (a single tile may pass it); the lists of other
tiles are made empty. Pixels that are not wanted start with a transmittance of 0 and stop at their first entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cgc.errors import InputError
from cgc.rasterize.entries import Entries, alphas_of, blending_weights, find_runs, merge, thin
from cgc.rasterize.sparse_torch import places_of

ENTRY_BYTES = 100
"""What an entry takes while a band is worked on."""
KEPT_BYTES = 16
"""What a kept entry takes at most: 8 B, twice while rows are put in order."""


TILE = 16
"""Side of a tile in pixels."""


class Lists(NamedTuple):
    """The pairs (Gaussian, tile) of C pictures: of each tile its Gaussians, front to back.

    offsets [C, tile rows, tile columns] int32 is a tile's first pair; ids [pairs] int32 is a pair's Gaussian.
    """

    offsets: Tensor
    ids: Tensor


class Shown(NamedTuple):
    """What one picture shows: means2d [1, N, 2], conics [1, N, 3], opacities [N], its lists and its size."""

    means2d: Tensor
    conics: Tensor
    opacities: Tensor
    lists: Lists
    width: int
    height: int


class Keep(NamedTuple):
    """What of a row is kept: see `Rasterizer.contributions`; groups [N]: entries count by these, and all are kept."""

    min_weight: float = 0.0
    heaviest: int = 0
    dtype: torch.dtype = torch.float32
    groups: Tensor | None = None
    memory_limit: int = 4 << 30


def rows_of_pixels(
    gsplat: Any, shown: Shown, pixels: Tensor | None, keep: Keep
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return CSR (indptr [P+1] int64, ids [nnz] int32, weights [nnz]) of pixels [P] (None: all) and the remainder [P].

    gsplat: its module of CUDA functions. InputError where what is kept would not fit in the memory limit.
    """
    n_pixels, device = shown.width * shown.height, shown.means2d.device
    wanted = torch.arange(n_pixels, device=device) if pixels is None else pixels
    open_ = torch.zeros(n_pixels, device=device).index_fill(0, wanted, 1.0)
    counts, left_out = torch.zeros(n_pixels, dtype=torch.int64, device=device), torch.zeros(n_pixels, device=device)
    starts, found = torch.zeros_like(counts), 0
    ids, weights = [counts.new_zeros(0, dtype=torch.int32)], [open_.new_zeros(0, dtype=keep.dtype)]
    for band in bands(shown, open_, max(keep.memory_limit // ENTRY_BYTES, 1)):
        entries, rest = _weigh(gsplat, shown, band, open_, keep)
        left_out += rest  # a pixel lies in one band
        of_band = torch.bincount(entries.pixels, minlength=n_pixels)
        starts = torch.where(of_band > 0, found + of_band.cumsum(0) - of_band, starts)
        counts += of_band
        ids.append(entries.ids.to(torch.int32))
        weights.append(entries.weights.to(keep.dtype))
        found += len(entries.ids)
        if found * KEPT_BYTES > keep.memory_limit:
            raise InputError(
                f"the blending weights of {len(wanted):,} pixels need more than {keep.memory_limit / 1e9:.3g} GB; ask "
                "for fewer pixels, for the heaviest few of each, or leave out the light ones"
            )
    indptr, places = places_of(starts[wanted], counts[wanted])
    return indptr, torch.cat(ids)[places], torch.cat(weights)[places], left_out[wanted]


def _weigh(gsplat: Any, shown: Shown, band: Lists, open_: Tensor, keep: Keep) -> tuple[Entries, Tensor]:
    """Return the entries of a band that are kept, and the weight of the others, [H * W]."""
    means2d, conics, opacities, _, width, height = shown
    gaussians, at, _ = gsplat.rasterize_to_indices_in_range(
        0, 2**31 - 1, open_.reshape(1, height, width), means2d, conics, opacities[None], width, height, TILE, *band
    )
    runs = find_runs(at, width * height)
    alphas = alphas_of(means2d[0], conics[0], opacities, gaussians, at, width)
    entries = Entries(gaussians, at, blending_weights(alphas, runs))
    if keep.groups is None:
        return thin(entries, runs, keep.min_weight, keep.heaviest)
    return merge(entries, keep.groups), torch.zeros_like(open_)


def bands(shown: Shown, open_: Tensor, most: int) -> Iterator[Lists]:
    """Yield the lists with all tiles but a run of them made empty.

    The run's pairs times its open pixels, of open_ [H * W], are at most `most`, unless it is one tile.
    """
    offsets, ids = shown.lists
    rows, columns = offsets.shape[1:]
    missing = columns * TILE - shown.width, rows * TILE - shown.height
    whole = torch.nn.functional.pad(open_.reshape(shown.height, shown.width), (0, missing[0], 0, missing[1]))
    pixels = whole.reshape(rows, TILE, columns, TILE).sum((1, 3)).flatten().to(torch.int64)
    bounds = torch.cat([offsets.flatten().to(torch.int64), pixels.new_tensor([len(ids)])])
    cost, ends = (pixels * bounds.diff()).cpu().numpy(), bounds.cpu().numpy()
    for first, last in cut(cost, most):
        begin, end = int(ends[first]), int(ends[last])
        yield Lists(offsets.clamp(begin, end), ids[:end])


def cut(cost: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Cut costs [T] into runs that cost at most `most`, or are one long; what costs nothing may be left out."""
    total, runs, first = np.cumsum(cost), [], 0
    while first < len(cost):
        spent = int(total[first - 1]) if first else 0
        if total[-1] == spent:
            break
        last = max(int(np.searchsorted(total, spent + most, side="right")), first + 1)
        if total[last - 1] > spent:
            runs.append((first, last))
        first = last
    return runs
