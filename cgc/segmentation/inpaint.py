"""Completing a picture where nothing of it is known, out of what is known of it.

The hole is filled from its border inwards: the pixel with most known around it takes the patch from elsewhere that is
most like what is known there (Criminisi, Perez and Toyama 2004, Region Filling by Exemplar-Based Inpainting). Then each
pixel becomes the mean of what the patches over it find to be most like them (Wexler, Shechtman and Irani 2007,
Space-Time Completion of Video), which takes the seams away. Patches are taken for their pattern: most of a difference
in their mean colour does not count, and is added to what is taken, so that light and shade go on through the hole.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

RADIUS = 4
"""Patches are 2 RADIUS + 1 pixels a side."""
ROUNDS = 2
FEW = 0.2
"""Of the hole's pixels: so many patches at least make a pattern."""
TONE = 0.8
"""The share of a difference in mean colour that does not count."""
MAX_SOURCES = 6000
"""Patches that are looked through at most, evenly of all."""


Limits = tuple[np.ndarray, np.ndarray]
"""The least and the largest of what is known, a channel each [C]: nothing else is made."""


def complete(image: np.ndarray, known: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Return `image` [H, W, C] with the pixels `hole` [H, W] made up of those `known` [H, W].

    Pixels that are neither are of no say and stay as they are. Where hardly any patches are known for what there is to
    fill (FEW), there is no pattern to go by, and the hole is filled smoothly.
    """
    hole = hole & ~known
    if not hole.any() or not known.any():
        return image.copy()
    made = np.where(hole[..., None], smooth_fill(image, known), image).astype(float)
    side = 2 * RADIUS + 1
    whole = _at_corners(ndimage.minimum_filter(known, side, mode="constant")) if min(known.shape) >= side else None
    if whole is None or whole.sum() < FEW * hole.sum():
        return made
    corners = np.argwhere(whole)
    corners = corners[:: -(-len(corners) // MAX_SOURCES)]
    sources = _patches(made)[corners[:, 0], corners[:, 1]]  # [S, C, side, side]
    limits = made[known].min(axis=0), made[known].max(axis=0)
    _grow(made, known, hole, sources, limits)
    _settle(made, known | hole, hole, sources, limits)
    return made


def smooth_fill(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill [H, W, C] where not `known` [H, W] with means of what is known around, the wider the farther that is."""
    made, weight, sigma = np.zeros(image.shape), np.zeros(known.shape), 1.0
    given = np.where(known[..., None], image, 0.0)
    while (weight < 1e-3).any() and sigma < 4 * max(known.shape):
        share = ndimage.gaussian_filter(known.astype(float), sigma, mode="constant")
        mean = ndimage.gaussian_filter(given, (sigma, sigma, 0), mode="constant") / np.maximum(share, 1e-9)[..., None]
        more = np.where(share > 0.05, share * (1 - weight), 0.0)
        made, weight = made + more[..., None] * mean, weight + more
        sigma *= 1.5
    far = image[known].mean(0) if known.any() else np.zeros(image.shape[2])
    made = np.where((weight < 1e-3)[..., None], far, made / np.maximum(weight, 1e-3)[..., None])
    return np.where(known[..., None], image, made)


def _grow(made: np.ndarray, known: np.ndarray, hole: np.ndarray, sources: np.ndarray, limits: Limits) -> None:
    """Fill the hole of `made` in place, patch by patch, where most is known first."""
    trust, missing, smooth = known.astype(float), hole.copy(), made.copy()
    side, spread = 2 * RADIUS + 1, made[known].std(axis=0)
    flat = sources.reshape(len(sources), sources.shape[1], -1)  # [S, C, side^2]
    squares = (flat**2).sum(1)  # [S, side^2]
    high, wide = known.shape
    while missing.any():
        border = missing & ndimage.binary_dilation(~missing & (trust > 0))
        if not border.any():
            return
        mean = ndimage.uniform_filter(trust, side, mode="constant")
        y, x = np.unravel_index(np.where(border, mean, -1).argmax(), known.shape)
        top, left = np.clip(y - RADIUS, 0, high - side), np.clip(x - RADIUS, 0, wide - side)
        window = np.s_[top : top + side, left : left + side]
        there = ((trust[window] > 0) & ~missing[window]).ravel().astype(float)
        wanted = np.moveaxis(made[window], 2, 0).reshape(flat.shape[1], -1) * there
        off = (wanted.sum(1) - flat @ there) / there.sum()  # [S, C]
        cost = squares @ there - 2 * np.tensordot(flat, wanted, ([1, 2], [0, 1]))
        best = (cost - TONE * there.sum() * (off**2).sum(1)).argmin()
        patch, level, fresh = np.moveaxis(sources[best], 0, 2), smooth[window].mean((0, 1)), missing[window].copy()
        tone = (patch.mean((0, 1)) + off[best]).clip(level - spread, level + spread)  # it adds up from patch to patch
        made[window][fresh] = (patch - patch.mean((0, 1)) + tone)[fresh].clip(*limits)
        trust[window][fresh] = mean[y, x]
        missing[window][fresh] = False


def _settle(made: np.ndarray, usable: np.ndarray, hole: np.ndarray, sources: np.ndarray, limits: Limits) -> None:
    """Make the hole of `made`, in place, the mean of the sources that its patches are most like."""
    side = 2 * RADIUS + 1
    over = np.asarray(ndimage.minimum_filter(usable, side, mode="constant"), bool)
    over &= np.asarray(ndimage.maximum_filter(hole, side), bool)
    y, x = np.nonzero(_at_corners(over))
    level = sources.mean((2, 3), keepdims=True)
    given = (sources - TONE * level).reshape(len(sources), -1).astype(np.float32)
    length = (given**2).sum(1)
    for _ in range(ROUNDS if len(y) else 0):
        wanted = _patches(made)[y, x]
        tone = wanted.mean((2, 3), keepdims=True)
        plain = (wanted - TONE * tone).reshape(len(y), -1).astype(np.float32)
        index = (length - 2 * plain @ given.T).argmin(1)
        best = (sources[index] - level[index] + tone).clip(*(limit[:, None, None] for limit in limits))
        total, count = np.zeros(made.shape), np.zeros(hole.shape)
        for dy in range(side):
            for dx in range(side):
                total[y + dy, x + dx] += best[:, :, dy, dx]  # no pixel twice within a step
                count[y + dy, x + dx] += 1
        changed = hole & (count > 0)
        made[changed] = total[changed] / count[changed][:, None]


def _patches(image: np.ndarray) -> np.ndarray:
    """Return all patches of a picture [H, W, C] by their corners, a view [h, w, C, side, side]."""
    return np.lib.stride_tricks.sliding_window_view(image, (2 * RADIUS + 1,) * 2, (0, 1))


def _at_corners(centred: np.ndarray) -> np.ndarray:
    """Return what is said of patches by their middles by their corners instead, [H - 2 RADIUS, W - 2 RADIUS]."""
    return centred[RADIUS : len(centred) - RADIUS, RADIUS : centred.shape[1] - RADIUS]
