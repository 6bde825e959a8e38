"""Segment a photo without any trained weights: small patches, merged where neither border nor colours tell them apart.

Notation: C channels are soft steps of the distributions of lightness, of two colour axes and of texture ("is the value
under t?"), so that the mean over a patch is a distribution function and the L1 distance of two of them is the earth
mover's distance, in the units of Lab. A border's strength is that distance between both sides, at several sizes.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportArgumentType=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cgc.errors import InputError
from cgc.kernels import kernel
from cgc.masks.id_maps import resize_nearest

_LIGHT_STEPS, _COLOUR_STEPS, _TEXTURE_STEPS = 10, 10, 5


@dataclass(frozen=True)
class RegionMerging:
    """Make nested id maps of a photo by merging patches; lengths and areas are shares of the photo's."""

    max_side: int = 800
    """Work on a copy whose longer side has at most so many pixels; borders are brought back to the nearest pixel."""
    levels: tuple[float, ...] = (20.0, 13.0, 8.0)
    """How different regions must be to stay apart, coarse to fine: an id map each."""
    min_area: tuple[float, ...] = (2e-3, 5e-4, 1e-4)
    """Regions of a smaller share of the photo join the neighbour they differ from least: a share for each level."""
    lightness: float = 0.6
    """Weight of lightness beside colour: under 1, since shadows change lightness alone."""
    texture: float = 6.0
    """Weight of texture beside colour."""
    scales: tuple[float, ...] = (0.004, 0.009, 0.018)
    """Distances between the two sides that are compared to find borders, as shares of the longer side."""
    weights: tuple[float, ...] = (0.3, 0.3, 0.4)
    suppression: float = 0.5
    surround: float = 0.03
    border: float = 0.5
    """Weight of the border between two regions beside that of their contents, 0 to 1."""
    favour_small: float = 0.15
    reference: float = 0.02

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        check_image(image)
        small = shrink(image, self.max_side)
        patches, strength, channels = self.patches(small)
        return self.finish(image, patches, strength, channels)

    def finish(self, image, patches, strength, channels):
        maps = self.merge(patches, strength, channels)
        h, w = image.shape[:2]
        return [m if m.shape == (h, w) else resize_nearest(m, w, h) for m in maps]

    def patches(self, image: np.ndarray):
        side = max(image.shape[:2])
        planes, weights = distribution_planes(image, self.lightness, self.texture)
        scaled = planes * weights[:, None, None]
        total = np.zeros(image.shape[:2], np.float32)
        for k, (scale, weight) in enumerate(zip(self.scales, self.weights)):
            c, factor = contrast(scaled, max(scale * side, 1.0))
            if factor > 1:
                c = ndimage.zoom(np.pad(c, ((0, 1), (0, 1)), mode="edge"), factor, order=1, grid_mode=True, mode="nearest")[: total.shape[0], : total.shape[1]]
            total += np.float32(weight) * c
        around = ndimage.gaussian_filter(total, max(1.0, self.surround * side), mode="nearest")
        strength = total / (1 + np.float32(self.suppression) * around / 10)
        fine = ndimage.gaussian_gradient_magnitude  # noqa
        from skimage.segmentation import watershed

        patches = watershed(strength).astype(np.int32)
        return patches, strength, scaled

    def merge(self, patches, strength, channels):
        n = int(patches.max())
        flat = patches.ravel() - 1
        area = np.bincount(flat, minlength=n).astype(np.float32)
        sums = np.stack([np.bincount(flat, c.ravel(), n) for c in channels], 1).astype(np.float32)
        ends, length, total = shared_borders(patches - 1, strength)
        parents = merge_regions(
            area, sums, ends, length, total,
            np.array(self.levels[::-1], np.float32),
            np.array(self.min_area[::-1], np.float32) * patches.size,
            np.float32(self.border), np.float32(self.favour_small), np.float32(self.reference * patches.size),
        )  # [levels, n], fine to coarse
        return [number(owner[patches - 1]) for owner in parents[::-1]]


