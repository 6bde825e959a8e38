"""The CPU backend: numba kernels behind torch autograd.

Two differentiable steps a camera, so that means2d is part of the graph: Project (project.py) and Blend (bins.py,
blend.py). Memory of a render besides its outputs: 32 B a Gaussian, 8 B a pair (Gaussian, tile); its gradient
adds 4 (6 + D) B a pair. Threads follow NUMBA_NUM_THREADS (and numba.set_num_threads).
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportAttributeAccessIssue=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import get_num_threads
from torch import Tensor
from torch.autograd.function import once_differentiable

from cgc.rasterize.base import Contributions, Render
from cgc.rasterize.bins import TILE, Bins, bin_gaussians
from cgc.rasterize.blend import GROUP, MOMENTS, blend, blend_backward, copy_rows, gather_gradients, weights_of_tiles
from cgc.rasterize.checks import check_cameras, check_indices, check_splats, check_values
from cgc.rasterize.project import POSE_CHUNKS, project, project_backward
from cgc.scene.types import Camera
from cgc.splats.types import Splats


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def _matrix(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).contiguous().numpy()


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means, quats, scales, viewmat, opacities, K, width, height):
        n = means.shape[0]
        arrays = [_array(t) for t in (means, quats, scales)]
        means2d, ellipses = np.empty((n, 2), np.float32), np.empty((n, 3), np.float32)
        depths, radii = np.empty(n, np.float32), np.empty((n, 2), np.int32)
        ctx.camera = (_matrix(viewmat), _matrix(K), float(width), float(height))
        project(*arrays, _array(opacities), *ctx.camera, means2d, ellipses, depths, radii)
        ctx.arrays = (*arrays, ellipses, radii)
        radii_tensor = torch.from_numpy(radii)
        ctx.mark_non_differentiable(radii_tensor)
        return torch.from_numpy(means2d), torch.from_numpy(ellipses), torch.from_numpy(depths), radii_tensor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_means2d, v_ellipses, v_depths, _):
        means, quats, scales, ellipses, radii = ctx.arrays
        v_means, v_quats, v_scales = np.empty_like(means), np.empty_like(quats), np.empty_like(scales)
        v_view = np.empty((POSE_CHUNKS, 3, 4))
        project_backward(
            means, quats, scales, *ctx.camera, ellipses, radii,
            _array(v_means2d), _array(v_ellipses), _array(v_depths), v_means, v_quats, v_scales, v_view,
        )  # fmt: skip
        v_viewmat = torch.zeros(4, 4)
        v_viewmat[:3] = torch.from_numpy(v_view.sum(0))
        made = (torch.from_numpy(v) for v in (v_means, v_quats, v_scales))
        return *made, v_viewmat, None, None, None, None


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means2d, ellipses, opacities, values, bins: Bins, width: int, height: int):
        arrays = (_array(ellipses), _array(opacities))
        given = values.shape[1]
        channels = -(-given // GROUP) * GROUP
        sorted_values = np.zeros((len(bins.order), channels), np.float32)
        sorted_values[:, :given] = _array(values)[bins.order]
        sorted_values = sorted_values.ravel()
        image = np.empty((height, width, given), np.float32)
        final_T, last_slot = np.empty((height, width), np.float32), np.empty((height, width), np.int32)
        blend(
            get_num_threads(), bins.records, sorted_values, channels, bins.tile_start, bins.slot_rank, bins.tiles_x,
            width, height, image, final_T, last_slot,
        )  # fmt: skip
        ctx.saved = (*arrays, sorted_values, channels, bins, width, height, final_T, last_slot)
        return torch.from_numpy(image), torch.from_numpy(final_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_image, v_final_T):
        ellipses, opacities, sorted_values, channels, bins, width, height, final_T, last_slot = ctx.saved
        pairs, n = len(bins.slot_rank), len(opacities)
        pair_moments = np.empty(pairs * MOMENTS, np.float32)
        pair_values = np.empty(pairs * channels, np.float32)
        blend_backward(
            get_num_threads(), bins.records, sorted_values, channels, bins.tile_start, bins.slot_rank, bins.slot_pair,
            bins.tiles_x, width, height, final_T, last_slot, _array(v_image), _array(v_final_T),
            pair_moments, pair_values,
        )  # fmt: skip
        v_means2d, v_ellipses = np.zeros((n, 2), np.float32), np.zeros((n, 3), np.float32)
        v_opacities, v_values = np.zeros(n, np.float32), np.zeros((n, v_image.shape[2]), np.float32)
        gather_gradients(
            bins.order, bins.first_pair, pair_moments, pair_values, channels, ellipses, opacities,
            v_means2d, v_ellipses, v_opacities, v_values,
        )  # fmt: skip
        made = (torch.from_numpy(v) for v in (v_means2d, v_ellipses, v_opacities, v_values))
        return *made, None, None, None


class CpuRasterizer:
    """The `Rasterizer` of machines without a GPU; exact, deterministic, parallel over tiles."""

    def render(
        self,
        splats: Splats,
        values: Tensor,
        cameras: Sequence[Camera],
        *,
        backgrounds: Tensor | None = None,
        depth: bool = False,
    ) -> Render:
        """See `Rasterizer.render`."""
        check_splats(splats)
        check_cameras(cameras)
        check_values(values, len(splats), len(cameras), backgrounds)
        scales, opacities = splats.scales, splats.opacities
        projected: list[Any] = [
            _Project.apply(splats.means, splats.quats, scales, c.viewmat, opacities, c.K, c.width, c.height)
            for c in cameras
        ]
        all_means2d = _stack([p[0] for p in projected])  # blended from here, so that its gradient can be kept
        images, alphas, depths = [], [], []
        for index, (camera, (_, ellipses, z, radii)) in enumerate(zip(cameras, projected)):
            means2d = all_means2d[index]
            shown = values if values.ndim == 2 else values[index]
            if depth:
                shown = torch.cat([shown, z[:, None]], 1)
            arrays = [_array(t) for t in (means2d, ellipses, opacities, z)]
            bins = bin_gaussians(*arrays, radii.numpy(), camera.width, camera.height)
            image, final_T = _Blend.apply(means2d, ellipses, opacities, shown, bins, camera.width, camera.height)  # pyright: ignore
            alpha = 1.0 - final_T
            if depth:
                image, z_sum = image[..., :-1], image[..., -1]
                depths.append(z_sum / alpha.clamp_min(1e-10))
            if backgrounds is not None:
                background = backgrounds if backgrounds.ndim == 1 else backgrounds[index]
                image = image + final_T[..., None] * background
            images.append(image)
            alphas.append(alpha)
        return Render(
            values=_stack(images),
            alphas=_stack(alphas),
            depths=_stack(depths) if depth else None,
            means2d=all_means2d,
            radii=_stack([p[3] for p in projected]),
        )

    def contributions(
        self,
        splats: Splats,
        camera: Camera,
        pixels: Tensor | None = None,
        *,
        min_weight: float = 0.0,
    ) -> Contributions:
        """See `Rasterizer.contributions`."""
        check_splats(splats)
        check_cameras([camera])
        width, height = camera.width, camera.height
        wanted = torch.arange(width * height) if pixels is None else pixels.detach().cpu()
        check_indices("pixels", wanted, width * height)
        wanted = wanted.long().contiguous()
        with torch.no_grad():
            opacities = splats.opacities
            means2d, ellipses, z, radii = _Project.apply(
                splats.means, splats.quats, splats.scales, camera.viewmat, opacities, camera.K, width, height
            )  # pyright: ignore[reportGeneralTypeIssues]
        arrays = [_array(t) for t in (means2d, ellipses, opacities, z)]
        bins = bin_gaussians(*arrays, radii.numpy(), width, height)
        flat = wanted.numpy()
        tile = (flat // width // TILE) * bins.tiles_x + (flat % width) // TILE
        pixel_order = np.argsort(tile, kind="stable")
        pixel_start = np.searchsorted(tile[pixel_order], np.arange(bins.tiles_x * bins.tiles_y + 1))
        indptr, ids, weights = _weigh(bins, width, pixel_start, pixel_order, flat, min_weight)
        made = (torch.from_numpy(v) for v in (indptr, ids, weights))
        return Contributions(*made, pixels=wanted, width=width, height=height, n_gaussians=len(splats))


def _weigh(
    bins: Bins, width: int, pixel_start: np.ndarray, pixel_order: np.ndarray, pixels: np.ndarray, min_weight: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return CSR (indptr [P+1] int64, ids [nnz] int32, weights [nnz] float32) of `pixels` [P], flat indices.

    pixel_order lists the pixels tile by tile, pixel_start [T + 1] says where each tile's begin. Besides the result it
    holds a second copy of it, in the order of the tiles.
    """
    workers = get_num_threads()
    row_start, row_count = np.zeros(len(pixels), np.int64), np.zeros(len(pixels), np.int64)

    def weigh(worker: int) -> tuple[np.ndarray, np.ndarray]:
        return weights_of_tiles(
            worker, workers, bins.records, bins.tile_start, bins.slot_rank, bins.tiles_x, width, pixel_start,
            pixel_order, pixels, np.float32(min_weight), row_start, row_count,
        )  # fmt: skip

    with ThreadPoolExecutor(workers) as pool:  # the kernels let go of the GIL
        found = list(pool.map(weigh, range(workers)))
        indptr = np.concatenate([[0], np.cumsum(row_count)])
        ids, weights = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)

        def copy(worker: int) -> None:
            copy_rows(
                worker, workers, bins.order, pixel_start, pixel_order, row_start, row_count, indptr, *found[worker],
                ids, weights,
            )  # fmt: skip

        list(pool.map(copy, range(workers)))
    return indptr, ids, weights


def _stack(tensors: list[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
