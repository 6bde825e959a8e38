"""The rasteriser's contract: what every backend gives, and what the rest of the project may rely on.

Notation: N Gaussians, C cameras, D channels, P pixels, H W image. Blending is that of 3D Gaussian Splatting as
gsplat does it: EWA projection with 0.3 px dilation, alpha = min(0.999, o exp(-sigma)), entries under 1/255
skipped, a pixel stops before its transmittance would fall to 1e-4. w_i = alpha_i T_i is the blending weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cgc.scene.types import Camera
from cgc.splats.types import Splats


@dataclass(frozen=True)
class Render:
    """What a render gives: sums over Gaussians of weight times value, front to back.

    values [C, H, W, D]; alphas [C, H, W], the sum of weights; depths [C, H, W], the weighted mean of camera z
    (0 where nothing was hit), None unless asked for; means2d [C, N, 2] in pixels, part of the graph, so that
    its gradient can steer densification; radii [C, N, 2] int32 in pixels, 0 = not in the picture.
    """

    values: Tensor
    alphas: Tensor
    depths: Tensor | None
    means2d: Tensor
    radii: Tensor


@dataclass(frozen=True)
class Contributions:
    """The sparse matrix W (pixels x Gaussians) of blending weights of one view, in CSR form.

    indptr [P+1] int64; ids [nnz] int32, front to back within a row; weights [nnz] float32.
    `pixels` [P] int64 are flat indices y * width + x of the rows.
    """

    indptr: Tensor
    ids: Tensor
    weights: Tensor
    pixels: Tensor
    width: int
    height: int
    n_gaussians: int

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def rows(self) -> Tensor:
        """The row of each entry, [nnz] int64."""
        counts = self.indptr[1:] - self.indptr[:-1]
        return torch.repeat_interleave(torch.arange(len(self), device=self.ids.device), counts)

    def as_sparse(self) -> Tensor:
        """W as a torch sparse CSR tensor [P, N]."""
        size = (len(self), self.n_gaussians)
        return torch.sparse_csr_tensor(self.indptr, self.ids.to(self.indptr.dtype), self.weights, size)


class Rasterizer(Protocol):
    """Turns splats and cameras into pictures, and into the weights behind them."""

    def render(
        self,
        splats: Splats,
        values: Tensor,
        cameras: Sequence[Camera],
        *,
        backgrounds: Tensor | None = None,
        depth: bool = False,
    ) -> Render:
        """Blend `values` [N, D] (or [C, N, D], one set a camera) into pictures; differentiable in every input.

        All cameras have one image size. `backgrounds` [D] or [C, D] fills what is left of the transmittance.
        """
        ...

    def contributions(
        self,
        splats: Splats,
        camera: Camera,
        pixels: Tensor | None = None,
        *,
        min_weight: float = 0.0,
    ) -> Contributions:
        """Return the weights of `pixels` [P] (flat indices; None: all), entries under `min_weight` left out."""
        ...
