"""The pixels features are learned from: drawn once a view, with the blending weights behind them.

Everything later (learning, votes, clustering by visible mass) reads the rows of these pixels only, so its cost grows
neither with the size of the image nor with the number of Gaussians.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from cgc import kernels, parallel
from cgc.errors import InputError
from cgc.features.batches import Batch as Batch
from cgc.features.batches import Elsewhere as Elsewhere
from cgc.features.batches import held as held
from cgc.features.cache import Cache
from cgc.features.device_batches import DeviceBatch, DevicePool, split_on_device
from cgc.masks.id_maps import border_mask
from cgc.progress import progress_bar
from cgc.rasterize.base import Contributions, Rasterizer, device_of
from cgc.rasterize.sparse import Csr
from cgc.scene.types import Camera
from cgc.settings import LiftSettings
from cgc.splats.types import Splats

T = TypeVar("T")

BESIDE = 5  # pixels: how near to a mask's border "border" sampling takes half of its pixels


def sample_batches(
    splats: Splats,
    cameras: Sequence[Camera],
    id_maps: Sequence[np.ndarray | None],
    rasterizer: Rasterizer,
    settings: LiftSettings,
    *,
    layout: Literal["auto", "host", "device"] = "auto",
    quiet: bool = False,
) -> list[Batch | Elsewhere]:
    """Draw each view's pixels and keep their blending weights; views without a mask give nothing.

    id_maps: one [H, W] int array a camera, 0 = unassigned, or None. The pixels are the same for any backend and any
    number of processes: each of these draws all, and holds the weights of an equal run of the views. layout: "host"
    makes `Batch`es for the CPU's kernels, of which `settings.cache_gb` lie in memory and the rest in a temporary file;
    "device" makes `DeviceBatch`es on the rasteriser's device, past the limit in the host's memory; "auto" goes by where
    that is.
    """
    rank, size = parallel.here()
    device = device_of(rasterizer)
    on_device = layout == "device" or (layout == "auto" and not kernels.serve(device))
    splats = splats.detach().to(device)
    masked = np.cumsum([id_map is not None for id_map in id_maps])
    made: list[tuple[int, int]] = []  # of each batch the view, and who holds it
    pool, drawn = DevicePool(settings.cache_gb), _draw_views(id_maps, settings)
    with Cache(settings.cache_gb) as cache, progress_bar("weights", len(cameras), quiet=quiet) as bar:
        for view, parts in enumerate(_ahead(drawn) if on_device else drawn):
            holder = int(masked[view] - 1) * size // max(int(masked[-1]), 1)
            made += [(view, holder)] * len(parts)
            if holder == rank and parts and on_device:
                for batch in _make_device_batches(view, cameras[view], parts, splats, rasterizer, settings):
                    pool.keep(batch)
            elif holder == rank and parts:
                for batch in _make_batches(view, cameras[view], parts, splats, rasterizer, settings):
                    cache.keep(to_arrays(batch))
            bar.advance(1, batches=len(made))
        if not made:
            raise InputError(
                "no training view has a mask with pixels that any Gaussian reaches: expected id maps with ids above 0 "
                f"on views that see the splats, and masks of {settings.min_mask_pixels} (min-mask-pixels) of the "
                f"{settings.pixels_per_view:,} pixels drawn a view (pixels-per-view); check that the masks belong to "
                "this scene and that the splats are its own"
            )
        views = [view for view, holder in made if holder == rank]
        own = iter(pool.batches or [from_arrays(v, cameras[v], arrays) for v, arrays in zip(views, cache.groups())])
        batches = [next(own) if holder == rank else None for _, holder in made]
    shown = parallel.add_up(torch.tensor([len(batch.gaussians) if batch else 0 for batch in batches]))
    return [batch or Elsewhere(holder, int(n), on_device) for batch, (_, holder), n in zip(batches, made, shown)]


class Part(NamedTuple):
    """Pixels of a batch, sorted by mask: pixels [P] and masks [P] int64 in [0, M), and the masks' ids [M] int64."""

    pixels: np.ndarray
    masks: np.ndarray
    mask_ids: np.ndarray


