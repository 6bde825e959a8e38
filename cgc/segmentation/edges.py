"""Borders of an id map drawn to the edges of its photo, at the photo's size.

A pixel p near a border takes the id that most of what is near and looks alike has, a joint bilateral vote:

    id(p) = argmax_i sum_q [id(q) = i] w(p, q),   w = exp(-|p - q|^2 / 2 NEAR^2 - |lab(p) - lab(q)|^2 / 2 ALIKE^2)

over q within REACH, lengths in pixels of the id map. Splats blur borders by about a pixel of the pictures that they
were learned from; a photo, which may be much larger, does not. Of a larger one every q stands for a pixel of the map.
Source of the weights: Tomasi and Manduchi, Bilateral Filtering for Gray and Color Images, 1998.
"""

# pyright: reportCallIssue=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

from typing import get_args

import numpy as np
from scipy import ndimage

from cgc.errors import InputError
from cgc.kernels import kernel, spread
from cgc.masks.id_maps import resize_nearest
from cgc.settings import Edges

REACH = 3
"""How far a pixel looks in each direction, and how far from a border pixels are asked, in pixels of the id map."""
NEAR = 1.5
"""Standard deviation of what counts as near, likewise."""
ALIKE = 8.0
"""Standard deviation of what counts as alike, in CIELAB."""
_PIXELS = 1 << 20  # whose colours are held at once


def check_edges(edges: str) -> None:
    """Raise InputError for what is none of `Edges`."""
    if edges not in get_args(Edges):
        raise InputError(f"there are no edges {edges!r}; choose from {', '.join(get_args(Edges))}")


def follow_edges(ids: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """Draw the borders of ids [H, W] to the edges of a photo [h, w, 3] uint8 of any size: ids [h, w] int32.

    Id 0 takes part like any other. Memory: 13 B for each of h x w, and 0.1 GB.
    """
    found, _ = _vote(ids, photo)
    return found


def share_of(mask: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """Return how much of a pixel is of a mask [H, W] by the same vote, [h, w] float32: 0 or 1 away from its border."""
    found, share = _vote(mask, photo)
    return np.where(found > 0, share, 1 - share)


def _vote(ids: np.ndarray, photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the winner's id, int32, and its share of the vote, float32, at the photo's pixels [h, w]."""
    from skimage.color import rgb2lab

    small, (height, width) = ids.astype(np.int32), photo.shape[:2]
    window = 2 * REACH + 1
    lowest, highest = (f(small, window, mode="nearest") for f in (ndimage.minimum_filter, ndimage.maximum_filter))
    asked = resize_nearest(lowest != highest, width, height)
    given = resize_nearest(small, width, height)
    found, share = given.copy(), np.ones((height, width), np.float32)
    scale = np.array([height / small.shape[0], width / small.shape[1]])
    step = np.maximum(np.rint(scale), 1).astype(np.int64)  # from one q to the next
    near = (1 / (2 * (NEAR * scale) ** 2)).astype(np.float32)
    band, beyond = max(_PIXELS // max(width, 1), 1), REACH * int(step[0])  # rows
    for top in range(0, height, band):
        rows, columns = np.nonzero(asked[top : top + band])
        if not len(rows):
            continue
        around = slice(max(top - beyond, 0), top + band + beyond)
        lab = rgb2lab(photo[around].astype(np.float32) / 255).astype(np.float32)
        rows += top - around.start
        spread(_elect, given[around], lab, rows, columns, step, near, found[around], share[around])
    return found, share


@kernel
def _elect(worker, workers, ids, lab, rows, columns, step, near, found, share):
    """Let the neighbours of pixels (rows, columns) of a band vote: the id with most goes to `found`, ties stay."""
    height, width = ids.shape
    names, sums = np.empty((2 * REACH + 1) ** 2, np.int32), np.empty((2 * REACH + 1) ** 2, np.float32)
    alike = np.float32(1 / (2 * ALIKE * ALIKE))
    for n in range(worker * len(rows) // workers, (worker + 1) * len(rows) // workers):
        y, x = rows[n], columns[n]
        names[0], sums[0], count, total = ids[y, x], np.float32(0), 1, np.float32(0)
        for i in range(-REACH, REACH + 1):
            v = y + i * step[0]
            if v < 0 or v >= height:
                continue
            for j in range(-REACH, REACH + 1):
                u = x + j * step[1]
                if u < 0 or u >= width:
                    continue
                apart = near[0] * (v - y) ** 2 + near[1] * (u - x) ** 2
                for c in range(3):
                    apart += alike * (lab[v, u, c] - lab[y, x, c]) ** 2
                weight = np.exp(-np.float32(apart))
                k = 0
                while k < count and names[k] != ids[v, u]:
                    k += 1
                if k == count:
                    names[k], sums[k], count = ids[v, u], np.float32(0), count + 1
                sums[k] += weight
                total += weight
        best = 0
        for k in range(1, count):
            if sums[k] > sums[best]:
                best = k
        found[y, x] = names[best]
        share[y, x] = sums[best] / total
