"""The rasteriser's contract: what every backend gives, and what the rest of the project may rely on.

Notation: N Gaussians, C cameras, D channels, P pixels, H W image. Blending is that of 3D Gaussian Splatting
as gsplat does it: EWA projection with 0.3 px dilation, alpha = min(0.999, o exp(-sigma)), entries under 1/255
skipped, a pixel stops before its transmittance would fall to 1e-4. w_i = alpha_i T_i is the blending weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from cgc import kernels
from cgc.rasterize import sparse, sparse_torch
from cgc.rasterize.checks import check_indices, check_pixel_rows
from cgc.rasterize.sparse_types import Csr
from cgc.scene.types import Camera
from cgc.splats.types import Splats

NEAR = 0.01
"""World units: Gaussians nearer to a camera's plane are not in its picture, unless a rasteriser is told otherwise."""
PART = 1 << 19
"""Pixels whose rows of W are asked for at once: with 60 entries each they take 400 MB."""
NEAR_OF_EXTENT = 0.006
"""The same of a scene's extent, so that a scene is seen alike in any unit."""


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

    @property
    def absgrad(self) -> Tensor | None:
        """The gradient of means2d by magnitudes, [C, N, 2]: sums over pixels of |dL/dmeans2d|, once they were taken.

        None unless asked for. Where one Gaussian should move two ways at once, its gradient is small and this is large
        (Ye et al. 2024, AbsGS, arXiv 2404.10484).
        """
        return getattr(self.means2d, "absgrad", None)  # where gsplat leaves it


@dataclass(frozen=True)
class Contributions:
    """The sparse matrix W (pixels x Gaussians) of blending weights of one view, in CSR form.

    indptr [P+1] int64; ids [nnz] int32, front to back within a row; weights [nnz] float32 or float16.
    `pixels` [P] int64 are flat indices y * width + x of the rows. `remainder` [P] float32 is the weight of the
    entries that a row leaves out; None where that is not known. `transposed` is the transpose where it is at hand.
    """

    indptr: Tensor
    ids: Tensor
    weights: Tensor
    pixels: Tensor
    width: int
    height: int
    n_gaussians: int
    remainder: Tensor | None = None
    transposed: Csr | None = None

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def rows(self) -> Tensor:
        """The row of each entry, [nnz] int64."""
        return sparse_torch.rows_of(self.indptr.to(self.ids.device), len(self.ids))

    @property
    def for_kernels(self) -> bool:
        """Say whether the CPU kernels work on it; torch does elsewhere."""
        return kernels.serve(self.ids.device)

    @cached_property
    def by_pixel(self) -> Csr:
        """W, a row a pixel, in float32: arrays for the kernels, or tensors where it is on a GPU."""
        indptr, ids, weights = self.indptr.detach(), self.ids.detach(), self.weights.detach().to(torch.float32)
        return Csr(indptr.numpy(), ids.numpy(), weights.numpy()) if self.for_kernels else Csr(indptr, ids, weights)

    @cached_property
    def by_gaussian(self) -> Csr:
        """The transpose of W, a row a Gaussian; made on first use and kept."""
        if self.transposed is not None:
            return self.transposed
        transpose: Any = sparse.transpose if self.for_kernels else sparse_torch.transpose
        return transpose(self.by_pixel, self.n_gaussians)

    def to(self, device: torch.device | str) -> Contributions:
        """Return W on a device."""
        if self.ids.device == torch.device(device):
            return self
        parts = {name: getattr(self, name) for name in ("indptr", "ids", "weights", "pixels", "remainder")}
        moved = {name: part.to(device) for name, part in parts.items() if part is not None}
        return replace(self, **moved, transposed=None)

    def matmul(self, values: Tensor) -> Tensor:
        """Return W @ values, [N, D] -> [P, D] float32, differentiable: what `render` gives at the pixels.

        Computed where W is; the result is where `values` are.
        """
        _check_rows("values", values, self.n_gaussians, "Gaussians")
        return _Product.apply(values, self, False)  # pyright: ignore[reportReturnType]

    def transpose_matmul(self, x: Tensor) -> Tensor:
        """Return W^T @ x, [P, M] -> [N, M] float32, differentiable: pixels summed into Gaussians."""
        _check_rows("x", x, len(self), "pixels")
        return _Product.apply(x, self, True)  # pyright: ignore[reportReturnType]

    def select(self, rows: Tensor) -> Contributions:
        """Return the sub-matrix of these rows: indices [R] in any order, repeats allowed, or a mask [P]."""
        if rows.dtype == torch.bool and rows.shape == self.pixels.shape:
            rows = rows.nonzero()[:, 0]
        rows = rows.detach()
        check_indices("rows", rows, len(self))
        rows = rows.to(self.ids.device, torch.int64).contiguous()
        if self.for_kernels:
            taken = Csr(*(torch.from_numpy(a) for a in sparse.take_rows(self.by_pixel, rows.numpy())))
        else:
            taken = sparse_torch.take_rows(self.by_pixel, rows)
        return replace(
            self,
            indptr=taken.indptr,
            ids=taken.ids,
            weights=taken.weights.to(self.weights.dtype),
            pixels=self.pixels[rows],
            remainder=None if self.remainder is None else self.remainder[rows],
            transposed=None,
        )

    def compact(self) -> tuple[Contributions, Tensor]:
        """Return W without its empty columns, and the Gaussians that are left, [U] int32, rising.

        What works on the result costs by what the pixels show, not by the number of Gaussians.
        """
        if self.for_kernels:
            matrix, kept = sparse.drop_empty_columns(self.by_pixel, self.n_gaussians)
            ids, kept = torch.from_numpy(matrix.ids), torch.from_numpy(kept)
        else:
            matrix, kept = sparse_torch.drop_empty_columns(self.by_pixel, self.n_gaussians)
            ids = matrix.ids
        return replace(self, ids=ids, n_gaussians=len(kept), transposed=None), kept


