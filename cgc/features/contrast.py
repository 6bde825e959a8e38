"""The contrastive loss and its gradient by hand: `losses.contrastive_loss`, which defines it, without autograd.

Notation: P pixels, M masks, S channels (a multiple of 8: a feature is filled up with zeros), n_m pixels of mask m;
u = f / |f| a unit feature, c_m the mean of u over mask m, t_m its temperature, k_m = c_m / t_m a key. With r_m what a
pixel of mask m counts and p = softmax_q(u . k_q), the gradient g_q = r (p_q - [q = m]) of the logits gives

    dL/du = sum_q g_q k_q + (1 / (n_m t_m)) sum_x g_xm u_x,    dL/df = (dL/du - (dL/du . u) u) / |f|,

where the second term is the way through the centroid of the pixel's own mask. One thread does it all, in the order of
the pixels. Eight pixels are one value of eight lanes, and four masks or channels are taken at a time: arrays by pixel
have room for a multiple of eight, those by mask for a multiple of four, and what lies past P or M counts nothing.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportArgumentType=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

from typing import Literal

import numpy as np
from numba import float32 as f

from cgc.kernels import kernel
from cgc.rasterize.blend import clear
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

EPSILON = 1e-12  # a feature is divided by its length, or by this where it is shorter
LOG2E = 1.4426950408889634
SHIFT = 16.0  # |u . k| <= 10: the exponents log2(e) u . k - SHIFT are negative, and none is small


@kernel
def contrast_gradient(features, masks, counts, weight, summed, stride, units):
    """Replace features [P * S] by weight times the gradient of the loss; return weight times the loss.

    masks [P] in [0, M), counts [M] the pixels of each; `summed` over a mask's pixels rather than their mean. units
    [P * S] are overwritten. Arrays by pixel hold a multiple of eight pixels, all of them finite.
    """
    n_masks = counts.shape[0]
    lengths = np.empty(masks.shape[0], np.float32)
    centroids, pulls = np.zeros(n_masks * stride, np.float32), np.zeros((n_masks + 3) // 4 * 4 * stride, np.float32)
    shares, temperatures = np.empty(n_masks, np.float32), np.empty(n_masks, np.float32)
    for q in range(n_masks):
        shares[q] = weight / n_masks if summed else weight / n_masks / counts[q]
    _make_units(features, masks, counts, stride, units, lengths, centroids)
    _find_temperatures(units, masks, counts, stride, centroids, temperatures)
    loss = _attract(units, masks, stride, centroids, temperatures, shares, features, pulls)
    for q in range(n_masks):
        for c in range(q * stride, (q + 1) * stride):
            pulls[c] /= temperatures[q] * counts[q]
    _project(units, lengths, masks, stride, pulls, features)
    return loss


@kernel
def _make_units(features, masks, counts, stride, units, lengths, centroids):
    """units = features / lengths, and their mean over each mask; centroids [M * S] hold zeros on entry."""
    for x in range(masks.shape[0]):
        square = splat(f(0.0))
        for c in range(x * stride, (x + 1) * stride, 8):
            square = fma(load(features, c), load(features, c), square)
        lengths[x] = max(np.sqrt(total(square)), f(EPSILON))
        scale, to = splat(f(1.0) / lengths[x]), masks[x] * stride
        for c in range(0, stride, 8):
            unit = load(features, x * stride + c) * scale
            store(units, x * stride + c, unit)
            store(centroids, to + c, load(centroids, to + c) + unit)
    for q in range(counts.shape[0]):
        for c in range(q * stride, (q + 1) * stride):
            centroids[c] /= counts[q]


@kernel
def _find_temperatures(units, masks, counts, stride, centroids, temperatures):
    """The mean distance to the centroid of each mask, made less for large masks, within 0.1 to 1."""
    clear(temperatures, 0, temperatures.shape[0])
    for x in range(masks.shape[0]):
        square, of = splat(f(0.0)), masks[x] * stride
        for c in range(0, stride, 8):
            apart = load(units, x * stride + c) - load(centroids, of + c)
            square = fma(apart, apart, square)
        temperatures[masks[x]] += np.sqrt(total(square))
    for q in range(counts.shape[0]):
        temperature = 10.0 * temperatures[q] / (counts[q] * np.log(counts[q] + 100.0))
        temperatures[q] = min(max(temperature, 0.1), 1.0)


@kernel
def _attract(units, masks, stride, centroids, temperatures, shares, gradient, pulls):
    """gradient = sum_q g_q k_q; add the sums of g u for each key to pulls [M * S]; return the loss."""
    n_masks = shares.shape[0]
    keys, powers = np.zeros_like(pulls), np.zeros_like(pulls)
    for q in range(n_masks):
        for c in range(q * stride, (q + 1) * stride):
            keys[c] = centroids[c] / temperatures[q]
            powers[c] = keys[c] * f(LOG2E)
    turned, slopes = np.empty(stride * 8, np.float32), np.empty(pulls.shape[0] // stride * 8, np.float32)
    weights, loss = np.empty(8, np.float32), 0.0
    for x in range(0, masks.shape[0], 8):
        own = masks[x : x + 8]
        clear(weights, 0, 8)  # lanes without a pixel count nothing
        for lane in range(own.shape[0]):
            weights[lane] = shares[own[lane]]
        for c in range(0, stride, 8):
            transpose_block(units, x * stride + c, stride, turned, c * 8, 8)
        loss += _slopes(turned, stride, powers, n_masks, own, weights, slopes)
        _follow(turned, stride, keys, n_masks, slopes)
        _pull(units, x, stride, slopes, n_masks, pulls)
        for c in range(0, stride, 8):
            transpose_block(turned, c * 8, 8, gradient, x * stride + c, stride)
    return loss


@kernel
def _slopes(turned, stride, powers, n_masks, own, weights, slopes):
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
    scale = divide(load(weights, 0), everything)
    for q in range(n_masks):
        store(slopes, q * 8, load(slopes, q * 8) * scale)
    loss = 0.0
    for lane in range(own.shape[0]):
        at = own[lane] * 8 + lane
        loss -= weights[lane] * np.log(slopes[at] / weights[lane])
        slopes[at] -= weights[lane]
    return loss


@kernel
def _follow(turned, stride, keys, n_masks, slopes):
    """Write sum_q g_q k_q of eight pixels to turned [S * 8]."""
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
def _pull(units, x, stride, slopes, n_masks, pulls):
    """Add g u of eight pixels from x on to the pulls of each key."""
    for q in range(0, n_masks, 4):
        for c in range(0, stride, 8):
            at = q * stride + c
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
def _project(units, lengths, masks, stride, through, gradient):
    """Add the way through the centroids, through [M * S], and go from units to features, in place."""
    for x in range(masks.shape[0]):
        along, of = splat(f(0.0)), masks[x] * stride
        for c in range(0, stride, 8):
            slope = load(gradient, x * stride + c) + load(through, of + c)
            store(gradient, x * stride + c, slope)
            along = fma(slope, load(units, x * stride + c), along)
        radial = total(along) if lengths[x] > f(EPSILON) else f(0.0)
        for c in range(x * stride, (x + 1) * stride, 8):
            slope = load(gradient, c) - splat(radial) * load(units, c)
            store(gradient, c, slope * splat(f(1.0) / lengths[x]))


def contrast(
    features: np.ndarray, masks: np.ndarray, n_masks: int, reduction: Literal["mean", "sum"] = "mean"
) -> tuple[float, np.ndarray]:
    """Return the loss of features [P, D] and its gradient [P, D] float32; masks [P] int64, every one of M present."""
    pixels, channels = features.shape
    stride, room = -(-channels // 8) * 8, -(-pixels // 8) * 8
    filled, units = np.zeros((room, stride), np.float32), np.zeros((room, stride), np.float32)
    filled[:pixels, :channels] = features
    counts, summed = np.bincount(masks, minlength=n_masks), reduction == "sum"
    loss = contrast_gradient(filled.reshape(-1), masks, counts, 1.0, summed, stride, units.reshape(-1))
    return loss, filled[:pixels, :channels]
