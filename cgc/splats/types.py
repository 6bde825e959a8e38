"""Splats: the raw parameters of a 3D Gaussian Splatting scene, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from cgc.geometry import sh_to_rgb

GEOMETRY = ("means", "quats", "log_scales", "logit_opacities")
"""The raw parameters that say where a Gaussian is seen."""
PARAMETERS = (*GEOMETRY, "sh")
"""All raw parameters, which every Gaussian has."""


@dataclass(frozen=True)
class Splats:
    """N Gaussians, raw parameters as 3DGS stores them (a raw name says its activation).

    means [N, 3]; quats [N, 4] wxyz, any norm; log_scales [N, 3]; logit_opacities [N];
    sh [N, (degree+1)^2, 3], the DC term first; features [N, D] or None.
    `extras` keeps attributes of a file that are not ours, [N] each, so that they survive a rewrite.
    """

    means: Tensor
    quats: Tensor
    log_scales: Tensor
    logit_opacities: Tensor
    sh: Tensor
    features: Tensor | None = None
    extras: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def scales(self) -> Tensor:
        """Standard deviations along the axes, world units, [N, 3]."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Tensor:
        """Opacities in (0, 1), [N]."""
        return self.logit_opacities.sigmoid()

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return round(self.sh.shape[1] ** 0.5) - 1

    def colors(self, camera_position: Tensor, degree: int | None = None) -> Tensor:
        """Return RGB seen from `camera_position` [3], [N, 3], at least 0; differentiable in sh and means."""
        return sh_to_rgb(self.sh, self.means - camera_position, self.sh_degree if degree is None else degree)

    def select(self, which: Tensor) -> Splats:
        """Return the Gaussians of a boolean mask or of indices, extras too."""
        picked = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {k: v[which] for k, v in picked.items() if isinstance(v, Tensor)}
        index = which.cpu().numpy()
        return replace(self, **tensors, extras={k: v[index] for k, v in self.extras.items()})

    def to(self, device: torch.device | str) -> Splats:
        """Return the splats on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in tensors.items() if isinstance(v, Tensor)})

    def detach(self) -> Splats:
        """Return the splats cut from any graph."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.detach() for k, v in tensors.items() if isinstance(v, Tensor)})


def joined(first: Splats, second: Splats) -> Splats:
    """Return the Gaussians of both, those of the first before; without extras."""
    both = {name: torch.cat([getattr(first, name), getattr(second, name)]) for name in PARAMETERS}
    return replace(first, **both, features=None, extras={})
