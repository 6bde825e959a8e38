"""EWA projection of Gaussians into one camera, and its gradient.

Notation, per Gaussian: mu mean, q quaternion (wxyz), s scales; W, t rotation and translation of viewmat;
p = W mu + t camera coordinates; M = R(q) diag(s); J the Jacobian of perspective projection at p, its slope clamped
as in 3DGS; V = J W; P = V M; cov = P P^T + 0.3 I = [[xx, xy], [xy, yy]]. Its inverse is handed on with the square
completed, as ellipse = (a, k, g):  sigma = (a u^2 + g dy^2) / 2 with u = dx + k dy,
a = yy / det, k = -xy / yy, g = 1 / yy, which unlike the conic's three entries does not cancel for needles.
Arithmetic is float64 on float32 data: it is cheap here, and needles keep their width.
Source: Zwicker et al. 2002, EWA splatting; Kerbl et al. 2023 (arXiv 2308.04079); constants as in gsplat.
"""

from __future__ import annotations

import math

import numpy as np

from cgc.kernels import kernel

DILATION = 0.3
ALPHA_MIN = 1.0 / 255.0
FAR = 1e10
POSE_CHUNKS = 64  # pose gradients are summed in this many fixed pieces: the same bits for any number of threads


@kernel
def _rotation(q, out):
    """Write R(q / |q|) to out[0..8]; return 1 / |q| (0 for a zero quaternion, taken as the identity)."""
    n = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    inv = 1.0 / n if n > 0.0 else 0.0
    w, x, y, z = q[0] * inv, q[1] * inv, q[2] * inv, q[3] * inv
    if n == 0.0:
        w = 1.0
    out[0], out[1], out[2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    out[3], out[4], out[5] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    out[6], out[7], out[8] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    return inv


@kernel
def _jacobian(px, py, pz, K, width, height, V, view):
    """Write V = J W to V[0..5]; return the clamped (x, y) it was taken at."""
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = 0.3 * 0.5 * width / fx, 0.3 * 0.5 * height / fy
    rz = 1.0 / pz
    x = pz * min((width - cx) / fx + margin_x, max(-(cx / fx + margin_x), px * rz))
    y = pz * min((height - cy) / fy + margin_y, max(-(cy / fy + margin_y), py * rz))
    for j in range(3):
        V[j] = fx * rz * view[0, j] - fx * x * rz * rz * view[2, j]
        V[3 + j] = fy * rz * view[1, j] - fy * y * rz * rz * view[2, j]
    return x, y


@kernel
def _half_covariance(V, R, s, P):
    """Write P = V R diag(s) to P[0..5]."""
    for j in range(3):
        P[j] = (V[0] * R[j] + V[1] * R[3 + j] + V[2] * R[6 + j]) * s[j]
        P[3 + j] = (V[3] * R[j] + V[4] * R[3 + j] + V[5] * R[6 + j]) * s[j]


@kernel
def project(
    worker, workers, means, quats, scales, opacities, view, K, width, height, near, means2d, ellipses, depths, radii
):
    """Project N Gaussians; fills means2d [N, 2], ellipses [N, 3], depths [N], radii [N, 2] (0 = not in the picture).

    A Gaussian is in the picture if it is not before depth `near` and the box around {alpha >= 1/255} meets the image.
    """
    n = means.shape[0]
    for chunk in range(worker, POSE_CHUNKS, workers):
        R, V, P = np.empty(9), np.empty(6), np.empty(6)
        for i in range(chunk * n // POSE_CHUNKS, (chunk + 1) * n // POSE_CHUNKS):
            radii[i, 0] = radii[i, 1] = 0
            means2d[i, 0] = means2d[i, 1] = 0.0
            ellipses[i, 0] = ellipses[i, 1] = ellipses[i, 2] = 0.0
            x, y, z = np.float64(means[i, 0]), np.float64(means[i, 1]), np.float64(means[i, 2])
            pz = view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3]
            depths[i] = pz
            if not (near <= pz <= FAR) or not opacities[i] >= ALPHA_MIN:
                continue
            px = view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3]
            py = view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3]
            _jacobian(px, py, pz, K, width, height, V, view)
            mx = K[0, 0] * px / pz + K[0, 2]
            my = K[1, 1] * py / pz + K[1, 2]
            reach = min(3.33, math.sqrt(2.0 * math.log(opacities[i] / ALPHA_MIN)))
            largest = max(scales[i, 0], scales[i, 1], scales[i, 2]) ** 2  # P P^T <= largest V V^T: cheap to cull with
            rx = reach * math.sqrt(largest * (V[0] * V[0] + V[1] * V[1] + V[2] * V[2]) + DILATION) + 1.0
            ry = reach * math.sqrt(largest * (V[3] * V[3] + V[4] * V[4] + V[5] * V[5]) + DILATION) + 1.0
            if mx + rx <= 0 or mx - rx >= width or my + ry <= 0 or my - ry >= height:
                continue
            _rotation(quats[i], R)
            _half_covariance(V, R, scales[i], P)
            xx = P[0] * P[0] + P[1] * P[1] + P[2] * P[2] + DILATION
            xy = P[0] * P[3] + P[1] * P[4] + P[2] * P[5]
            yy = P[3] * P[3] + P[4] * P[4] + P[5] * P[5] + DILATION
            det = xx * yy - xy * xy
            if not det > 0.0:
                continue
            rx, ry = math.ceil(reach * math.sqrt(xx)), math.ceil(reach * math.sqrt(yy))
            if mx + rx <= 0 or mx - rx >= width or my + ry <= 0 or my - ry >= height:
                continue
            if not (rx < 1e9 and ry < 1e9):
                continue
            means2d[i, 0], means2d[i, 1] = mx, my
            ellipses[i, 0], ellipses[i, 1], ellipses[i, 2] = yy / det, -xy / yy, 1.0 / yy
            radii[i, 0], radii[i, 1] = max(rx, 1), max(ry, 1)


