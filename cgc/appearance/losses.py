"""The photometric loss of 3D Gaussian Splatting, (1 - w) L1 + w (1 - SSIM), and its gradient.

Notation: x the prediction, y the photo, both [H, W, 3] in 0..1; G the 11 x 11 Gaussian window (sigma 1.5,
zero padding); per pixel and channel

    m = G x,  n = G y,  s = G (x^2 + y^2),  p = G (x y)
    SSIM = (2 m n + c1) (2 (p - m n) + c2) / ((m^2 + n^2 + c1) (s - m^2 - n^2 + c2))

SSIM needs the variances' sum only, so four windowed maps do. G is separable and symmetric: rows are windowed,
then columns; the gradient windows dSSIM/dm, dSSIM/ds and dSSIM/dp once more. Images in memory go through numba kernels,
those of a GPU through the same steps on tensors.
Source: Wang et al. 2004 (SSIM); Kerbl et al. 2023 (arXiv 2308.04079), whose constants these are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from cgc.kernels import kernel, spread

RADIUS = 5
CHANNELS = 3  # a constant: with a variable step between neighbours the compiler does not vectorise
PAD = RADIUS * CHANNELS
C1, C2 = 0.01**2, 0.03**2
FAST = {"contract", "reassoc", "nsz", "arcp"}  # vectorise, but let NaN through
_taps = np.exp(-0.5 * (np.arange(RADIUS + 1) / 1.5) ** 2)
TAPS = tuple(np.float32(t) for t in _taps / (_taps[0] + 2 * _taps[1:].sum()))  # centre first


@kernel(fastmath=FAST)
def _window_row(padded, out):
    """Window a row along itself: out [L] from padded [L + 2 PAD]."""
    step = CHANNELS
    t0, t1, t2, t3, t4, t5 = TAPS
    for j in range(out.shape[0]):
        out[j] = (
            t0 * padded[j + 5 * step]
            + t1 * (padded[j + 4 * step] + padded[j + 6 * step])
            + t2 * (padded[j + 3 * step] + padded[j + 7 * step])
            + t3 * (padded[j + 2 * step] + padded[j + 8 * step])
            + t4 * (padded[j + step] + padded[j + 9 * step])
            + t5 * (padded[j] + padded[j + 10 * step])
        )


@kernel(fastmath=FAST)
def _window_column(rows, top, out):
    """Window across rows: out [L] from rows [.., L], the 11 rows from `top` on."""
    t0, t1, t2, t3, t4, t5 = TAPS
    r0, r1, r2, r3, r4 = rows[top], rows[top + 1], rows[top + 2], rows[top + 3], rows[top + 4]
    r5, r6, r7, r8, r9, r10 = (
        rows[top + 5], rows[top + 6], rows[top + 7], rows[top + 8], rows[top + 9], rows[top + 10],
    )  # fmt: skip
    for j in range(out.shape[0]):
        out[j] = (
            t0 * r5[j]
            + t1 * (r4[j] + r6[j])
            + t2 * (r3[j] + r7[j])
            + t3 * (r2[j] + r8[j])
            + t4 * (r1[j] + r9[j])
            + t5 * (r0[j] + r10[j])
        )


@kernel(fastmath=FAST)
def _products(x, y, padded):
    """Fill padded [4, L + 2 PAD] with x, y, x^2 + y^2 and x y; the padding stays as it is."""
    for j in range(x.shape[0]):
        a, b = x[j], y[j]
        padded[0, PAD + j], padded[1, PAD + j] = a, b
        padded[2, PAD + j], padded[3, PAD + j] = a * a + b * b, a * b


@kernel(fastmath=FAST)
def _ssim_row(m, n, s, p, slopes):
    """Return a row's sum of SSIM; fill slopes [3, L + 2 PAD] with its derivatives by m, s and p."""
    c1, c2, one, two = np.float32(C1), np.float32(C2), np.float32(1.0), np.float32(2.0)
    total = 0.0
    for j in range(m.shape[0]):
        mn, mm = m[j] * n[j], m[j] * m[j] + n[j] * n[j]
        a1, a2 = two * mn + c1, two * (p[j] - mn) + c2
        b1, b2 = mm + c1, s[j] - mm + c2
        inverse = one / (b1 * b2)
        ssim = a1 * a2 * inverse
        total += ssim
        slopes[0, PAD + j] = two * (n[j] * (a2 - a1) + m[j] * ssim * (b1 - b2)) * inverse
        slopes[1, PAD + j] = -ssim * b1 * inverse
        slopes[2, PAD + j] = two * a1 * inverse
    return total


