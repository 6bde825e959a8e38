"""The pixels features are learned from: drawn once a view, with the blending weights behind them.

A `Batch` is a few thousand pixels of one view, each inside a mask and off its border, and their rows of the
contribution matrix. Everything later (learning, votes, clustering by visible mass) reads these rows only, so its
cost does not grow with the size of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cgc.errors import InputError
from cgc.masks.id_maps import border_mask
from cgc.progress import progress_bar
from cgc.rasterize.base import Contributions, Rasterizer
from cgc.scene.types import Camera
from cgc.settings import LiftSettings
from cgc.splats.types import Splats


@dataclass(frozen=True)
class Batch:
    """Sampled pixels of one view: `weights` their rows of W, `masks` [P] int64 in [0, len(mask_ids)).

    `mask_ids` [M] are the ids the masks have in the view's id map.
    """

    view: int
    weights: Contributions
    masks: Tensor
    mask_ids: Tensor


def sample_batches(
    splats: Splats,
    cameras: Sequence[Camera],
    id_maps: Sequence[np.ndarray | None],
    rasterizer: Rasterizer,
    settings: LiftSettings,
    *,
    quiet: bool = False,
) -> list[Batch]:
    """Draw each view's pixels and keep their blending weights; views without a mask give nothing.

    id_maps: one [H, W] int array a camera, 0 = unassigned, or None. Memory: about 100 B a sampled pixel.
    """
    generator = np.random.default_rng(settings.seed)
    batches: list[Batch] = []
    with progress_bar("weights", len(cameras), quiet=quiet) as bar:
        for view, (camera, id_map) in enumerate(zip(cameras, id_maps)):
            if id_map is not None:
                pixels = _draw_pixels(id_map, settings, generator)
                for part in np.array_split(pixels, max(1, round(len(pixels) / settings.pixels_per_step))):
                    batch = _make_batch(view, camera, id_map, part, splats, rasterizer, settings)
                    if batch is not None:
                        batches.append(batch)
            bar.advance(1, batches=len(batches))
    if not batches:
        raise InputError(
            "no training view has a mask with pixels that any Gaussian reaches: expected id maps with ids above 0 "
            "on views that see the splats; check that the masks belong to this scene and that the splats are its own"
        )
    return batches


def _draw_pixels(id_map: np.ndarray, settings: LiftSettings, generator: np.random.Generator) -> np.ndarray:
    """Draw pixels inside masks, off their borders, small masks more densely: with chance ~ area^-1/2."""
    inside = (id_map > 0) & ~border_mask(id_map, settings.border)
    candidates = np.flatnonzero(inside)
    if len(candidates) <= settings.pixels_per_view:
        return generator.permutation(candidates)
    _, index, counts = np.unique(id_map.ravel()[candidates], return_inverse=True, return_counts=True)
    chance = (1.0 / np.sqrt(counts))[index]
    # Gumbel keys: the largest n are a weighted draw without replacement, in random order
    keys = np.log(chance) + generator.gumbel(size=len(candidates))
    return candidates[np.argsort(-keys, kind="stable")[: settings.pixels_per_view]]


def _make_batch(
    view: int,
    camera: Camera,
    id_map: np.ndarray,
    pixels: np.ndarray,
    splats: Splats,
    rasterizer: Rasterizer,
    settings: LiftSettings,
) -> Batch | None:
    ids, masks, counts = np.unique(id_map.ravel()[pixels], return_inverse=True, return_counts=True)
    kept = counts >= settings.min_mask_pixels
    chosen = kept[masks]
    if not kept.any():
        return None
    renumbered = (np.cumsum(kept) - 1)[masks[chosen]]
    weights = rasterizer.contributions(splats, camera, torch.from_numpy(pixels[chosen]), min_weight=settings.min_weight)
    return Batch(view, weights, torch.from_numpy(renumbered), torch.from_numpy(ids[kept].astype(np.int64)))


def visible_mass(batches: Sequence[Batch], n_gaussians: int) -> Tensor:
    """Return how much of the sampled pixels each Gaussian is: the column sums of W, [N]."""
    mass = torch.zeros(n_gaussians)
    for batch in batches:
        mass.index_add_(0, batch.weights.ids.long(), batch.weights.weights)
    return mass
