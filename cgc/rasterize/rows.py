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

ENTRY_BYTES = 100
"""What an entry takes while a band is worked on."""
KEPT_BYTES = 16
"""What a kept entry takes at most: 8 B, twice while rows are put in order."""


class Lists(NamedTuple):
    """offsets [C, tile rows, tile columns] int32: the first pair of a tile; ids [pairs] int32: of a pair its Gaussian."""

    offsets: Tensor
    ids: Tensor


def rows_of_pixels(
    gsplat: Any,
    lists: Lists,
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    width: int,
    height: int,
    tile: int,
    pixels: Tensor | None,
    *,
    min_weight: float,
    heaviest: int,
    dtype: torch.dtype,
    groups: Tensor | None,
    memory_limit: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return CSR (indptr [P+1] int64, ids [nnz] int32, weights [nnz]) of pixels [P] (None: all) and the remainder [P].

    means2d [1, N, 2], conics [1, N, 3] and opacities [N] of one camera; groups [N]: entries count by these.
    """
    n_pixels, device = width * height, means2d.device
    open_ = torch.ones(n_pixels, device=device) if pixels is None else torch.zeros(n_pixels, device=device)
    if pixels is not None:
        open_[pixels] = 1.0
    n_groups = int(groups.max()) + 1 if groups is not None and len(groups) else 0
    counts = torch.zeros(n_pixels, dtype=torch.int64, device=device)
    starts, left_out = torch.zeros_like(counts), torch.zeros(n_pixels, device=device)
    ids, weights, found = [counts.new_zeros(0, dtype=torch.int32)], [open_.new_zeros(0, dtype=dtype)], 0
    for band in bands(lists, open_.reshape(height, width), tile, max(memory_limit // ENTRY_BYTES, 1)):
        gaussians, at, _ = gsplat.rasterize_to_indices_in_range(
            0, 2**31 - 1, open_.reshape(1, height, width), means2d, conics, opacities[None], width, height, tile, *band
        )
        runs = find_runs(at, n_pixels)
        alphas = alphas_of(means2d[0], conics[0], opacities, gaussians, at, width)
        entries = Entries(gaussians, at, blending_weights(alphas, runs))
        if groups is not None:
            entries = merge(entries, groups, n_groups)
        else:
            entries, rest = thin(entries, runs, min_weight, heaviest)
            left_out += rest  # a pixel lies in one band
        of_band = torch.bincount(entries.pixels, minlength=n_pixels)
        starts = torch.where(of_band > 0, found + of_band.cumsum(0) - of_band, starts)
        counts += of_band
        ids.append(entries.ids.to(torch.int32))
        weights.append(entries.weights.to(dtype))
        found += len(entries.ids)
        if found * KEPT_BYTES > memory_limit:
            wanted = n_pixels if pixels is None else len(pixels)
            raise InputError(
                f"the blending weights of {wanted:,} pixels need more than {memory_limit / 1e9:.3g} GB; ask for fewer "
                "pixels, for the heaviest few of each, or leave out the light ones"
            )
    wanted = torch.arange(n_pixels, device=device) if pixels is None else pixels
    indptr, places = _places(starts, counts, wanted)
    return indptr, torch.cat(ids)[places], torch.cat(weights)[places], left_out[wanted]


def _places(starts: Tensor, counts: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indptr of wanted pixels, and where their entries lie, from where each pixel's begin and how many."""
    of_wanted = counts[wanted]
    indptr = torch.cat([of_wanted.new_zeros(1), of_wanted.cumsum(0)])
    shift = torch.repeat_interleave(starts[wanted] - indptr[:-1], of_wanted)
    return indptr, shift + torch.arange(len(shift), device=shift.device)


def bands(lists: Lists, open_: Tensor, tile: int, most: int) -> Iterator[Lists]:
    """Yield the lists with all tiles but a run of them made empty; its pairs times open pixels are at most `most`."""
    rows, columns = lists.offsets.shape[1:]
    padded = torch.nn.functional.pad(open_, (0, columns * tile - open_.shape[1], 0, rows * tile - open_.shape[0]))
    pixels = padded.reshape(rows, tile, columns, tile).sum((1, 3)).flatten().to(torch.int64)
    bounds = torch.cat([lists.offsets.flatten().to(torch.int64), pixels.new_tensor([len(lists.ids)])])
    cost = (pixels * bounds.diff()).cpu().numpy()
    ends = bounds.cpu().numpy()
    for first, last in cut(cost, most):
        begin, end = int(ends[first]), int(ends[last])
        yield Lists(lists.offsets.clamp(begin, end), lists.ids[:end])


def cut(cost: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Cut a list [T] of costs into runs that cost at most `most`, or are one long; runs that cost nothing are left out."""
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
