"""Vectors, quaternions and spherical harmonics: pure functions of tensors.

Quaternions are wxyz. Spherical harmonics use the real basis and the signs of 3D Gaussian Splatting
(Kerbl et al. 2023, arXiv 2308.04079), degree 0 to 3; colour = 0.5 + SH, clamped at 0 from below.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cgc.errors import InputError

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


def vector(values: ArrayLike, n: int, what: str, *, finite: bool = True) -> np.ndarray:
    """Return n numbers that a user gave as float64 [n].

    InputError, which calls them `what`, where they are not that many, not numbers, NaN or (`finite`) infinite.
    """
    try:
        made = np.asarray(values, np.float64)
        right = made.shape == (n,) and (np.isfinite(made) if finite else ~np.isnan(made)).all()
    except (TypeError, ValueError, OverflowError):
        right = False
    if not right:
        kind = "finite numbers" if finite else "numbers"
        raise InputError(f"{what} of {n} {kind} was expected, got {values!r:.200}")
    return made


def quat_to_rotation(quats: Tensor) -> Tensor:
    """Turn quaternions [..., 4] wxyz of any norm into rotation matrices [..., 3, 3]."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*quats.shape[:-1], 3, 3)


def rotation_to_quat(rotation: Tensor) -> Tensor:
    """Turn a rotation matrix [3, 3] into a unit quaternion [4] wxyz with w >= 0."""
    r = rotation.double()
    # q q^T is linear in R (Bar-Itzhack 2000): q is the eigenvector of the largest eigenvalue of this matrix
    rows = (
        r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1],
        r[2, 1] - r[1, 2], r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0],
        r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1],
        r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1],
    )  # fmt: skip
    quat = torch.linalg.eigh(torch.stack(rows).reshape(4, 4))[1][:, -1]
    return (-quat if quat[0] < 0 else quat).to(rotation.dtype)


def quat_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Return the product a b of quaternions [..., 4]: first b turns, then a; norms multiply."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    parts = (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
    return torch.stack(parts, dim=-1)


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


def sh_dc_to_rgb(dc: Tensor) -> Tensor:
    """Return the colour of DC coefficients [..., 3] without what changes with the direction, in 0 to 1."""
    return (dc * SH_C0 + 0.5).clamp(0, 1)


def rgb_to_sh_dc(rgb: Tensor) -> Tensor:
    """Return the DC coefficients that show as colours [..., 3] in 0 to 1."""
    return (rgb - 0.5) / SH_C0


def sh_rotation(rotation: Tensor, degree: int) -> Tensor:
    """Return M [K, K] float64 with Y(R d) = M Y(d) for the basis Y at every direction d, R = `rotation` [3, 3].

    Rotated functions of one degree are sums of each other, so M is orthogonal and solves the equation at any
    directions that tell the K functions apart.
    """
    points = torch.arange(64, dtype=torch.float64) + 0.5
    z, turn = 1 - points / 32, points * (math.pi * (3 - math.sqrt(5)))  # a spiral that covers the sphere evenly
    ring = (1 - z * z).sqrt()
    directions = torch.stack([ring * turn.cos(), ring * turn.sin(), z], dim=-1)  # [64, 3]
    before = sh_basis(directions, degree)  # [64, K]
    after = sh_basis(directions @ rotation.double().cpu().T, degree)
    return torch.linalg.lstsq(before, after).solution.T


def rotate_sh(sh: Tensor, rotation: Tensor) -> Tensor:
    """Turn the functions `sh` [N, K, C]: what was seen along d is then seen along R d, R = `rotation` [3, 3]."""
    turn = sh_rotation(rotation, round(sh.shape[1] ** 0.5) - 1).to(sh.device)
    rest = torch.einsum("jk,nkc->njc", turn[1:, 1:], sh[:, 1:].double()).to(sh.dtype)
    return torch.cat([sh[:, :1], rest], dim=1)  # the constant stays as it is, to the bit
