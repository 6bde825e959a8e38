"""The contrastive loss and its gradient by hand: `losses.contrastive_loss`, which defines it, without autograd.

Notation: P pixels, M masks, S channels (a multiple of 8: a feature is filled up with zeros), n_m pixels of mask m;
u = f / |f| a unit feature, c_m the mean of u over mask m, t_m its temperature, k_m = c_m / t_m a key. With r_m what a
pixel of mask m counts and p = softmax_q(u . k_q), the gradient g_q = r (p_q - [q = m]) of the logits gives

    dL/du = sum_q g_q k_q + (1 / (n_m t_m)) sum_x g_xm u_x,    dL/df = (dL/du - (dL/du . u) u) / |f|,

where the second term is the way through the centroid of the pixel's own mask. The kernels work on blocks of pixels,
each with sums of its own that are added up in the order of the blocks: the same bits for any number of threads.
Inside a block eight pixels at a time are one value of eight lanes, four masks or channels at a time: the arrays by mask
have room for a multiple of four, and what lies past M is never read into a sum.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportArgumentType=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numba import float32 as f

from cgc.kernels import kernel, spread
from cgc.rasterize.lanes import (
    broadcast,
    divide,
    exp2,
    fma,
    load,
    splat,
    store,
    total,
    transpose_block,
)

BLOCK = 256  # pixels; a multiple of 8
EPSILON = 1e-12  # a feature is divided by its length, or by this where it is shorter
LOG2E = 1.4426950408889634
LONG = 1 << 18  # floats: waking a thread takes as long as going through some hundred thousand of them
SHIFT = 16.0  # |u . k| <= 10: the exponents log2(e) u . k - SHIFT are negative, and none is small


def spread_if_long(floats: int, work: Any, *arguments: Any) -> None:
    """Spread a kernel that goes through so many floats over the cores where that pays; the bits are the same."""
    if floats < LONG:
        work(0, 1, *arguments)
    else:
        spread(work, *arguments)


@kernel
def _make_units(worker, workers, features, masks, stride, n_masks, units, lengths, sums):
    """units = features / lengths, and their sums over each mask, [blocks * M * S]."""
    size = n_masks * stride
    for block in range(worker, sums.shape[0] // size, workers):
        sums[block * size : (block + 1) * size] = f(0.0)
        for x in range(block * BLOCK, min((block + 1) * BLOCK, masks.shape[0])):
            square = splat(f(0.0))
            for c in range(x * stride, (x + 1) * stride, 8):
                square = fma(load(features, c), load(features, c), square)
            lengths[x] = max(np.sqrt(total(square)), f(EPSILON))
            scale, to = splat(f(1.0) / lengths[x]), block * size + masks[x] * stride
            for c in range(0, stride, 8):
                unit = load(features, x * stride + c) * scale
                store(units, x * stride + c, unit)
                store(sums, to + c, load(sums, to + c) + unit)


@kernel
def _measure_spread(worker, workers, units, masks, stride, centroids, n_masks, spreads):
    """Sum the distances of units to the centroid of their mask, [blocks * M]."""
    for block in range(worker, spreads.shape[0] // n_masks, workers):
        spreads[block * n_masks : (block + 1) * n_masks] = f(0.0)
        for x in range(block * BLOCK, min((block + 1) * BLOCK, masks.shape[0])):
            square, of = splat(f(0.0)), masks[x] * stride
            for c in range(0, stride, 8):
                apart = load(units, x * stride + c) - load(centroids, of + c)
                square = fma(apart, apart, square)
            spreads[block * n_masks + masks[x]] += np.sqrt(total(square))


@kernel
def _attract(worker, workers, units, masks, stride, keys, powers, shares, n_masks, gradient, losses, pulls):
    """gradient = sum_q g_q k_q; pulls [blocks * M * S] the sums of g u for each key; losses [blocks]."""
    size = (n_masks + 3) // 4 * 4 * stride
    turned, slopes = np.empty(stride * 8, np.float32), np.empty((n_masks + 3) // 4 * 32, np.float32)
    counts = np.empty(8, np.float32)
    for block in range(worker, losses.shape[0], workers):
        pulls[block * size : (block + 1) * size] = f(0.0)
        loss = 0.0
        for x in range(block * BLOCK, min((block + 1) * BLOCK, masks.shape[0]), 8):
            own = masks[x : x + 8]
            counts[:] = f(0.0)  # lanes without a pixel count nothing
            for lane in range(own.shape[0]):
                counts[lane] = shares[own[lane]]
            for c in range(0, stride, 8):
                transpose_block(units, x * stride + c, stride, turned, c * 8, 8)
            loss += _slopes(turned, stride, powers, n_masks, own, counts, slopes)
            _follow(turned, stride, keys, n_masks, slopes)
            _pull(units, x, stride, slopes, n_masks, pulls, block * size)
            for c in range(0, stride, 8):
                transpose_block(turned, c * 8, 8, gradient, x * stride + c, stride)
        losses[block] = loss


@kernel
def _slopes(turned, stride, powers, n_masks, own, counts, slopes):
    """Write g_q of eight pixels, whose units are turned [S * 8], to slopes [M * 8]; return the sum of their losses."""
    for q in range(0, n_masks, 4):
        first = second = third = fourth = splat(f(-SHIFT))
        for c in range(stride):
            unit, at = load(turned, c * 8), q * stride + c
            first, second = fma(unit, broadcast(powers, at), first), fma(unit, broadcast(powers, at + stride), second)
            third = fma(unit, broadcast(powers, at + 2 * stride), third)
            fourth = fma(unit, broadcast(powers, at + 3 * stride), fourth)
        store(slopes, q * 8, exp2(first))
        store(slopes, q * 8 + 8, exp2(second))
        store(slopes, q * 8 + 16, exp2(third))
        store(slopes, q * 8 + 24, exp2(fourth))
    everything = splat(f(0.0))
    for q in range(n_masks):
        everything = everything + load(slopes, q * 8)
    scale = divide(load(counts, 0), everything)
    for q in range(n_masks):
        store(slopes, q * 8, load(slopes, q * 8) * scale)
    loss = 0.0
    for lane in range(own.shape[0]):
        at = own[lane] * 8 + lane
        loss -= counts[lane] * np.log(slopes[at] / counts[lane])
        slopes[at] -= counts[lane]
    return loss


@kernel
def _follow(turned, stride, keys, n_masks, slopes):
    """Write sum_q g_q k_q of eight pixels to turned [S * 8], four channels at a time."""
    for c in range(0, stride, 4):
        first = second = third = fourth = splat(f(0.0))
        for q in range(n_masks):
            slope, at = load(slopes, q * 8), q * stride + c
            first, second = fma(slope, broadcast(keys, at), first), fma(slope, broadcast(keys, at + 1), second)
            third, fourth = fma(slope, broadcast(keys, at + 2), third), fma(slope, broadcast(keys, at + 3), fourth)
        store(turned, c * 8, first)
        store(turned, c * 8 + 8, second)
        store(turned, c * 8 + 16, third)
        store(turned, c * 8 + 24, fourth)


@kernel
def _pull(units, x, stride, slopes, n_masks, pulls, to):
    """Add g u of eight pixels from x on to the pulls of each key."""
    for q in range(0, n_masks, 4):
        for c in range(0, stride, 8):
            at = to + q * stride + c
            first, second = load(pulls, at), load(pulls, at + stride)
            third, fourth = load(pulls, at + 2 * stride), load(pulls, at + 3 * stride)
            for lane in range(8):
                unit, of = load(units, (x + lane) * stride + c), q * 8 + lane
                first, second = fma(broadcast(slopes, of), unit, first), fma(broadcast(slopes, of + 8), unit, second)
                third = fma(broadcast(slopes, of + 16), unit, third)
                fourth = fma(broadcast(slopes, of + 24), unit, fourth)
            store(pulls, at, first)
            store(pulls, at + stride, second)
            store(pulls, at + 2 * stride, third)
            store(pulls, at + 3 * stride, fourth)


@kernel
def _project(worker, workers, units, lengths, masks, stride, centroid_gradient, gradient):
    """Add the way through the centroids and go from units to features, in place."""
    first, last = worker * masks.shape[0] // workers, (worker + 1) * masks.shape[0] // workers
    for x in range(first, last):
        along, of = splat(f(0.0)), masks[x] * stride
        for c in range(0, stride, 8):
            slope = load(gradient, x * stride + c) + load(centroid_gradient, of + c)
            store(gradient, x * stride + c, slope)
            along = fma(slope, load(units, x * stride + c), along)
        radial = total(along) if lengths[x] > f(EPSILON) else f(0.0)
        for c in range(x * stride, (x + 1) * stride, 8):
            slope = load(gradient, c) - splat(radial) * load(units, c)
            store(gradient, c, slope * splat(f(1.0) / lengths[x]))


class Contrast:
    """The loss of one view after another, with the buffers that it needs: 12 S B a pixel, 8 S B a block and mask."""

    def __init__(self, pixels: int, masks: int, stride: int) -> None:
        """Make room for views of up to `pixels` pixels and `masks` masks, features of `stride` channels."""
        assert stride % 8 == 0
        rows, blocks, room = -(-pixels // 8) * 8, -(-pixels // BLOCK), -(-masks // 4) * 4
        self.features = np.zeros((rows, stride), np.float32)
        """Where a view's features belong before `step`, one row a pixel."""
        self.gradient = np.zeros((rows, stride), np.float32)
        """Where their gradient lies after it."""
        self._units = np.zeros((rows, stride), np.float32)
        self._lengths = np.ones(rows, np.float32)
        self._sums = np.zeros(blocks * room * stride, np.float32)
        self._spreads = np.zeros(blocks * masks, np.float32)
        self._losses = np.zeros(blocks)

    def step(
        self, masks: np.ndarray, counts: np.ndarray, reduction: Literal["mean", "sum"] = "mean", weight: float = 1.0
    ) -> float:
        """Return weight times the loss of the features of masks [P], each in [0, M), and leave its gradient.

        counts [M] are the pixels of each mask, none of them 0.
        """
        n, stride, blocks = len(counts), self._units.shape[1], -(-len(masks) // BLOCK)
        room = -(-n // 4) * 4
        units, sums = self._units.reshape(-1), self._sums[: blocks * n * stride]
        pulls = self._sums[: blocks * room * stride]
        spreads, losses = self._spreads[: blocks * n], self._losses[:blocks]
        floats = len(masks) * stride
        spread_if_long(floats, _make_units, self.features.reshape(-1), masks, stride, n, units, self._lengths, sums)
        centroids = sums.reshape(blocks, n, stride).sum(0) / counts[:, None].astype(np.float32)  # [M, S]
        spread_if_long(floats, _measure_spread, units, masks, stride, centroids.reshape(-1), n, spreads)
        distances = spreads.reshape(blocks, n).sum(0)
        temperatures = (10 * distances / (counts * np.log(counts + 100))).clip(0.1, 1.0).astype(np.float32)
        keys = np.zeros((room, stride), np.float32)
        np.divide(centroids, temperatures[:, None], out=keys[:n])
        shares = np.full(n, weight / n) if reduction == "sum" else weight / n / counts
        gradient = self.gradient.reshape(-1)
        spread(
            _attract, units, masks, stride, keys.reshape(-1), keys.reshape(-1) * np.float32(LOG2E),
            shares.astype(np.float32), n, gradient, losses, pulls,
        )  # fmt: skip
        through = pulls.reshape(blocks, room, stride)[:, :n].sum(0) / (temperatures * counts)[:, None]
        around = through.astype(np.float32).reshape(-1)
        spread_if_long(floats, _project, units, self._lengths, masks, stride, around, gradient)
        return float(losses.sum())


def contrast(
    features: np.ndarray, masks: np.ndarray, n_masks: int, reduction: Literal["mean", "sum"] = "mean"
) -> tuple[float, np.ndarray]:
    """Return the loss of features [P, D] float32 and its gradient [P, D]; masks [P] int64, every one of M present."""
    pixels, channels = features.shape
    made = Contrast(pixels, n_masks, -(-channels // 8) * 8)
    made.features[:pixels, :channels] = features
    loss = made.step(masks, np.bincount(masks, minlength=n_masks), reduction)
    return loss, made.gradient[:pixels, :channels]
