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
FAINTEST = 1e-6
"""Opacity under which a half's, as it is computed, would be rounding alone."""


def split(splats: Splats, which: Tensor) -> tuple[Splats, Tensor]:
    """Split Gaussians `which` [N] bool in two; return the splats, N' of them, and which each was of, [N'] int64.

    Those left whole come first, in their order, then one half of each split one, then the other. Halves lie OFFSET to
    either side and have SHRINK the length; what a camera across the axis sees keeps its mean and mass (`half_opacity`).
    """
    whole, divided = (~which).nonzero()[:, 0], which.nonzero()[:, 0]
    origin = torch.cat([whole, divided, divided])
    reach, shorter, fainter = halves(*(v[divided] for v in (splats.log_scales, splats.quats, splats.logit_opacities)))
    made = splats.select(origin)
    n = len(whole)
    return replace(
        made,
        means=made.means + torch.cat([reach.new_zeros(n, 3), -reach, reach]),
        log_scales=torch.cat([made.log_scales[:n], shorter, shorter]),
        logit_opacities=torch.cat([made.logit_opacities[:n], fainter, fainter]),
    ), origin


def halves(log_scales: Tensor, quats: Tensor, logit_opacities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what makes two halves of each of S Gaussians: how far from the mean they lie, to either side, [S, 3], and
    their log scales [S, 3] and logit opacities [S]; given log scales [S, 3], quaternions [S, 4], logit opacities [S].
    """
    longest = log_scales.argmax(1, keepdim=True)  # [S, 1]
    axes = quat_to_rotation(quats).transpose(1, 2)  # [S, axis, xyz]
    axis = axes.gather(1, longest[:, :, None].expand(-1, 1, 3))[:, 0]
    reach = OFFSET * log_scales.gather(1, longest).exp() * axis
    shrunk = torch.zeros_like(log_scales).scatter(1, longest, math.log(SHRINK))
    opacities = logit_opacities.sigmoid().clamp_min(FAINTEST)
    return reach, log_scales + shrunk, half_opacity(opacities).logit()


def half_opacity(opacity: Tensor) -> Tensor:
    """Return the opacity p of each half with which both, blended, weigh as much as the whole of `opacity` o.

    With offset d and shrinkage s the alpha 1 - (1 - p g_1)(1 - p g_2) sums to 4 s p - s exp(-(d/s)^2) p^2 where the
    whole's sums to 2 o (over the plane, in units of pi times both standard deviations).
    """
    overlap = SHRINK * math.exp(-((OFFSET / SHRINK) ** 2))
    return (2 * SHRINK - (4 * SHRINK**2 - 2 * overlap * opacity).sqrt()) / overlap
