"""The slow, obvious rasteriser: float64, every pixel against every Gaussian, gradients by autograd.

It states the contract of cgc/rasterize/base.py in as few lines as it can: no tiles, no culling but what the
contract names, no thought of speed. Notation: N Gaussians, P = H W pixels, D channels; W [P, N] the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cgc.geometry import quat_to_rotation
from cgc.rasterize.base import Render
from cgc.scene.types import Camera
from cgc.splats.types import Splats

NEAR, FAR, DILATION = 0.01, 1e10, 0.3
ALPHA_MAX, ALPHA_MIN, T_MIN = 0.999, 1 / 255, 1e-4


class Projected(NamedTuple):
    """means2d [N, 2], cov2d [N, 2, 2] in pixels, depths [N], seen [N]: past the near plane, opaque enough."""

    means2d: Tensor
    cov2d: Tensor
    depths: Tensor
    seen: Tensor


class Weights(NamedTuple):
    """dense [P, N]; left [P], the final transmittance; clear [P]: no decision of the pixel was close."""

    dense: Tensor
    left: Tensor
    clear: Tensor


def double(splats: Splats) -> Splats:
    """Return float64 leaves that ask for gradients."""
    names = ("means", "quats", "log_scales", "logit_opacities", "sh")
    return replace(splats, **{k: getattr(splats, k).detach().double().requires_grad_() for k in names})


def double_camera(camera: Camera) -> Camera:
    """Return the camera in float64; its viewmat is a leaf that asks for gradients."""
    return replace(camera, viewmat=camera.viewmat.detach().double().requires_grad_(), K=camera.K.double())


def project(splats: Splats, camera: Camera) -> Projected:
    """EWA projection: cov2d = J W Sigma W^T J^T + 0.3 I, the slope x/z, y/z that J is taken at clamped."""
    rotation, translation = camera.viewmat[:3, :3], camera.viewmat[:3, 3]
    in_camera = splats.means @ rotation.T + translation  # [N, 3]
    z = in_camera[:, 2]
    seen = (z >= NEAR) & (z <= FAR) & (splats.opacities >= ALPHA_MIN)
    in_camera = torch.where(seen[:, None], in_camera, in_camera.new_tensor([0.0, 0.0, 1.0]))
    x, y, z = in_camera.unbind(1)
    fx, fy, cx, cy = camera.K[0, 0], camera.K[1, 1], camera.K[0, 2], camera.K[1, 2]
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], 1)
    margin_x, margin_y = 0.3 * 0.5 * camera.width / fx, 0.3 * 0.5 * camera.height / fy
    slope_x = (x / z).clamp(-(cx / fx + margin_x), (camera.width - cx) / fx + margin_x)
    slope_y = (y / z).clamp(-(cy / fy + margin_y), (camera.height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    J = torch.stack([fx / z, zero, -fx * slope_x / z, zero, fy / z, -fy * slope_y / z], 1).reshape(-1, 2, 3)
    half = J @ rotation @ quat_to_rotation(splats.quats) * splats.scales[:, None, :]  # [N, 2, 3]
    cov2d = half @ half.transpose(1, 2) + DILATION * torch.eye(2, dtype=z.dtype)
    return Projected(means2d, cov2d, splats.means @ rotation[2] + translation[2], seen)


def weigh(projected: Projected, opacities: Tensor, width: int, height: int, margin: float = 1e-4) -> Weights:
    """Blend front to back; equal float32 depths keep their order.

    A pixel is not clear if an alpha is within `margin` (relative) of 1/255 or 0.999, or a transmittance of
    1e-4: there float32 may rightly decide the other way.
    """
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = torch.stack([xs, ys], -1).reshape(-1, 1, 2) + 0.5  # [P, 1, 2]
    order = torch.argsort(projected.depths.detach().float(), stable=True)  # [N]
    order = order[projected.seen[order]]  # [V]
    xx, xy, yy = (projected.cov2d[order, a, b] for a, b in ((0, 0), (0, 1), (1, 1)))
    dx, dy = (centres - projected.means2d[order]).unbind(-1)  # [P, V] each
    sigma = 0.5 * (yy * dx * dx - 2 * xy * dx * dy + xx * dy * dy) / (xx * yy - xy * xy)
    raw = opacities[order] * torch.exp(-sigma)
    alpha = raw.clamp_max(ALPHA_MAX)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0.0)
    after = torch.cumprod(1 - alpha, 1)
    live = after > T_MIN  # falls from true to false once: after never grows
    alpha = torch.where(live, alpha, 0.0)
    through = torch.cumprod(1 - alpha, 1)
    before = torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], 1)
    dense = torch.zeros(len(centres), len(opacities), dtype=raw.dtype).index_copy(1, order, alpha * before)
    left = through[:, -1] if len(order) else torch.ones(len(centres), dtype=raw.dtype)
    reached = torch.cat([torch.ones_like(live[:, :1]), live[:, :-1]], 1)
    close = ((raw / ALPHA_MIN - 1).abs() < margin) | ((raw / ALPHA_MAX - 1).abs() < margin)
    close |= (after / T_MIN - 1).abs() < margin
    return Weights(dense, left, ~(close & reached).any(1))


def contributions(splats: Splats, camera: Camera, margin: float = 1e-4) -> Weights:
    """Return the blending weights of every pixel."""
    return weigh(project(splats, camera), splats.opacities, camera.width, camera.height, margin)


def render(
    splats: Splats,
    values: Tensor,
    cameras: Sequence[Camera],
    *,
    backgrounds: Tensor | None = None,
    depth: bool = False,
    margin: float = 1e-4,
) -> tuple[Render, Tensor]:
    """Render as `Rasterizer.render` does; also return which pixels are clear, [C, H, W]."""
    images, alphas, depths, clear = [], [], [], []
    projected = [project(splats, camera) for camera in cameras]
    means2d = torch.stack([p.means2d for p in projected])
    for c, camera in enumerate(cameras):
        size = (camera.height, camera.width)
        p = projected[c]._replace(means2d=means2d[c])
        W = weigh(p, splats.opacities, camera.width, camera.height, margin)
        image = W.dense @ (values if values.ndim == 2 else values[c])
        if backgrounds is not None:
            image = image + W.left[:, None] * (backgrounds if backgrounds.ndim == 1 else backgrounds[c])
        images.append(image.reshape(*size, -1))
        alphas.append((1 - W.left).reshape(size))
        depths.append((W.dense @ p.depths / (1 - W.left).clamp_min(1e-10)).reshape(size))
        clear.append(W.clear.reshape(size))
    stacked = torch.stack(depths) if depth else None
    made = Render(torch.stack(images), torch.stack(alphas), stacked, means2d, torch.empty(0))
    return made, torch.stack(clear)