def _draw_views(id_maps: Sequence[np.ndarray | None], settings: LiftSettings) -> Iterator[list[Part]]:
    """Yield what is drawn of each view, none without a map; always the same for a seed."""
    generator = np.random.default_rng(settings.seed)
    for id_map in id_maps:
        yield [] if id_map is None else part_pixels(id_map, draw_pixels(id_map, settings, generator), settings)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items, each of which was begun in another thread before the one before it was asked for."""
    with ThreadPoolExecutor(1, thread_name_prefix="cgc.draw") as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item


def draw_pixels(id_map: np.ndarray, settings: LiftSettings, generator: np.random.Generator) -> np.ndarray:
    """Draw pixels [P] inside masks of a map [H, W], off their borders, in random order, as `settings.sampling` says."""
    candidates = np.flatnonzero(off_border(id_map, settings.border, settings.min_mask_pixels))
    n = settings.pixels_per_view
    if len(candidates) <= n or settings.sampling == "uniform":
        return generator.permutation(candidates)[:n]
    # Gumbel keys: the least n are a weighted draw without replacement, in random order
    keys = -(_log_chances(id_map.ravel()[candidates]) + generator.gumbel(size=len(candidates)))
    if settings.sampling == "mask":
        some = np.flatnonzero(keys <= np.partition(keys, n - 1)[n - 1])  # sorting all of them takes long
        return candidates[some[np.argsort(keys[some], kind="stable")[:n]]]
    order = np.argsort(keys, kind="stable")
    beside = border_mask(id_map, BESIDE).ravel()[candidates[order]]
    first = np.flatnonzero(beside)[: n // 2]
    rest = np.delete(order, first)[: n - len(first)]
    return generator.permutation(candidates[np.concatenate([order[first], rest])])


def _log_chances(ids: np.ndarray) -> np.ndarray:
    """The logarithm of one over the square root of how often its id is there, of each of some ids over 0."""
    if ids.max() <= len(ids):
        counts = np.bincount(ids)
        return np.log(1.0 / np.sqrt(np.maximum(counts, 1)))[ids]
    _, index, counts = np.unique(ids, return_inverse=True, return_counts=True)
    return np.log(1.0 / np.sqrt(counts))[index]


def off_border(id_map: np.ndarray, width: int, least: int) -> np.ndarray:
    """Say which pixels [H, W] are in masks and farther than `width` pixels from their borders.

    Of thin masks, which have fewer than `least` of these, all pixels count: they are better than nothing.
    """
    off = (id_map > 0) & ~border_mask(id_map, width)
    _, index = np.unique(id_map, return_inverse=True)
    thin = np.bincount(index.ravel(), off.ravel()) < least
    return off | ((id_map > 0) & thin[index].reshape(id_map.shape))


def part_pixels(id_map: np.ndarray, pixels: np.ndarray, settings: LiftSettings) -> list[Part]:
    """Part a view's pixels [P] into those of each batch, as many each, sorted by mask; none are empty."""
    parts = []
    for part in np.array_split(pixels, max(1, round(len(pixels) / settings.pixels_per_step))):
        of_part = id_map.ravel()[part]
        _, masks, counts = np.unique(of_part, return_inverse=True, return_counts=True)
        kept = counts[masks] >= settings.min_mask_pixels
        order = np.lexsort((part[kept], masks[kept]))
        if len(order):
            mask_ids, masks = np.unique(of_part[kept][order], return_inverse=True)
            parts.append(Part(part[kept][order], masks, mask_ids.astype(np.int64)))
    return parts


def _make_batches(
    view: int, camera: Camera, parts: Sequence[Part], splats: Splats, rasterizer: Rasterizer, settings: LiftSettings
) -> Iterator[Batch]:
    """Yield the batches of a view from one pass over its weights."""
    pixels = torch.from_numpy(np.concatenate([part.pixels for part in parts]))
    weights = rasterizer.contributions(
        splats, camera, pixels, min_weight=settings.min_weight, heaviest=settings.heaviest
    )
    ends = np.cumsum([len(part.pixels) for part in parts])
    for part, end in zip(parts, ends):
        of_part, gaussians = weights.select(torch.arange(end - len(part.pixels), end)).compact()
        yield Batch(view, gaussians, of_part, torch.from_numpy(part.masks), torch.from_numpy(part.mask_ids))


def _make_device_batches(
    view: int, camera: Camera, parts: Sequence[Part], splats: Splats, rasterizer: Rasterizer, settings: LiftSettings
) -> Iterator[DeviceBatch]:
    """Do as `_make_batches` without W leaving its device; what is drawn goes there in one piece."""
    drawn = np.stack([np.concatenate(some) for some in zip(*((part.pixels, part.masks) for part in parts))])
    pixels, masks = torch.from_numpy(drawn).to(device_of(rasterizer))
    weights = rasterizer.contributions(
        splats, camera, pixels, min_weight=settings.min_weight, heaviest=settings.heaviest
    )
    return split_on_device(view, weights, masks, [part.mask_ids for part in parts], [len(p.pixels) for p in parts])


def to_arrays(batch: Batch) -> list[np.ndarray]:
    """What a batch is made of, its matrix by pixel and by Gaussian."""
    weights = batch.weights
    tensors = (batch.gaussians, batch.masks, batch.mask_ids, weights.pixels)
    return [*(t.cpu().numpy() for t in tensors), *weights.by_pixel, *weights.by_gaussian]


def from_arrays(view: int, camera: Camera, arrays: Sequence[np.ndarray]) -> Batch:
    """Make a batch of its `to_arrays`."""
    width, height = camera.width, camera.height
    gaussians, masks, mask_ids, pixels, indptr, ids, values = (torch.from_numpy(a) for a in arrays[:7])
    transposed = Csr(*arrays[7:])
    weights = Contributions(indptr, ids, values, pixels, width, height, len(gaussians), transposed=transposed)
    return Batch(view, gaussians, weights, masks, mask_ids)


def visible_mass(batches: Sequence[Batch | Elsewhere], n_gaussians: int) -> Tensor:
    """Return how much of the sampled pixels each Gaussian is: the column sums of W, [N], on the batches' device."""
    device = next((batch.home for batch in held(batches) if isinstance(batch, DeviceBatch)), torch.device("cpu"))

    def add(total: Tensor) -> None:
        mass = total.to(device)
        for batch in held(batches):
            if isinstance(batch, DeviceBatch):
                own = batch.at_home()
                mass.index_add_(0, own.gaussians.long(), own.by_gaussian.times(mass.new_ones(len(own.masks), 1))[:, 0])
            else:
                ids = batch.gaussians[batch.weights.ids.long()].long()
                mass.index_add_(0, ids, batch.weights.weights)
        total.copy_(mass)

    return parallel.add_in_turn(torch.zeros(n_gaussians), add).to(device)
