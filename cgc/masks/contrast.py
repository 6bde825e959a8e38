"""How strongly a photo changes at every pixel, measured between distributions so that an even texture is no border.

C planes [C, H, W] hold soft steps of lightness, of two colour axes and of texture ("is the value under t?"), each
times the distance of two steps. The mean of a plane over a patch is a value of a distribution function, so that the L1
distance of two patches is the earth mover's distance of their distributions, in the units of Lab.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportArgumentType=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from cgc.kernels import kernel

_LIGHT, _COLOUR, _TEXTURE = np.linspace(5, 95, 10), np.linspace(-45, 45, 10), np.linspace(1.5, 5.5, 5)
_SMOOTHING = 0.7  # px, against the noise and the blocks of a JPEG
_DIRECTIONS = 8


def distribution_planes(image: np.ndarray, lightness: float, texture: float) -> np.ndarray:
    """Return the planes [C, H, W] float32 of an image [H, W, 3] uint8; the two weights are beside colour's, 1."""
    from skimage.color import rgb2lab

    channels = np.moveaxis(rgb2lab(image), 2, 0).astype(np.float32)  # [3, H, W]
    lab = np.stack([ndimage.gaussian_filter(x, _SMOOTHING, mode="nearest") for x in channels])
    slopes = np.stack([ndimage.gaussian_gradient_magnitude(x, 1.0, mode="nearest") for x in lab])
    energy = np.log2(1 + np.sqrt((slopes**2).sum(0)))
    of_light = _soft_steps(lab[0], _LIGHT, lightness)
    of_colour = [_soft_steps(x, _COLOUR, 1.0) for x in lab[1:]]
    return np.concatenate([of_light, *of_colour, _soft_steps(energy, _TEXTURE, texture)])


def _soft_steps(values: np.ndarray, thresholds: np.ndarray, weight: float) -> np.ndarray:
    """Return weight * step * [value < t], with ramps as wide as a step, for each threshold: [T, H, W]."""
    step = np.float32(thresholds[1] - thresholds[0])
    ramps = (thresholds.astype(np.float32)[:, None, None] - values) / step + np.float32(0.5)
    return np.clip(ramps, 0, 1) * (np.float32(weight) * step)


def border_strength(planes: np.ndarray, distances: Sequence[float], weights: Sequence[float]) -> np.ndarray:
    """Return [H, W] float32: the weighted mean, over distances in pixels, of the distance between both sides."""
    strength = np.zeros(planes.shape[1:], np.float32)
    for distance, weight in zip(distances, weights):
        strength += np.float32(weight / sum(weights)) * _both_sides(planes, max(distance, 1.0))
    return strength


def _both_sides(planes: np.ndarray, distance: float) -> np.ndarray:
    """Compare soft patches on both sides of every pixel, in the direction in which they differ most: [H, W]."""
    h, w = planes.shape[1:]
    factor = max(1, int(distance // 3))  # far patches are compared on a coarser grid
    distance /= factor
    patches = np.empty((-(-h // factor), -(-w // factor), len(planes)), np.float32)
    for c, plane in enumerate(planes):
        coarse = _shrink(plane, factor)
        patches[..., c] = ndimage.gaussian_filter(coarse, 0.6 * distance, mode="nearest", truncate=2.5)
    angles = np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS
    offsets = np.rint(np.stack([np.sin(angles), np.cos(angles)], 1) * distance).astype(np.int64)
    found = _largest_difference(patches, offsets)
    if factor == 1:
        return found
    found = found.repeat(factor, 0).repeat(factor, 1)[:h, :w]
    return ndimage.uniform_filter(found, 2 * factor - 1, mode="nearest")


def _shrink(plane: np.ndarray, factor: int) -> np.ndarray:
    """Return the means of cells of factor x factor pixels; the last ones are filled up with the last pixels."""
    if factor == 1:
        return plane
    h, w = plane.shape
    full = np.pad(plane, ((0, -h % factor), (0, -w % factor)), mode="edge")
    return full.reshape(full.shape[0] // factor, factor, full.shape[1] // factor, factor).mean((1, 3))


@kernel
def _largest_difference(patches, offsets):
    """Return max over offsets o of the L1 distance of patches [H, W, C] at p - o and p + o, [H, W]."""
    h, w, channels = patches.shape
    found = np.zeros((h, w), np.float32)
    for y in range(h):
        for x in range(w):
            most = np.float32(0)
            for k in range(offsets.shape[0]):
                dy, dx = offsets[k, 0], offsets[k, 1]
                y0, y1 = min(max(y - dy, 0), h - 1), min(max(y + dy, 0), h - 1)
                x0, x1 = min(max(x - dx, 0), w - 1), min(max(x + dx, 0), w - 1)
                apart = np.float32(0)
                for c in range(channels):
                    apart += abs(patches[y0, x0, c] - patches[y1, x1, c])
                most = max(most, apart)
            found[y, x] = most
    return found