@kernel(fastmath=FAST)
def _gradient_row(x, y, vm, vs, vp, l1_scale, ssim_scale, out):
    """Return a row's sum of |x - y|; fill `out` with the gradient of the whole loss."""
    total = 0.0
    for j in range(x.shape[0]):
        difference = x[j] - y[j]
        total += abs(difference)
        sign = np.float32(np.sign(difference))
        out[j] = l1_scale * sign - ssim_scale * (vm[j] + np.float32(2.0) * x[j] * vs[j] + y[j] * vp[j])
    return total


@kernel
def _window_rows(worker, workers, x, y, maps):
    """Window x, y, x^2 + y^2 and x y along their rows."""
    height, length = x.shape
    padded = np.zeros((4, length + 2 * PAD), np.float32)
    for row in range(worker * height // workers, (worker + 1) * height // workers):
        _products(x[row], y[row], padded)
        for k in range(4):
            _window_row(padded[k], maps[k, row + RADIUS])


@kernel
def _ssim_slopes(worker, workers, maps, slope_maps, ssim_sums):
    """Window the maps across rows; sum SSIM and window its slopes along rows."""
    height, length = ssim_sums.shape[0], maps.shape[2]
    mnsp, slopes = np.empty((4, length), np.float32), np.zeros((3, length + 2 * PAD), np.float32)
    for row in range(worker * height // workers, (worker + 1) * height // workers):
        for k in range(4):
            _window_column(maps[k], row, mnsp[k])
        ssim_sums[row] = _ssim_row(mnsp[0], mnsp[1], mnsp[2], mnsp[3], slopes)
        for k in range(3):
            _window_row(slopes[k], slope_maps[k, row + RADIUS])


@kernel
def _gradients(worker, workers, x, y, slope_maps, l1_scale, ssim_scale, gradient, l1_sums):
    """Window the slopes across rows; sum |x - y| and fill the gradient."""
    height, length = x.shape
    v = np.empty((3, length), np.float32)
    for row in range(worker * height // workers, (worker + 1) * height // workers):
        for k in range(3):
            _window_column(slope_maps[k], row, v[k])
        l1_sums[row] = _gradient_row(x[row], y[row], v[0], v[1], v[2], l1_scale, ssim_scale, gradient[row])


def photometric_arrays(x: np.ndarray, y: np.ndarray, ssim_weight: float) -> tuple[float, float, np.ndarray]:
    """Return (L1, SSIM, gradient of the loss by x) of x, y [H, 3 W]; rows are summed in their order."""
    height, length = x.shape
    maps = np.empty((7, height + 2 * RADIUS, length), np.float32)
    maps[:, :RADIUS] = maps[:, height + RADIUS :] = 0.0
    ssim_sums, l1_sums, gradient = np.empty(height), np.empty(height), np.empty_like(x)
    spread(_window_rows, x, y, maps[:4])
    spread(_ssim_slopes, maps[:4], maps[4:], ssim_sums)
    count = height * length
    scales = np.float32((1.0 - ssim_weight) / count), np.float32(ssim_weight / count)
    spread(_gradients, x, y, maps[4:], *scales, gradient, l1_sums)
    return l1_sums.sum() / count, ssim_sums.sum() / count, gradient


@cache
def _taps_on(device: torch.device) -> Tensor:
    """Return the 11 taps on a device, sent there once."""
    return torch.tensor([*TAPS[:0:-1], *TAPS], dtype=torch.float32).to(device)


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Leave convolutions to torch's own kernels inside the block.

    Not by `torch.backends.cudnn.flags`, which also sets whether TF32 is allowed: torch 2.9 and later warn of that, and
    refuse it where somebody else has set it by the newer names.
    """
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def _window(maps: Tensor) -> Tensor:
    """Window maps [M, H, W, 3] along rows and columns, in whole float32: variances are small differences."""
    count, height, width, _ = maps.shape
    planes = maps.permute(0, 3, 1, 2).reshape(1, count * CHANNELS, height, width)
    with _without_cudnn():  # it may round to TF32
        for shape, padding in (((1, 2 * RADIUS + 1), (0, RADIUS)), ((2 * RADIUS + 1, 1), (RADIUS, 0))):
            kernels = _taps_on(maps.device).view(1, 1, *shape).expand(planes.shape[1], 1, *shape)
            planes = conv2d(planes, kernels, padding=padding, groups=planes.shape[1])
    return planes.view(count, CHANNELS, height, width).permute(0, 2, 3, 1)


def photometric_tensors(x: Tensor, y: Tensor, ssim_weight: float) -> tuple[Tensor, Tensor]:
    """Return the loss of x, y [H, W, 3] on any device, and its gradient by x; nothing is waited for."""
    m, n, s, p = _window(torch.stack([x, y, x * x + y * y, x * y]))
    mn, mm = m * n, m * m + n * n
    a1, a2, b1, b2 = 2 * mn + C1, 2 * (p - mn) + C2, mm + C1, s - mm + C2
    inverse = 1 / (b1 * b2)
    ssim = a1 * a2 * inverse
    slopes = [2 * (n * (a2 - a1) + m * ssim * (b1 - b2)) * inverse, -ssim * b1 * inverse, 2 * a1 * inverse]
    vm, vs, vp = _window(torch.stack(slopes))
    difference = x - y
    loss = (1.0 - ssim_weight) * difference.abs().mean() + ssim_weight * (1.0 - ssim.mean())
    gradient = (1.0 - ssim_weight) * difference.sign() - ssim_weight * (vm + 2 * x * vs + y * vp)
    return loss, gradient / x.numel()


class _Photometric(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, predicted: Tensor, photo: Tensor, ssim_weight: float) -> Tensor:
        if predicted.device.type != "cpu":
            loss, ctx.gradient = photometric_tensors(predicted.detach(), photo, ssim_weight)
            return loss
        height = predicted.shape[0]
        x, y = (t.detach().contiguous().view(height, -1).numpy() for t in (predicted, photo))
        l1, ssim, gradient = photometric_arrays(x, y, ssim_weight)
        ctx.gradient = torch.from_numpy(gradient).view_as(predicted)
        return predicted.new_tensor((1.0 - ssim_weight) * l1 + ssim_weight * (1.0 - ssim))

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.gradient * v, None, None


def photometric_loss(predicted: Tensor, photo: Tensor, ssim_weight: float = 0.2) -> Tensor:
    """Return (1 - w) L1 + w (1 - SSIM) of images [H, W, 3] float32, a scalar; differentiable in the first."""
    if predicted.shape != photo.shape or predicted.ndim != 3 or predicted.shape[2] != CHANNELS:
        shapes = f"{list(predicted.shape)} and {list(photo.shape)}"
        raise ValueError(f"two images [H, W, 3] of one shape expected, got {shapes}")
    return _Photometric.apply(predicted, photo, float(ssim_weight))  # pyright: ignore[reportReturnType]


def psnr(predicted: Tensor, photo: Tensor) -> float:
    """Return the peak signal-to-noise ratio of two images [H, W, 3] in 0..1, in dB; at most 120.

    In float32 where they are, for training to measure itself; what is said of a run is `evaluation.pictures.psnr`.
    """
    error = float(torch.mean((predicted.detach() - photo) ** 2))
    return -10.0 * math.log10(max(error, 1e-12))
