"""The pixels features are learned from: drawn once a view, with the blending weights behind them.

A `Batch` is a few thousand pixels of one view, each inside a mask and off its border, their rows of the contribution
matrix, and the Gaussians that they show. Everything later (learning, votes, clustering by visible mass) reads these
rows only, so its cost grows neither with the size of the image nor with the number of Gaussians.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cgc import parallel
from cgc.errors import InputError
from cgc.features.cache import Cache
from cgc.masks.id_maps import border_mask
from cgc.progress import progress_bar
from cgc.rasterize.base import Contributions, Rasterizer
from cgc.rasterize.sparse import Csr
from cgc.scene.types import Camera
from cgc.settings import LiftSettings
from cgc.splats.types import Splats

BESIDE = 5  # pixels: how near to a mask's border "border" sampling takes half of its pixels


@dataclass(frozen=True)
class Batch:
    """Sampled pixels of one view, sorted by mask.

    `gaussians` [U] int32, rising, are those that the pixels show, and `weights` the pixels' rows of W with columns 0 to
    U - 1 in that order; `masks` [P] int64 in [0, len(mask_ids)), `mask_ids` [M] the ids the masks have in the view's
    id map. Memory: 16 B an entry of W, which is held by pixel and by Gaussian, 24 B a pixel, 12 B a Gaussian of U.
    """

    view: int
    gaussians: Tensor
    weights: Contributions
    masks: Tensor
    mask_ids: Tensor

    @cached_property
    def counts(self) -> np.ndarray:
        """How many of the pixels each mask has, [M] int64."""
        return np.bincount(self.masks.numpy(), minlength=len(self.mask_ids))


@dataclass(frozen=True)
class Elsewhere:
    """A batch that another process holds: which one, and how many Gaussians its pixels show."""

    holder: int
    shown: int


def held(batches: Sequence[Batch | Elsewhere]) -> list[Batch]:
    """Return the batches that this process holds, in their order."""
    return [batch for batch in batches if isinstance(batch, Batch)]


def sample_batches(
    splats: Splats,
    cameras: Sequence[Camera],
    id_maps: Sequence[np.ndarray | None],
    rasterizer: Rasterizer,
    settings: LiftSettings,
    *,
    folder: Path | None = None,
    quiet: bool = False,
) -> list[Batch | Elsewhere]:
    """Draw each view's pixels and keep their blending weights; views without a mask give nothing.

    id_maps: one [H, W] int array a camera, 0 = unassigned, or None. The batches take up to `settings.cache_gb` of
    memory, what is more lies in a temporary file in `folder` (None: the system's). Of several processes each draws all
    pixels, so that these are the same for any number of them, and holds the weights of an equal run of the views.
    """
    generator = np.random.default_rng(settings.seed)
    rank, size = parallel.here()
    masked = np.cumsum([id_map is not None for id_map in id_maps])
    made: list[tuple[int, int]] = []  # of each batch the view, and who holds it
    with Cache(settings.cache_gb, folder) as cache, progress_bar("weights", len(cameras), quiet=quiet) as bar:
        for view, (camera, id_map) in enumerate(zip(cameras, id_maps)):
            if id_map is not None:
                parts = _part(id_map, _draw_pixels(id_map, settings, generator), settings)
                holder = int(masked[view] - 1) * size // int(masked[-1])
                made += [(view, holder)] * len(parts)
                if holder == rank and parts:
                    for batch in _make_batches(view, camera, id_map, parts, splats, rasterizer, settings):
                        cache.keep(_arrays(batch))
            bar.advance(1, batches=len(made))
        if not made:
            raise InputError(
                "no training view has a mask with pixels that any Gaussian reaches: expected id maps with ids above 0 "
                "on views that see the splats; check that the masks belong to this scene and that the splats are its "
                "own"
            )
        own = iter(cache.groups())
        batches = [_restore(view, cameras[view], next(own)) if holder == rank else None for view, holder in made]
    shown = parallel.add_up(torch.tensor([len(batch.gaussians) if batch else 0 for batch in batches]))
    return [batch or Elsewhere(holder, int(n)) for batch, (_, holder), n in zip(batches, made, shown)]


def _draw_pixels(id_map: np.ndarray, settings: LiftSettings, generator: np.random.Generator) -> np.ndarray:
    """Draw pixels inside masks and off their borders, in random order, as `settings.sampling` says."""
    candidates = np.flatnonzero(off_border(id_map, settings.border, settings.min_mask_pixels))
    n = settings.pixels_per_view
    if len(candidates) <= n or settings.sampling == "uniform":
        return generator.permutation(candidates)[:n]
    _, index, counts = np.unique(id_map.ravel()[candidates], return_inverse=True, return_counts=True)
    chance = (1.0 / np.sqrt(counts))[index]
    # Gumbel keys: the largest n are a weighted draw without replacement, in random order
    order = np.argsort(-(np.log(chance) + generator.gumbel(size=len(candidates))), kind="stable")
    if settings.sampling == "mask":
        return candidates[order[:n]]
    beside = border_mask(id_map, BESIDE).ravel()[candidates[order]]
    first = np.flatnonzero(beside)[: n // 2]
    rest = np.delete(order, first)[: n - len(first)]
    return generator.permutation(candidates[np.concatenate([order[first], rest])])


def off_border(id_map: np.ndarray, width: int, least: int) -> np.ndarray:
    """Say which pixels [H, W] are in masks and farther than `width` pixels from their borders.

    Of thin masks, which have fewer than `least` of these, all pixels count: they are better than nothing.
    """
    off = (id_map > 0) & ~border_mask(id_map, width)
    _, index = np.unique(id_map, return_inverse=True)
    thin = np.bincount(index.ravel(), off.ravel()) < least
    return off | ((id_map > 0) & thin[index].reshape(id_map.shape))


def _part(id_map: np.ndarray, pixels: np.ndarray, settings: LiftSettings) -> list[np.ndarray]:
    """Part a view's pixels into those of each batch, as many each, sorted by mask; none are empty."""
    parts = []
    for part in np.array_split(pixels, max(1, round(len(pixels) / settings.pixels_per_step))):
        of_part = id_map.ravel()[part]
        ids, counts = np.unique(of_part, return_counts=True)
        kept = np.isin(of_part, ids[counts >= settings.min_mask_pixels])
        parts.append(part[kept][np.lexsort((part[kept], of_part[kept]))])
    return [part for part in parts if len(part)]


def _make_batches(
    view: int,
    camera: Camera,
    id_map: np.ndarray,
    parts: Sequence[np.ndarray],
    splats: Splats,
    rasterizer: Rasterizer,
    settings: LiftSettings,
) -> Iterator[Batch]:
    """Yield the batches of a view from one pass over its weights."""
    pixels = np.concatenate(parts)
    weights = rasterizer.contributions(
        splats, camera, torch.from_numpy(pixels), min_weight=settings.min_weight, heaviest=settings.heaviest
    )
    ends = np.cumsum([len(part) for part in parts])
    for part, end in zip(parts, ends):
        mask_ids, masks = np.unique(id_map.ravel()[part], return_inverse=True)
        of_part, gaussians = weights.select(torch.arange(end - len(part), end)).compact()
        ids = torch.from_numpy(mask_ids.astype(np.int64))
        yield Batch(view, gaussians, of_part, torch.from_numpy(masks), ids)


def _arrays(batch: Batch) -> list[np.ndarray]:
    """What a batch is made of, its matrix by pixel and by Gaussian."""
    weights = batch.weights
    tensors = (batch.gaussians, batch.masks, batch.mask_ids, weights.pixels)
    return [*(t.cpu().numpy() for t in tensors), *weights.by_pixel, *weights.by_gaussian]


def _restore(view: int, camera: Camera, arrays: Sequence[np.ndarray]) -> Batch:
    """Make a batch of its `_arrays`."""
    width, height = camera.width, camera.height
    gaussians, masks, mask_ids, pixels, indptr, ids, values = (torch.from_numpy(a) for a in arrays[:7])
    transposed = Csr(*arrays[7:])
    weights = Contributions(indptr, ids, values, pixels, width, height, len(gaussians), transposed=transposed)
    return Batch(view, gaussians, weights, masks, mask_ids)


def visible_mass(batches: Sequence[Batch | Elsewhere], n_gaussians: int) -> Tensor:
    """Return how much of the sampled pixels each Gaussian is: the column sums of W, [N]."""

    def add(mass: Tensor) -> None:
        for batch in held(batches):
            ids = batch.gaussians[batch.weights.ids.long()].long()
            mass.index_add_(0, ids, batch.weights.weights)

    return parallel.add_in_turn(torch.zeros(n_gaussians), add)
