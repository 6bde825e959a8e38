"""Lists of entries (pixel, Gaussian, weight) as torch operations: blending, and what of a pixel's entries is kept.

Notation: E entries, sorted by pixel and front to back within one; `place` [E] is an entry's number within its pixel.
Sums and products along a pixel are made by doubling: after k rounds an entry holds those of the 2^k entries up to it.
Nothing is added up by atomics or by one scan of all entries, so that a pixel's numbers depend on its own entries only
and are the same bits every time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cgc.rasterize.project import ALPHA_MIN

ALPHA_MAX = 0.999


class Entries(NamedTuple):
    """ids [E] int64, what an entry counts by; pixels [E] int64; weights [E] float32."""

    ids: Tensor
    pixels: Tensor
    weights: Tensor

    def keep(self, which: Tensor) -> Entries:
        """Return the entries of a mask [E], in their order."""
        return Entries(*(t[which] for t in self))


class Runs(NamedTuple):
    """counts [P] int64 of entries of each pixel; place [E] int64; longest, the largest count."""

    counts: Tensor
    place: Tensor
    longest: int


def find_runs(pixels: Tensor, n_pixels: int) -> Runs:
    """Return how the entries of sorted pixels [E] lie."""
    counts = torch.bincount(pixels, minlength=n_pixels)
    start = counts.cumsum(0) - counts
    place = torch.arange(len(pixels), device=pixels.device) - start[pixels]
    return Runs(counts, place, int(counts.max()) if len(counts) else 0)


def alphas_of(means2d: Tensor, conics: Tensor, opacities: Tensor, ids: Tensor, pixels: Tensor, width: int) -> Tensor:
    """Return alpha of entries, [E]: min(0.999, o exp(-sigma)), of Gaussians means2d [N, 2], conics [N, 3]."""
    x, y = (pixels % width).float() + 0.5, (pixels // width).float() + 0.5
    dx, dy = (means2d[ids] - torch.stack([x, y], 1)).unbind(1)
    a, b, c = conics[ids].unbind(1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    return (opacities[ids] * torch.exp(-sigma)).clamp(ALPHA_MIN, ALPHA_MAX)  # the kernel has found it above the least


def along(x: Tensor, runs: Runs, *, product: bool = False) -> Tensor:
    """Return the sum (or the product) of each entry and those before it in its pixel, [E]."""
    step = 1
    while step < runs.longest:
        later, earlier = x[step:], x[:-step]
        both = later * earlier if product else later + earlier
        x = torch.cat([x[:step], torch.where(runs.place[step:] >= step, both, later)])
        step *= 2
    return x


def blending_weights(alphas: Tensor, runs: Runs) -> Tensor:
    """Return alpha_i T_i, T_i the product of 1 - alpha_j over the entries before it in its pixel, [E]."""
    after = along(1 - alphas, runs, product=True)
    before = torch.cat([after.new_ones(1), after[:-1]])[: len(after)]
    return alphas * torch.where(runs.place == 0, 1.0, before)


def totals(x: Tensor, runs: Runs) -> Tensor:
    """Return the sum of each pixel's entries, [P]; 0 where it has none."""
    if not len(x):
        return x.new_zeros(len(runs.counts))
    ends = runs.counts.cumsum(0) - 1
    return torch.where(runs.counts > 0, along(x, runs)[ends.clamp_min(0)], 0.0)


def heaviest_of(entries: Entries, kept: Tensor, most: int) -> Tensor:
    """Return which of the entries in the mask `kept` [E] are among the `most` heaviest of their pixel, [E].

    Of equal weights the nearer are taken.
    """
    places = kept.nonzero()[:, 0]
    order = torch.sort(entries.weights[places], descending=True, stable=True)[1]
    order = order[torch.sort(entries.pixels[places][order], stable=True)[1]]
    chosen = places[order]  # by pixel, by falling weight
    runs = find_runs(entries.pixels[chosen], int(entries.pixels.max()) + 1 if len(entries.pixels) else 0)
    return torch.zeros_like(kept).index_fill(0, chosen[runs.place < most], True)


def thin(entries: Entries, runs: Runs, min_weight: float, heaviest: int) -> tuple[Entries, Tensor]:
    """Return the entries of at least `min_weight`, the `heaviest` of each pixel (0: all), and what the others weigh.

    The latter is [P], a pixel each.
    """
    if min_weight <= 0 and (heaviest == 0 or runs.longest <= heaviest):
        return entries, entries.weights.new_zeros(len(runs.counts))
    kept = entries.weights >= min_weight
    if heaviest > 0:
        kept = heaviest_of(entries, kept, heaviest)
    left_out = totals(torch.where(kept, 0.0, entries.weights), runs)
    return entries.keep(kept), left_out


def merge(entries: Entries, groups: Tensor) -> Entries:
    """Return one entry for each group [N] int64 that a pixel meets, by rising number: the weight of all of its own."""
    if not len(entries.ids):
        return entries
    of_entries = groups[entries.ids]
    n_groups = int(of_entries.max()) + 1
    keys, order = torch.sort(entries.pixels * n_groups + of_entries, stable=True)
    keys, counts = torch.unique_consecutive(keys, return_counts=True)
    numbers = torch.repeat_interleave(torch.arange(len(keys), device=keys.device), counts, output_size=len(order))
    sums = totals(entries.weights[order], find_runs(numbers, len(keys)))
    return Entries(keys % n_groups, keys // n_groups, sums)