class _Product(torch.autograd.Function):
    """W x, or W^T x if `flip`: [N, D] -> [P, D] or [P, M] -> [N, M]; the gradient is the other of the two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, contributions: Contributions, flip: bool) -> Tensor:
        ctx.contributions, ctx.flip = contributions, flip
        matrix = contributions.by_gaussian if flip else contributions.by_pixel
        given = x.detach().to(contributions.ids.device, torch.float32).contiguous()
        if contributions.for_kernels:
            return torch.from_numpy(sparse.product(matrix, given.numpy())).to(x.device)
        return sparse_torch.multiply(matrix, given).to(x.device)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Product.apply(v, ctx.contributions, not ctx.flip), None, None  # pyright: ignore[reportReturnType]


def _check_rows(name: str, x: Tensor, rows: int, of: str) -> None:
    if x.ndim != 2 or x.shape[0] != rows:
        raise ValueError(f"{name} must be [{rows}, D], a row for each of {rows} {of}, got {list(x.shape)}")


class Rasterizer(Protocol):
    """Turns splats and cameras into pictures, and into the weights behind them.

    near: world units; Gaussians nearer to a camera's plane than this are not in its picture.
    """

    near: float

    def render(
        self,
        splats: Splats,
        values: Tensor,
        cameras: Sequence[Camera],
        *,
        backgrounds: Tensor | None = None,
        depth: bool = False,
        absgrad: bool = False,
    ) -> Render:
        """Blend `values` [N, D] (or [C, N, D], a set a camera) into pictures; differentiable in every input.

        All cameras have one image size. `backgrounds` [D] or [C, D] fills what is left of the transmittance.
        absgrad: taking gradients shall also fill `Render.absgrad`.
        Raises ValueError for shapes that disagree, NaN or infinite numbers, and an image of zero size.
        """
        ...

    def contributions(
        self,
        splats: Splats,
        camera: Camera,
        pixels: Tensor | None = None,
        *,
        min_weight: float = 0.0,
        heaviest: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Contributions:
        """Return the weights of `pixels` [P] (flat indices; None: all).

        Left out are entries under `min_weight`, and with `heaviest` K all but the K heaviest of a pixel (of equal
        ones the nearer stay); what they weighed is the row's remainder. dtype: float32 or float16 weights.
        Raises ValueError as `render` does and for pixels that are not in the image; InputError where the entries
        would not fit in the backend's memory limit.
        """
        ...


@runtime_checkable
class DeviceRasterizer(Protocol):
    """A rasteriser that works on one device, where its results are, wherever its inputs lie."""

    @property
    def device(self) -> torch.device: ...


def device_of(rasterizer: Rasterizer) -> torch.device:
    """Return where the results of a rasteriser are; the CPU where it does not say."""
    return rasterizer.device if isinstance(rasterizer, DeviceRasterizer) else torch.device("cpu")


@runtime_checkable
class GroupRasterizer(Protocol):
    """A rasteriser that sums the weights of groups of Gaussians as it goes, which saves time and memory."""

    def group_contributions(
        self, splats: Splats, camera: Camera, groups: Tensor, pixels: Tensor | None = None
    ) -> Contributions:
        """Return W onehot(groups) of `pixels` [P] (None: all), a column a group; groups [N] are numbered from 0."""
        ...


@runtime_checkable
class VoteRasterizer(Protocol):
    """A rasteriser that sums pixels into Gaussians without storing the weights."""

    def transpose_product(self, splats: Splats, camera: Camera, x: Tensor) -> Tensor:
        """Return W^T x of a whole picture, [H * W, M] -> [N, M] float32; x has a row a pixel, in their order."""
        ...


def transpose_product(rasterizer: Rasterizer, splats: Splats, camera: Camera, x: Tensor) -> Tensor:
    """Return W^T x of a whole picture, [H * W, M] -> [N, M] float32, by any rasteriser; x is not differentiated."""
    check_pixel_rows(x, camera)
    if isinstance(rasterizer, VoteRasterizer):
        return rasterizer.transpose_product(splats, camera, x)
    return rasterizer.contributions(splats, camera).transpose_matmul(x.detach())


def contributions_by_parts(
    rasterizer: Rasterizer, splats: Splats, camera: Camera, pixels: Tensor | None = None, *, min_weight: float = 0.0
) -> Iterator[Contributions]:
    """Yield rows of W of pixels (None: all), PART at a time: those of all of a large photo may be more than memory."""
    count = camera.width * camera.height
    if pixels is None and count > PART:
        pixels = torch.arange(count)
    for part in [None] if pixels is None else pixels.split(PART):
        yield rasterizer.contributions(splats, camera, part, min_weight=min_weight)


def group_contributions(
    rasterizer: Rasterizer, splats: Splats, camera: Camera, groups: Tensor, pixels: Tensor | None = None
) -> Contributions:
    """Return W onehot(groups), a column a group, by any rasteriser; a row may name a group several times."""
    if isinstance(rasterizer, GroupRasterizer):
        return rasterizer.group_contributions(splats, camera, groups, pixels)
    rows = rasterizer.contributions(splats, camera, pixels)
    ids = groups.to(rows.ids.device)[rows.ids.long()].to(rows.ids.dtype)
    return replace(rows, ids=ids, n_gaussians=int(groups.max()) + 1 if len(groups) else 0, transposed=None)
