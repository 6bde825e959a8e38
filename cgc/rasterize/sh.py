"""Colours of Gaussians seen from a camera: spherical harmonics with their gradient, on the CPU in one pass.

Equal to `geometry.sh_to_rgb` (same basis, same clamp), several times faster; tensors elsewhere go there.
Notation: d the unit direction from the camera to a Gaussian, Y_k(d) the basis (DC first), colour =
max(0, 1/2 + sum_k Y_k(d) sh_k).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cgc.geometry import _C1, _C2, _C3, SH_C0, sh_basis
from cgc.kernels import kernel, spread

EXACT = {"contract", "nsz"}


@kernel(fastmath=EXACT)
def _rest_basis(x, y, z, terms, basis):
    """Fill basis[:terms] with Y_1.. (without the DC term) at the unit direction (x, y, z)."""
    if terms >= 3:
        basis[0], basis[1], basis[2] = -_C1 * y, _C1 * z, -_C1 * x
    if terms >= 8:
        xx, yy, zz = x * x, y * y, z * z
        basis[3], basis[4], basis[6] = _C2[0] * x * y, _C2[1] * y * z, _C2[3] * x * z
        basis[5], basis[7] = _C2[2] * (2 * zz - xx - yy), _C2[4] * (xx - yy)
        if terms >= 15:
            basis[8], basis[9] = _C3[0] * y * (3 * xx - yy), _C3[1] * x * y * z
            basis[10], basis[11] = _C3[2] * y * (4 * zz - xx - yy), _C3[3] * z * (2 * zz - 3 * xx - 3 * yy)
            basis[12], basis[13] = _C3[4] * x * (4 * zz - xx - yy), _C3[5] * z * (xx - yy)
            basis[14] = _C3[6] * x * (xx - 3 * yy)


@kernel(fastmath=EXACT)
def _direction_gradient(x, y, z, terms, w):
    """Return the gradient by (x, y, z) of sum_k w_k Y_k."""
    gx, gy, gz = -_C1 * w[2], -_C1 * w[0], _C1 * w[1]
    if terms >= 8:
        a, b, c, d, e = _C2[0] * w[3], _C2[1] * w[4], _C2[2] * w[5], _C2[3] * w[6], _C2[4] * w[7]
        gx += a * y - 2 * c * x + d * z + 2 * e * x
        gy += a * x + b * z - 2 * c * y - 2 * e * y
        gz += b * y + 4 * c * z + d * x
        if terms >= 15:
            xx, yy, zz = x * x, y * y, z * z
            a, b, c, d = _C3[0] * w[8], _C3[1] * w[9], _C3[2] * w[10], _C3[3] * w[11]
            e, f, g = _C3[4] * w[12], _C3[5] * w[13], _C3[6] * w[14]
            gx += 6 * a * x * y + b * y * z - 2 * c * x * y - 6 * d * x * z
            gx += e * (4 * zz - 3 * xx - yy) + 2 * f * x * z + 3 * g * (xx - yy)
            gy += 3 * a * (xx - yy) + b * x * z + c * (4 * zz - xx - 3 * yy) - 6 * d * y * z
            gy += -2 * e * x * y - 2 * f * y * z - 6 * g * x * y
            gz += b * x * y + 8 * c * y * z + d * (6 * zz - 3 * xx - 3 * yy) + 8 * e * x * z + f * (xx - yy)
    return gx, gy, gz


@kernel(fastmath=EXACT)
def _colors(worker, workers, means, position, dc, rest, terms, colors):
    """Fill colors [N, 3] from means [N, 3], dc [N, 3] and the first `terms` of rest [N, K - 1, 3]."""
    n = means.shape[0]
    c0, half, zero = np.float32(SH_C0), np.float32(0.5), np.float32(0.0)
    basis = np.empty(15, np.float32)
    for i in range(worker * n // workers, (worker + 1) * n // workers):
        r, g, b = half + c0 * dc[i, 0], half + c0 * dc[i, 1], half + c0 * dc[i, 2]
        if terms > 0:
            x, y, z = means[i, 0] - position[0], means[i, 1] - position[1], means[i, 2] - position[2]
            inverse = np.float32(1.0 / max(math.sqrt(x * x + y * y + z * z), 1e-12))
            _rest_basis(x * inverse, y * inverse, z * inverse, terms, basis)
            for k in range(terms):
                r += basis[k] * rest[i, k, 0]
                g += basis[k] * rest[i, k, 1]
                b += basis[k] * rest[i, k, 2]
        colors[i, 0], colors[i, 1], colors[i, 2] = max(r, zero), max(g, zero), max(b, zero)


@kernel(fastmath=EXACT)
def _colors_backward(worker, workers, means, position, rest, terms, colors, v_colors, v_means, v_dc, v_rest):
    """Turn the gradient by colors into those by means, dc and rest; all are written."""
    n = means.shape[0]
    basis, w = np.empty(15, np.float32), np.empty(15, np.float32)
    for i in range(worker * n // workers, (worker + 1) * n // workers):
        r = v_colors[i, 0] if colors[i, 0] > 0 else np.float32(0.0)
        g = v_colors[i, 1] if colors[i, 1] > 0 else np.float32(0.0)
        b = v_colors[i, 2] if colors[i, 2] > 0 else np.float32(0.0)
        v_dc[i, 0], v_dc[i, 1], v_dc[i, 2] = SH_C0 * r, SH_C0 * g, SH_C0 * b
        v_means[i, 0] = v_means[i, 1] = v_means[i, 2] = 0.0
        v_rest[i] = 0.0
        if terms == 0 or (r == 0 and g == 0 and b == 0):
            continue
        x, y, z = means[i, 0] - position[0], means[i, 1] - position[1], means[i, 2] - position[2]
        inverse = np.float32(1.0 / max(math.sqrt(x * x + y * y + z * z), 1e-12))
        x, y, z = x * inverse, y * inverse, z * inverse
        _rest_basis(x, y, z, terms, basis)
        for k in range(terms):
            v_rest[i, k, 0], v_rest[i, k, 1], v_rest[i, k, 2] = basis[k] * r, basis[k] * g, basis[k] * b
            w[k] = rest[i, k, 0] * r + rest[i, k, 1] * g + rest[i, k, 2] * b
        gx, gy, gz = _direction_gradient(x, y, z, terms, w)
        along = gx * x + gy * y + gz * z  # a direction of unit length moves sideways only
        v_means[i, 0], v_means[i, 1] = (gx - along * x) * inverse, (gy - along * y) * inverse
        v_means[i, 2] = (gz - along * z) * inverse


class _ViewColors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means, dc, rest, position, degree):
        arrays = [t.detach().to(torch.float32).contiguous().numpy() for t in (means, dc, rest)]
        place = position.detach().to(torch.float32).contiguous().numpy()
        colors = np.empty_like(arrays[1])
        terms = (degree + 1) ** 2 - 1
        spread(_colors, arrays[0], place, arrays[1], arrays[2], terms, colors)
        ctx.saved = (arrays[0], place, arrays[2], terms, colors)
        return torch.from_numpy(colors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_colors):
        means, position, rest, terms, colors = ctx.saved
        v = v_colors.contiguous().numpy()
        v_means, v_dc, v_rest = np.empty_like(means), np.empty_like(colors), np.empty_like(rest)
        spread(_colors_backward, means, position, rest, terms, colors, v, v_means, v_dc, v_rest)
        made = [torch.from_numpy(array) for array in (v_means, v_dc, v_rest)]
        if terms == 0:  # only the DC term mattered; Adam skips what has no gradient
            return None, made[1], None, None, None
        return *made, None, None


def colors_of_tensors(means: Tensor, dc: Tensor, rest: Tensor, camera_position: Tensor, degree: int) -> Tensor:
    """Return what `sh_colors` does, in steps of torch on any device."""
    colors = 0.5 + SH_C0 * dc
    if degree > 0:
        directions = torch.nn.functional.normalize(means - camera_position.detach().to(means), dim=-1)
        basis = sh_basis(directions, degree)[:, 1:]
        colors = colors + (basis[:, :, None] * rest[:, : basis.shape[1]]).sum(1)
    return colors.clamp_min(0.0)


def sh_colors(means: Tensor, dc: Tensor, rest: Tensor, camera_position: Tensor, degree: int) -> Tensor:
    """Return RGB [N, 3] of means [N, 3], dc [N, 3] and rest [N, K - 1, 3] seen from `camera_position` [3].

    Terms above `degree` are left out. Differentiable in means, dc and rest (not in the camera's position).
    """
    if (degree + 1) ** 2 - 1 > rest.shape[1]:
        needed = (degree + 1) ** 2 - 1
        raise ValueError(f"degree {degree} needs {needed} terms above the DC one, got {rest.shape[1]}")
    if means.device.type != "cpu":
        return colors_of_tensors(means, dc, rest, camera_position, degree)
    return _ViewColors.apply(means, dc, rest, camera_position, degree)  # pyright: ignore[reportReturnType]
