"""Segment a photo without trained weights: patches are merged where neither border nor contents tell them apart."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from cgc.masks.contrast import border_strength, distribution_planes
from cgc.masks.id_maps import resize_nearest
from cgc.masks.merging import MergeRules, merge_levels
from cgc.masks.regions import RegionMerging
from cgc.masks.relief import Relief, weigh_borders

_QUANTUM = 0.05  # of strength: what is flatter is flat


def merge_regions(image: np.ndarray, settings: RegionMerging, depth: np.ndarray | None = None) -> list[np.ndarray]:
    """Return nested id maps [H, W] int32 of an image [H, W, 3] uint8, coarse to fine; see `RegionMerging`.

    depth [H, W] (0: unknown), in any unit, says where things end too (see `Relief`).
    """
    height, width = image.shape[:2]
    small = _shrink(image, settings.max_side)
    side, pixels = max(small.shape[:2]), small.shape[0] * small.shape[1]
    planes = distribution_planes(small, settings.lightness, settings.texture)
    strength = border_strength(planes, [d * side for d in settings.distances], settings.distance_weights)
    strength *= strength / (strength + np.float32(settings.faint + 1e-6))
    steps = None
    if depth is not None:
        relief = Relief()
        strength, steps = weigh_borders(strength, _shrink_depth(depth, small.shape[:2]), relief)
        steps *= np.float32(relief.apart)
    patches = _patches(strength)
    rules = MergeRules(
        settings.border, settings.enclosed, settings.unrest, settings.small * pixels, settings.favour_small
    )
    areas = [share * pixels for share in reversed(settings.min_area)]
    owners = merge_levels(patches, strength, planes, settings.levels[::-1], areas, rules, steps)
    maps = [_number(owner)[patches] for owner in owners[::-1]]
    return maps if small is image else [resize_nearest(ids, width, height) for ids in maps]


def _shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    side = max(image.shape[:2])
    if side <= max_side:
        return image
    height, width = (max(1, round(length * max_side / side)) for length in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _shrink_depth(depth: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Take the nearest pixel's depth: means of two surfaces would lie on neither."""
    rows, columns = ((2 * np.arange(n) + 1) * old // (2 * n) for n, old in zip(shape, depth.shape))
    return depth[np.ix_(rows, columns)]


def _patches(strength: np.ndarray) -> np.ndarray:
    """Cut a map of strengths along its ridges, [H, W] int32 from 0: the watersheds of its minima."""
    from skimage.measure import label
    from skimage.segmentation import watershed

    height = np.rint(strength / _QUANTUM).astype(np.int32)
    lowest = height == ndimage.minimum_filter(height, 3, mode="nearest")
    markers = label(lowest, connectivity=1)
    return watershed(height, markers).astype(np.int32) - 1


def _number(owner: np.ndarray) -> np.ndarray:
    """Return the ids 1, 2, ... in the order of the owners."""
    return (np.unique(owner, return_inverse=True)[1] + 1).astype(np.int32)
