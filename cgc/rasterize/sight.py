"""Which Gaussians a camera may see: a quick look in torch, on any device, that leaves out none that a render shows.

Notation as in project.py. A Gaussian's box in the picture is no wider than reach sqrt(s^2 |V_row|^2 + 0.3) with s its
longest standard deviation; a margin makes up for rounding. What is not finite stays in, so that a render refuses it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgc.rasterize.base import NEAR
from cgc.rasterize.project import ALPHA_MIN, DILATION
from cgc.scene.types import Camera
from cgc.splats.types import Splats

MARGIN = 2.0  # pixels


@torch.no_grad()
def may_see(splats: Splats, camera: Camera, near: float = NEAR) -> Tensor:
    """Return which of N Gaussians may show in the picture of a camera, [N] bool; nothing is waited for.

    near: that of the rasteriser.
    """
    view, K = camera.viewmat, camera.K
    p = splats.means @ view[:3, :3].T + view[:3, 3]
    z = p[:, 2].clamp_min(0.5 * near)
    opacities, longest = splats.opacities, splats.log_scales.amax(1).exp()
    reach = (2 * (opacities / ALPHA_MIN).clamp_min(1.0).log()).sqrt().clamp_max(3.33)
    hidden = (p[:, 2] < 0.5 * near) | (opacities < 0.999 * ALPHA_MIN)
    for axis, size in ((0, camera.width), (1, camera.height)):
        f, c, slope = K[axis, axis], K[axis, 2], p[:, axis] / z
        margin = 0.15 * size / f
        clamped = torch.minimum((size - c) / f + margin, torch.maximum(-(c / f + margin), slope))
        row, forward = view[axis, :3], view[2, :3]
        stretch = row @ row - 2 * clamped * (row @ forward) + clamped**2 * (forward @ forward)
        half = reach * ((longest * f / z) ** 2 * stretch + DILATION).sqrt() * 1.001 + MARGIN
        middle = f * slope + c
        hidden |= (middle + half <= 0) | (middle - half >= size)
    numbers = splats.means.sum(1) + splats.quats.sum(1) + splats.log_scales.sum(1) + splats.logit_opacities
    return ~hidden | ~numbers.isfinite()