@kernel
def project_backward(
    worker, workers, means, quats, scales, view, K, width, height, ellipses, radii,
    v_means2d, v_ellipses, v_depths, v_means, v_quats, v_scales, v_view_chunks,
):  # fmt: skip
    """Turn gradients of project's outputs into those of its inputs; v_view_chunks [POSE_CHUNKS, 3, 4] float64.

    `v_X` is the gradient of the loss by X. All outputs are written (0 for Gaussians not in the picture).
    """
    n = means.shape[0]
    fx, fy = K[0, 0], K[1, 1]
    for chunk in range(worker, POSE_CHUNKS, workers):
        R, V, P, vP, vV, vM = np.empty(9), np.empty(6), np.empty(6), np.empty(6), np.empty(6), np.empty(9)
        vJ, vp = np.empty(6), np.empty(3)
        v_view = v_view_chunks[chunk]
        v_view[:] = 0.0
        for i in range(chunk * n // POSE_CHUNKS, (chunk + 1) * n // POSE_CHUNKS):
            v_means[i, 0] = v_means[i, 1] = v_means[i, 2] = 0.0
            v_scales[i, 0] = v_scales[i, 1] = v_scales[i, 2] = 0.0
            v_quats[i, 0] = v_quats[i, 1] = v_quats[i, 2] = v_quats[i, 3] = 0.0
            if radii[i, 0] == 0:
                continue
            x, y, z = np.float64(means[i, 0]), np.float64(means[i, 1]), np.float64(means[i, 2])
            px = view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3]
            py = view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3]
            pz = view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3]
            tx, ty = _jacobian(px, py, pz, K, width, height, V, view)
            inv_norm = _rotation(quats[i], R)
            s = scales[i]
            _half_covariance(V, R, s, P)
            a, k, g = np.float64(ellipses[i, 0]), np.float64(ellipses[i, 1]), np.float64(ellipses[i, 2])
            va, vk, vg = (
                np.float64(v_ellipses[i, 0]),
                np.float64(v_ellipses[i, 1]),
                np.float64(v_ellipses[i, 2]),
            )
            v_xx = -a * a * va
            v_xy = -a * a * k * va - 0.5 * g * vk  # half: xy stands twice in cov
            v_yy = -a * a * k * k * va - k * g * vk - g * g * vg
            for j in range(3):  # cov = P P^T
                vP[j] = 2.0 * (v_xx * P[j] + v_xy * P[3 + j])
                vP[3 + j] = 2.0 * (v_xy * P[j] + v_yy * P[3 + j])
            for r in range(3):  # P = V M, M = R diag(s)
                for j in range(3):
                    vM[3 * r + j] = V[r] * vP[j] + V[3 + r] * vP[3 + j]
                vV[r] = vP[0] * R[3 * r] * s[0] + vP[1] * R[3 * r + 1] * s[1] + vP[2] * R[3 * r + 2] * s[2]
                vV[3 + r] = vP[3] * R[3 * r] * s[0] + vP[4] * R[3 * r + 1] * s[1] + vP[5] * R[3 * r + 2] * s[2]
            for j in range(3):
                v_scales[i, j] = R[j] * vM[j] + R[3 + j] * vM[3 + j] + R[6 + j] * vM[6 + j]
            g00, g01, g02 = vM[0] * s[0], vM[1] * s[1], vM[2] * s[2]
            g10, g11, g12 = vM[3] * s[0], vM[4] * s[1], vM[5] * s[2]
            g20, g21, g22 = vM[6] * s[0], vM[7] * s[1], vM[8] * s[2]
            qw, qx = quats[i, 0] * inv_norm, quats[i, 1] * inv_norm
            qy, qz = quats[i, 2] * inv_norm, quats[i, 3] * inv_norm
            vw = 2 * (qx * (g21 - g12) + qy * (g02 - g20) + qz * (g10 - g01))
            vx = 2 * (-2 * qx * (g11 + g22) + qy * (g01 + g10) + qz * (g02 + g20) + qw * (g21 - g12))
            vy = 2 * (qx * (g01 + g10) - 2 * qy * (g00 + g22) + qz * (g12 + g21) + qw * (g02 - g20))
            vz = 2 * (qx * (g02 + g20) + qy * (g12 + g21) - 2 * qz * (g00 + g11) + qw * (g10 - g01))
            along = vw * qw + vx * qx + vy * qy + vz * qz
            v_quats[i, 0], v_quats[i, 1] = (vw - along * qw) * inv_norm, (vx - along * qx) * inv_norm
            v_quats[i, 2], v_quats[i, 3] = (vy - along * qy) * inv_norm, (vz - along * qz) * inv_norm
            # V = J W
            rz = 1.0 / pz
            rz2 = rz * rz
            rz3 = rz2 * rz
            for r in range(3):
                vJ[r] = vV[0] * view[r, 0] + vV[1] * view[r, 1] + vV[2] * view[r, 2]
                vJ[3 + r] = vV[3] * view[r, 0] + vV[4] * view[r, 1] + vV[5] * view[r, 2]
                v_view[0, r] += fx * rz * vV[r]
                v_view[1, r] += fy * rz * vV[3 + r]
                v_view[2, r] += -fx * tx * rz2 * vV[r] - fy * ty * rz2 * vV[3 + r]
            u, v = np.float64(v_means2d[i, 0]), np.float64(v_means2d[i, 1])
            vp[0], vp[1] = fx * rz * u, fy * rz * v
            vp[2] = -(fx * px * u + fy * py * v) * rz2 + v_depths[i]
            vp[2] += -fx * rz2 * vJ[0] - fy * rz2 * vJ[4] + 2 * fx * tx * rz3 * vJ[2] + 2 * fy * ty * rz3 * vJ[5]
            if tx == pz * (px * rz):
                vp[0] += -fx * rz2 * vJ[2]
            else:  # clamped: the slope is held, so it moves with z only
                vp[2] += -fx * tx * rz3 * vJ[2]
            if ty == pz * (py * rz):
                vp[1] += -fy * rz2 * vJ[5]
            else:
                vp[2] += -fy * ty * rz3 * vJ[5]
            for j in range(3):
                v_means[i, j] = view[0, j] * vp[0] + view[1, j] * vp[1] + view[2, j] * vp[2]
                v_view[j, 0] += vp[j] * x
                v_view[j, 1] += vp[j] * y
                v_view[j, 2] += vp[j] * z
                v_view[j, 3] += vp[j]
