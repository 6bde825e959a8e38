"""Splitting a Gaussian in two along its longest axis, with as little change to pictures as two Gaussians allow."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from cgc.geometry import quat_to_rotation
from cgc.splats.types import Splats

OFFSET = 0.6
"""How far each half's mean lies from the whole's, in its longest standard deviations."""
SHRINK = 0.7
"""Their longest standard deviation, times the whole's: with this the alpha changes least in the squares."""


def split(splats: Splats, which: Tensor) -> tuple[Splats, Tensor]:
    """Split Gaussians `which` [N] bool in two; return the splats, N' of them, and which each was of, [N'] int64.

    Those left whole come first, in their order, then one half of each split one, then the other. Halves lie OFFSET to
    either side and have SHRINK the length; what a camera across the axis sees keeps its mean and mass (`half_opacity`).
    """
    whole, divided = (~which).nonzero()[:, 0], which.nonzero()[:, 0]
    origin = torch.cat([whole, divided, divided])
    longest = splats.log_scales[divided].argmax(1, keepdim=True)  # [S, 1]
    axes = quat_to_rotation(splats.quats[divided]).transpose(1, 2)  # [S, axis, xyz]
    axis = axes.gather(1, longest[:, :, None].expand(-1, 1, 3))[:, 0]
    reach = OFFSET * splats.scales[divided].gather(1, longest) * axis  # [S, 3]
    shrunk = torch.zeros_like(splats.log_scales[divided]).scatter(1, longest, math.log(SHRINK))
    shorter = splats.log_scales[divided] + shrunk
    opacity = half_opacity(splats.opacities[divided])
    made = splats.select(origin)
    n = len(whole)
    return replace(
        made,
        means=made.means + torch.cat([reach.new_zeros(n, 3), -reach, reach]),
        log_scales=torch.cat([made.log_scales[:n], shorter, shorter]),
        logit_opacities=torch.cat([made.logit_opacities[:n], opacity.logit(), opacity.logit()]),
    ), origin


def half_opacity(opacity: Tensor) -> Tensor:
    """Return the opacity p of each half with which both, blended, weigh as much as the whole of `opacity` o.

    With offset d and shrinkage s the alpha 1 - (1 - p g_1)(1 - p g_2) sums to 4 s p - s exp(-(d/s)^2) p^2 where the
    whole's sums to 2 o (over the plane, in units of pi times both standard deviations).
    """
    overlap = SHRINK * math.exp(-((OFFSET / SHRINK) ** 2))
    return (2 * SHRINK - (4 * SHRINK**2 - 2 * overlap * opacity).sqrt()) / overlap
