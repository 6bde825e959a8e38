"""What depth says of the borders between regions: where a surface breaks off, folds, bends away, and where it is flat.

On a plane 1 / depth is linear in the pixel, so that its second difference over an offset o,

    b(p) = (d(p + o) + d(p - o) - 2 d(p)) / max(d(p), m),   d = 1 / depth, m = the median of d

is 0 there, whatever the plane. It is positive where a thing stands on a table and behind what breaks off, and negative
on ridges: the edge of a box, the near side of what breaks off. b has no unit; past the median depth it is less, since
depths are less certain there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_DIRECTIONS = 8


@dataclass(frozen=True)
class Relief:
    """How much depth counts beside colours where regions are merged. Lengths are shares of the photo's longer side."""

    border: float = 10.0
    """What a fold, or the far side of a step, adds to a border's strength (about a distance in Lab)."""
    apart: float = 8.0
    """What a step adds to how far two regions differ, however like they are."""
    step: float = 0.06
    """The second difference b from which a fold is a step: nothing at a half of it, wholly at one and a half."""
    ridge: float = 1.0
    """How much less colours count on a ridge, 0 to 1: what is on both sides of a box's edge is one box."""
    flat: float = 0.7
    """How much less they count where the surface is flat, 0 to 1: print is no thing."""
    bend: float = 0.015
    """The second difference b that counts wholly, and less in proportion."""
    noise: float = 0.6
    """Where this share of the photo's median |b| is more than `bend`, it takes its place, and `step` rises alike."""
    distances: tuple[float, ...] = (0.005, 0.01)
    """How far apart 1 / depth is compared; the strongest counts."""
    smoothing: float = 0.0025
    """Standard deviation by which 1 / depth is smoothed, after a median as wide as the largest of the distances."""


def weigh_borders(strength: np.ndarray, depth: np.ndarray, relief: Relief) -> tuple[np.ndarray, np.ndarray]:
    """Return the strengths of borders by colours and depth, and how much of a step is there, 0 to 1: [H, W] float32.

    Near what has no depth (0) strengths are those of colours, `strength` [H, W], and there are no steps.
    """
    known = np.isfinite(depth) & (depth > 0)
    if not known.any():
        return strength, np.zeros_like(strength)
    folds, ridges = bends(depth, known, relief)
    rough = np.float32(max(1.0, relief.noise * float(np.median(np.maximum(folds, ridges)[known])) / relief.bend))
    folds, ridges = folds / rough, ridges / rough
    fold = np.clip(folds / np.float32(relief.bend), 0, 1)
    ridge = np.clip(ridges / np.float32(relief.bend), 0, 1) * (1 - fold)
    flat = (1 - fold) * (1 - ridge)
    colours = strength * (1 - np.float32(relief.ridge) * ridge - np.float32(relief.flat) * flat)
    reach = 2 * int(np.ceil(max(relief.distances) * max(depth.shape))) + 1
    sure = ndimage.minimum_filter(known, reach, mode="nearest")
    weighed = np.where(sure, colours + np.float32(relief.border) * fold, strength).astype(np.float32)
    steps = np.clip(folds / np.float32(relief.step) - np.float32(0.5), 0, 1)
    return weighed, np.where(sure, steps, 0).astype(np.float32)


def bends(depth: np.ndarray, known: np.ndarray, relief: Relief) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest b and the largest -b over directions and distances, at least 0, [H, W] float32 each.

    What is not `known` [H, W] takes the nearest pixel's depth.
    """
    side = max(depth.shape)
    nearest = np.asarray(ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True))
    d = 1 / depth.astype(np.float32)[tuple(nearest)]
    d = ndimage.median_filter(d, 2 * max(1, round(max(relief.distances) * side / 2)) + 1, mode="nearest")
    d = ndimage.gaussian_filter(d, relief.smoothing * side, mode="nearest")
    scale = np.maximum(d, np.median(d[known]))
    folds, ridges = np.zeros_like(d), np.zeros_like(d)
    for distance in relief.distances:
        for angle in np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS:
            length = max(1.0, distance * side)
            dy, dx = round(np.sin(angle) * length), round(np.cos(angle) * length)
            b = (_moved(d, dy, dx) + _moved(d, -dy, -dx) - 2 * d) / scale
            np.maximum(folds, b, out=folds)
            np.maximum(ridges, -b, out=ridges)
    return folds, ridges


def _moved(d: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Return d at p + (dy, dx); past the edge it goes on as a plane would."""
    h, w = d.shape
    y, x = min(abs(dy), h - 1), min(abs(dx), w - 1)
    wide = np.pad(d, ((y, y), (x, x)), mode="reflect", reflect_type="odd")
    dy, dx = int(np.clip(dy, -y, y)), int(np.clip(dx, -x, x))
    return wide[y + dy : y + dy + h, x + dx : x + dx + w]
