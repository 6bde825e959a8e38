"""The CPU backend: numba kernels behind torch autograd.

Two differentiable steps a camera, so that means2d is part of the graph: Project (project.py) and Blend (bins.py,
blend.py). Memory of a render besides its outputs: 48 B + 4 D a Gaussian in the picture, 12 B a pair (Gaussian, tile);
its gradient adds 4 (8 + D) B a pair. Where that would pass `memory_limit` the picture is made in bands of tile rows.
Threads: see `cgc.kernels.thread_count`.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportAttributeAccessIssue=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cgc.errors import InputError
from cgc.kernels import spread, thread_count
from cgc.rasterize.base import NEAR, Contributions, Render
from cgc.rasterize.bins import TILE, Bins, Spans, bands, bin_gaussians, find_spans
from cgc.rasterize.blend import GROUP, MOMENTS, STRIPS, blend, blend_backward, gather_gradients, pack_values
from cgc.rasterize.checks import check_cameras, check_groups, check_indices, check_splats, check_values, check_weights
from cgc.rasterize.project import POSE_CHUNKS, project, project_backward
from cgc.rasterize.weights import copy_rows, order_pixels, weights_of_tiles
from cgc.scene.types import Camera
from cgc.splats.types import Splats

MEMORY_LIMIT = 2 << 30
PAIR_BYTES = 12
FEW = 4096
"""Pixels up to which it is looked first which Gaussians come near them: a click is answered without binning all."""


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def _matrix(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).contiguous().numpy()


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means, quats, scales, viewmat, opacities, K, width, height, near):
        n = means.shape[0]
        arrays = [_array(t) for t in (means, quats, scales)]
        means2d, ellipses = np.empty((n, 2), np.float32), np.empty((n, 3), np.float32)
        depths, radii = np.empty(n, np.float32), np.empty((n, 2), np.int32)
        ctx.camera = (_matrix(viewmat), _matrix(K), float(width), float(height))
        spread(project, *arrays, _array(opacities), *ctx.camera, float(near), means2d, ellipses, depths, radii)
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
        spread(
            project_backward, means, quats, scales, *ctx.camera, ellipses, radii,
            _array(v_means2d), _array(v_ellipses), _array(v_depths), v_means, v_quats, v_scales, v_view,
        )  # fmt: skip
        v_viewmat = torch.zeros(4, 4)
        v_viewmat[:3] = torch.from_numpy(v_view.sum(0))
        made = (torch.from_numpy(v) for v in (v_means, v_quats, v_scales))
        return *made, v_viewmat, None, None, None, None, None


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means2d, ellipses, opacities, values, spans: Spans, width: int, height: int, limit: int, absgrad
    ):
        given = values.shape[1]
        channels = -(-given // GROUP) * GROUP
        packed = np.empty(len(spans.order) * channels, np.float32)
        spread(pack_values, spans.order, _array(values).ravel(), given, channels, packed)
        image = np.empty((height, width, given), np.float32)
        final_T, cut = np.empty((height, width), np.float32), np.empty((height, width), np.int32)
        parts = bands(spans, limit // (PAIR_BYTES + 4 * (MOMENTS + channels)))
        for band in parts:
            bins = bin_gaussians(spans, *band, numbered=any(ctx.needs_input_grad))
            spread(
                blend, bins.records, packed, channels, given, bins.tile_start, bins.slot_rank, bins.tiles_x,
                bins.first_row * TILE, width, height, image.ravel(), final_T.ravel(), cut.ravel(),
            )  # fmt: skip
        ctx.saved = (_array(ellipses), _array(opacities), packed, channels, width, height, final_T, cut)
        ctx.spans, ctx.bands, ctx.absgrad = spans, parts, absgrad
        ctx.bins = bins if len(parts) == 1 else None  # several are made again, one after the other
        return torch.from_numpy(image), torch.from_numpy(final_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_image, v_final_T):
        ellipses, opacities, packed, channels, width, height, final_T, cut = ctx.saved
        n, given = len(opacities), v_image.shape[2]
        v_image, v_final_T = _array(v_image).ravel(), _array(v_final_T).ravel()
        v_means2d, v_ellipses = np.zeros((n, 2), np.float32), np.zeros((n, 3), np.float32)
        v_opacities, v_values = np.zeros(n, np.float32), np.zeros((n, given), np.float32)
        absolute = ctx.absgrad is not None
        absgrad = ctx.absgrad.numpy() if absolute else np.empty((0, 2), np.float32)
        for band in ctx.bands:
            bins: Bins = ctx.bins or bin_gaussians(ctx.spans, *band, numbered=True)
            slots = len(bins.slot_rank)
            moments, sums = np.empty(slots * MOMENTS, np.float32), np.empty(slots * channels + 8, np.float32)
            spread(
                blend_backward, bins.records, packed, channels, given, bins.tile_start, bins.slot_rank, bins.tiles_x,
                bins.first_row * TILE, width, height, final_T.ravel(), cut.ravel(),
                v_image, v_final_T, absolute, moments, sums,
            )  # fmt: skip
            spread(
                gather_gradients, bins.order, bins.first_pair, bins.pair_slot, moments, sums, channels, given,
                ellipses.ravel(), opacities, v_means2d.ravel(), v_ellipses.ravel(), v_opacities, v_values.ravel(),
                absolute, absgrad.ravel(),
            )  # fmt: skip
        made = (torch.from_numpy(v) for v in (v_means2d, v_ellipses, v_opacities, v_values))
        return *made, None, None, None, None, None


class CpuRasterizer:
    """The `Rasterizer` of machines without a GPU; exact, deterministic, parallel over tiles.

    memory_limit: bytes that the entries of one `contributions` may take, and the pairs of one picture. near: world
    units; Gaussians nearer to a camera's plane than this are not in its picture.
    """

    def __init__(self, memory_limit: int = MEMORY_LIMIT, *, near: float = NEAR) -> None:
        self.entry_limit = self.pair_limit = memory_limit
        self.near = near

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
        """See `Rasterizer.render`."""
        check_splats(splats)
        check_cameras(cameras)
        check_values(values, len(splats), len(cameras), backgrounds)
        scales, opacities = splats.scales, splats.opacities
        projected: list[Any] = [
            _Project.apply(splats.means, splats.quats, scales, c.viewmat, opacities, c.K, c.width, c.height, self.near)
            for c in cameras
        ]
        all_means2d = _stack([p[0] for p in projected])  # blended from here, so that its gradient can be kept
        sizes = torch.zeros(all_means2d.shape) if absgrad else None
        all_means2d.absgrad = sizes  # pyright: ignore[reportAttributeAccessIssue] # see `Render.absgrad`
        images, alphas, depths = [], [], []
        for index, (camera, (_, ellipses, z, radii)) in enumerate(zip(cameras, projected)):
            means2d = all_means2d[index]
            shown = values if values.ndim == 2 else values[index]
            if depth:
                shown = torch.cat([shown, z[:, None]], 1)
            arrays = [_array(t) for t in (means2d, ellipses, opacities, z)]
            spans = find_spans(*arrays, radii.numpy(), camera.width, camera.height)
            image, final_T = _Blend.apply(  # pyright: ignore
                means2d, ellipses, opacities, shown, spans, camera.width, camera.height, self.pair_limit,
                None if sizes is None else sizes[index],
            )  # fmt: skip
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
        heaviest: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Contributions:
        """See `Rasterizer.contributions`."""
        check_weights(heaviest, dtype)
        wanted, spans = self._spans_at(splats, camera, pixels)
        made = _weigh(spans, camera.width, wanted.numpy(), min_weight, heaviest, self.entry_limit)
        indptr, ids, weights, remainder = (torch.from_numpy(v) for v in made)
        size = camera.width, camera.height
        return Contributions(indptr, ids, weights.to(dtype), wanted, *size, len(splats), remainder=remainder)

    def group_contributions(
        self, splats: Splats, camera: Camera, groups: Tensor, pixels: Tensor | None = None
    ) -> Contributions:
        """See `GroupRasterizer.group_contributions`."""
        check_groups(groups, len(splats))
        group_of = groups.detach().cpu().numpy()
        wanted, spans = self._spans_at(splats, camera, pixels)
        made = _weigh(spans, camera.width, wanted.numpy(), 0.0, 0, self.entry_limit, group_of)
        indptr, ids, weights, _ = (torch.from_numpy(v) for v in made)
        n_groups = int(group_of.max(initial=-1)) + 1
        return Contributions(indptr, ids, weights, wanted, camera.width, camera.height, n_groups)

    def _spans_at(self, splats: Splats, camera: Camera, pixels: Tensor | None) -> tuple[Tensor, Spans]:
        """Return the pixels that are asked for [P] and the spans of all Gaussians that may show there."""
        check_splats(splats)
        check_cameras([camera])
        width, height = camera.width, camera.height
        wanted = torch.arange(width * height) if pixels is None else pixels.detach().cpu()
        check_indices("pixels", wanted, width * height)
        wanted = wanted.long().contiguous()
        with torch.no_grad():
            opacities = splats.opacities
            means2d, ellipses, z, radii = _Project.apply(
                splats.means, splats.quats, splats.scales, camera.viewmat, opacities, camera.K, width, height, self.near
            )  # pyright: ignore[reportGeneralTypeIssues]
        arrays = [_array(t) for t in (means2d, ellipses, opacities, z)]
        if 0 < len(wanted) <= FEW:
            _leave_out(arrays[0], radii.numpy(), wanted.numpy(), width)
        return wanted, find_spans(*arrays, radii.numpy(), width, height)


def _leave_out(means2d: np.ndarray, radii: np.ndarray, pixels: np.ndarray, width: int) -> None:
    """Set the radii of Gaussians that end before the rectangle around `pixels` to 0, not in the picture."""
    x, y = pixels % width, pixels // width
    for axis, at in enumerate((x, y)):  # a pixel more than needed: pixels decide exactly
        low, high = np.float32(at.min() - 0.5), np.float32(at.max() + 1.5)
        reach = radii[:, axis]
        radii[(means2d[:, axis] + reach < low) | (means2d[:, axis] - reach > high), 0] = 0


def _weigh(
    spans: Spans,
    width: int,
    pixels: np.ndarray,
    min_weight: float,
    heaviest: int,
    limit: int,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return CSR (indptr [P+1] int64, ids [nnz] int32, weights [nnz] float32) of `pixels` [P] and the remainder [P].

    groups [N]: ids are groups, an entry the weight of all of one.
    Besides the result (8 B an entry) it holds a second copy of it, in the order of the tiles.
    """
    tiles_y = len(spans.pairs_of_rows)
    strip_start = np.zeros(spans.tiles_x * tiles_y * STRIPS + 1, np.int64)
    pixel_order = order_pixels(pixels, width, spans.tiles_x, spans.tiles_x * tiles_y, strip_start)
    row_start, row_count = np.zeros(len(pixels), np.int64), np.zeros(len(pixels), np.int64)
    remainder = np.zeros(len(pixels), np.float32)
    most, found = limit // 16 // thread_count(), []  # entries a worker
    n_groups = 0 if groups is None else int(groups.max(initial=-1)) + 1
    rank_group = np.empty(0, np.int32) if groups is None else groups.astype(np.int32)[spans.order]
    names = spans.order if groups is None else np.arange(n_groups, dtype=np.int32)  # of what entries count by
    for band in bands(spans, max(limit // PAIR_BYTES, 1)):
        bins = bin_gaussians(spans, *band)
        tiles = (bins.tile_start, bins.tiles_x, bins.first_row, strip_start, pixel_order)
        entries = spread(
            weights_of_tiles, bins.records, bins.slot_rank, *tiles, width, pixels, np.float32(min_weight), heaviest,
            rank_group, n_groups, most, row_start, row_count, remainder,
        )  # fmt: skip
        if (row_count < 0).any():
            raise InputError(
                f"the blending weights of {len(pixels):,} pixels need more than {limit / 1e9:.3g} GB; ask for fewer "
                "pixels, for the heaviest few of each, or leave out the light ones"
            )
        most -= max(used for _, _, used in entries)
        found.append((tiles, entries))
    indptr = np.concatenate([[0], np.cumsum(row_count)])
    ids, weights = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)

    def copy(worker: int, workers: int, tiles: tuple, entries: list) -> None:
        copy_rows(worker, workers, names, *tiles, row_start, row_count, indptr, *entries[worker][:2], ids, weights)

    while found:
        spread(copy, *found.pop())
    return indptr, ids, weights, remainder


def _stack(tensors: list[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