def number(ids):
    _, inverse = np.unique(ids, return_inverse=True)
    return (inverse.reshape(ids.shape) + 1).astype(np.int32)


def check_image(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise InputError(
            f"expected an image [H, W, 3] of uint8, got {list(image.shape)} of {image.dtype}; read it as RGB, 8 bits"
        )


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    from PIL import Image

    h, w = image.shape[:2]
    if max(h, w) <= max_side:
        return image
    scale = max_side / max(h, w)
    size = max(1, round(w * scale)), max(1, round(h * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def distribution_planes(image, lightness, texture):
    from skimage.color import rgb2lab

    lab = rgb2lab(image).astype(np.float32)
    lab = np.stack([ndimage.gaussian_filter(lab[..., c], 0.7, mode="nearest") for c in range(3)])
    planes, weights = [], []
    def add(x, edges, weight):
        step = edges[1] - edges[0]
        for t in edges:
            planes.append(np.clip((t - x) / step + 0.5, 0, 1))
            weights.append(weight * step)
    add(lab[0], np.linspace(5, 95, _LIGHT_STEPS, dtype=np.float32), lightness)
    for c in (1, 2):
        add(lab[c], np.linspace(-45, 45, _COLOUR_STEPS, dtype=np.float32), 1.0)
    if texture > 0:
        energy = np.sqrt(sum(ndimage.gaussian_gradient_magnitude(x, 1.0, mode="nearest") ** 2 for x in lab))
        add(np.log2(1 + energy), np.linspace(0.5, 4.5, _TEXTURE_STEPS, dtype=np.float32), texture)
    return np.stack(planes).astype(np.float32), np.array(weights, np.float32)


_DIRECTIONS = 8

def contrast(planes, distance):
    """L1 distance of the distributions on both sides, the largest of 8 directions."""
    factor = int(max(1, distance // 3))
    if factor > 1:
        planes = np.stack([_pool(p, factor) for p in planes])
    d = distance / factor
    blurred = np.stack([ndimage.gaussian_filter(p, 0.6 * d, mode="nearest", truncate=2.5) for p in planes], -1)
    angles = np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS
    offsets = np.stack([np.sin(angles), np.cos(angles)], 1) * d
    out = side_differences(np.ascontiguousarray(blurred), offsets.astype(np.float32))
    return out, factor
    

def _pool(p, factor):
    h, w = p.shape
    ph, pw = -h % factor, -w % factor
    p = np.pad(p, ((0, ph), (0, pw)), mode="edge")
    return p.reshape(p.shape[0] // factor, factor, -1, factor).mean((1, 3))


@kernel(fastmath=True)
def side_differences(blurred, offsets):
    h, w, channels = blurred.shape
    out = np.zeros((h, w), np.float32)
    for y in range(h):
        for x in range(w):
            most = np.float32(0)
            for k in range(offsets.shape[0]):
                dy, dx = offsets[k, 0], offsets[k, 1]
                y0 = min(max(int(np.rint(y - dy)), 0), h - 1)
                x0 = min(max(int(np.rint(x - dx)), 0), w - 1)
                y1 = min(max(int(np.rint(y + dy)), 0), h - 1)
                x1 = min(max(int(np.rint(x + dx)), 0), w - 1)
                total = np.float32(0)
                for c in range(channels):
                    total += abs(blurred[y0, x0, c] - blurred[y1, x1, c])
                most = max(most, total)
            out[y, x] = most
    return out


def shared_borders(patches, strength):
    n = int(patches.max()) + 1
    keys, values = [], []
    for a, b, s, t in (
        (patches[:, :-1], patches[:, 1:], strength[:, :-1], strength[:, 1:]),
        (patches[:-1], patches[1:], strength[:-1], strength[1:]),
    ):
        differ = a != b
        low, high = np.minimum(a, b)[differ].astype(np.int64), np.maximum(a, b)[differ]
        keys.append(low * n + high)
        values.append(np.maximum(s, t)[differ])
    pairs, inverse, counts = np.unique(np.concatenate(keys), return_inverse=True, return_counts=True)
    total = np.bincount(inverse, np.concatenate(values), len(pairs))
    return np.stack([pairs // n, pairs % n], 1), counts.astype(np.float32), total.astype(np.float32)


@kernel
def _cost(e, u, v, length, total, area, sums, border, favour_small, reference):
    a, b = u[e], v[e]
    apart = np.float32(0)
    for c in range(sums.shape[1]):
        apart += abs(sums[a, c] / area[a] - sums[b, c] / area[b])
    strength = total[e] / length[e]
    size = min(min(area[a], area[b]) / reference, np.float32(1)) ** favour_small
    return (border * strength + (1 - border) * apart) * size


@kernel
def merge_regions(area, sums, ends, length, total, levels, min_area, border, favour_small, reference):
    """Greedy merging; returns the owner of every patch at every level, fine to coarse [levels, n]."""
    n, m = area.shape[0], ends.shape[0]
    u, v = ends[:, 0].copy(), ends[:, 1].copy()
    first, following = np.full(n, -1, np.int64), np.full(2 * m, -1, np.int64)
    last = np.full(n, -1, np.int64)
    alive, version = np.ones(m, np.bool_), np.zeros(m, np.int64)
    owner = np.arange(n)
    mark = np.full(n, -1, np.int64)
    heap = [(np.float32(0), 0, 0) for _ in range(0)]
    for e in range(m):
        for k in range(2):
            node, half = ends[e, k], 2 * e + k
            if first[node] < 0:
                first[node] = half
            else:
                following[last[node]] = half
            last[node] = half
        heap.append((_cost(e, u, v, length, total, area, sums, border, favour_small, reference), e, 0))
    heapq.heapify(heap)
    result = np.empty((levels.shape[0], n), np.int64)
    for level in range(levels.shape[0]):
        held = [(np.float32(0), 0, 0) for _ in range(0)]
        while len(heap):
            cost, e, age = heapq.heappop(heap)
            if not alive[e] or version[e] != age:
                continue
            small = min(area[u[e]], area[v[e]]) < min_area[level]
            if cost > levels[level] and not small:
                held.append((cost, e, age))
                continue
            a, b = u[e], v[e]
            if area[a] < area[b]:
                a, b = b, a
            owner[b] = a
            alive[e] = False
            area[a] += area[b]
            sums[a] += sums[b]
            half = first[a]
            while half >= 0:
                f = half // 2
                if alive[f]:
                    mark[v[f] if u[f] == a else u[f]] = f
                half = following[half]
            half = first[b]
            while half >= 0:
                f = half // 2
                if alive[f]:
                    c = v[f] if u[f] == b else u[f]
                    g = mark[c]
                    if g >= 0:
                        length[g] += length[f]
                        total[g] += total[f]
                        alive[f] = False
                    elif u[f] == b:
                        u[f] = a
                    else:
                        v[f] = a
                half = following[half]
            following[last[a]] = first[b]
            last[a] = last[b]
            # relink what is alive, forget marks, renew costs
            half, previous = first[a], -1
            first[a] = -1
            while half >= 0:
                f = half // 2
                then = following[half]
                if alive[f]:
                    if previous < 0:
                        first[a] = half
                    else:
                        following[previous] = half
                    previous = half
                    mark[v[f] if u[f] == a else u[f]] = -1
                    version[f] += 1
                    heapq.heappush(
                        heap,
                        (_cost(f, u, v, length, total, area, sums, border, favour_small, reference), f, version[f]),
                    )
                half = then
            if previous >= 0:
                following[previous] = -1
            last[a] = previous
        for k in range(len(held)):
            heap.append(held[k])
        heapq.heapify(heap)
        for i in range(n):
            top = i
            while owner[top] != top:
                top = owner[top]
            result[level, i] = top
    return result


PRESETS = {"default": RegionMerging()}
