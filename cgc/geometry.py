"""Quaternions and spherical harmonics: pure functions of tensors.

Quaternions are wxyz. Spherical harmonics use the real basis and the signs of 3D Gaussian Splatting
(Kerbl et al. 2023, arXiv 2308.04079), degree 0 to 3; colour = 0.5 + SH, clamped at 0 from below.
"""

from __future__ import annotations

import torch
from torch import Tensor

SH_C0 = 0.28209479177387814
_C1 = 0.4886025119029199
_C2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
_C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)


def quat_to_rotation(quats: Tensor) -> Tensor:
    """Turn quaternions [..., 4] wxyz of any norm into rotation matrices [..., 3, 3]."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*quats.shape[:-1], 3, 3)


def covariances(quats: Tensor, scales: Tensor) -> Tensor:
    """Return R diag(s)^2 R^T, [..., 3, 3], of quaternions [..., 4] and standard deviations [..., 3]."""
    half = quat_to_rotation(quats) * scales[..., None, :]
    return half @ half.transpose(-1, -2)


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Evaluate the real SH basis at unit `directions` [..., 3]: [..., (degree+1)^2]."""
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, SH_C0)]
    if degree >= 1:
        basis += [-_C1 * y, _C1 * z, -_C1 * x]
    if degree >= 2:
        xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
        basis += [_C2[0] * xy, _C2[1] * yz, _C2[2] * (2 * zz - xx - yy), _C2[3] * xz, _C2[4] * (xx - yy)]
        if degree >= 3:
            basis += [
                _C3[0] * y * (3 * xx - yy),
                _C3[1] * xy * z,
                _C3[2] * y * (4 * zz - xx - yy),
                _C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
                _C3[4] * x * (4 * zz - xx - yy),
                _C3[5] * z * (xx - yy),
                _C3[6] * x * (xx - 3 * yy),
            ]
    return torch.stack(basis, dim=-1)


def sh_to_rgb(sh: Tensor, directions: Tensor, degree: int) -> Tensor:
    """Colour of coefficients `sh` [N, K, 3] seen along `directions` [N, 3] (any norm), [N, 3], at least 0."""
    if degree == 0:
        return (sh[:, 0] * SH_C0 + 0.5).clamp_min(0.0)
    basis = sh_basis(torch.nn.functional.normalize(directions, dim=-1), degree)  # [N, (degree+1)^2]
    return ((basis[:, :, None] * sh[:, : basis.shape[1]]).sum(1) + 0.5).clamp_min(0.0)


def rgb_to_sh_dc(rgb: Tensor) -> Tensor:
    """Return the DC coefficient that shows as `rgb` (0 to 1)."""
    return (rgb - 0.5) / SH_C0
