"""Two renderers in plain torch, to measure the CPU rasteriser against: gsplat's reference, and tiles as tensors.

Both blend as cgc does (docs/conventions.md) and get their gradients from autograd, in the dtype of the splats: the
tiles in float64 are what gradients are held to on scenes too large for every pixel against every Gaussian.

Notation: N Gaussians, D channels, H W image; T tiles of TILE x TILE = S pixels; a pair is one (Gaussian, tile) that
meet, pairs lie tile by tile and front to back within a tile. A batch is B tiles whose lists are padded to G pairs.
Projected Gaussians are ellipses (a, k, g): sigma = (a u^2 + g dy^2) / 2 with u = dx + k dy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cgc.geometry import covariances, quat_to_rotation
from cgc.scene.types import Camera
from cgc.splats.types import GEOMETRY, Splats

TILE = 16
DILATION, NEAR, FAR = 0.3, 0.01, 1e10
ALPHA_MAX, ALPHA_MIN, T_MIN = 0.999, 1 / 255, 1e-4
NOTHING = -80.0
"""Logarithm of the opacity of what pads a list: its alpha is no denormal number, and skipped."""


def leaves(splats: Splats, dtype: torch.dtype = torch.float32) -> Splats:
    """Return copies in `dtype` that ask for gradients of the geometry."""
    return replace(splats, **{k: getattr(splats, k).detach().to(dtype, copy=True).requires_grad_() for k in GEOMETRY})


# ----------------------------------------------------------------------------------------------- tiles as tensors


class Projected(NamedTuple):
    """means2d [N, 2]; ellipses [N, 3]; extents [N, 2], deviations along x and y; depths [N]; seen [N]."""

    means2d: Tensor
    ellipses: Tensor
    extents: Tensor
    depths: Tensor
    seen: Tensor


class Lists(NamedTuple):
    """start [T + 1] int64: the first pair of a tile; ids [pairs] int64: the Gaussian of a pair."""

    start: Tensor
    ids: Tensor


class Batch(NamedTuple):
    """tiles [B]; ids [B, G]; real [B, G], False where a list is padded."""

    tiles: Tensor
    ids: Tensor
    real: Tensor


@dataclass(frozen=True)
class TorchTiles:
    """Renders batches of tiles of similar length as dense tensors.

    `entries` is how many (pixel, pair) a batch has at most (one tile may pass it). `again`: a batch is computed a
    second time in the gradient, so that memory does not grow with the pairs; on large pictures this is faster too.
    """

    entries: int = 1 << 20
    again: bool = True

    def render(self, splats: Splats, values: Tensor, camera: Camera) -> Tensor:
        """Blend values [N, D] to [H, W, D]."""
        projected = project(splats, camera)
        lists = list_pairs(projected, splats.opacities.detach(), camera.width, camera.height)
        tiles_x, tiles_y = tile_grid(camera.width, camera.height)
        log_opacities = splats.opacities.log()
        made, order = [values.new_zeros(1, TILE * TILE, values.shape[1])], []  # the first stands for empty tiles
        for batch in batches(lists, self.entries):
            given = (projected.means2d, projected.ellipses, log_opacities, values, batch, tiles_x)
            blended = checkpoint(blend_batch, *given, use_reentrant=False) if self.again else blend_batch(*given)
            made.append(blended)
            order.append(batch.tiles)
        where = torch.zeros(tiles_x * tiles_y, dtype=torch.long)
        listed = torch.cat([where[:0], *order])
        where[listed] = torch.arange(1, 1 + len(listed))
        return _picture(torch.cat(made)[where], camera)

    def forward_backward(self, splats: Splats, values: Tensor, camera: Camera, v_image: Tensor) -> Tensor:
        """Do as `render`, and add the gradient of sum(image * v_image) to the leaves."""
        image = self.render(splats, values, camera)
        image.backward(v_image)
        return image.detach()


def tile_grid(width: int, height: int) -> tuple[int, int]:
    """Return the numbers of tile columns and rows."""
    return -(-width // TILE), -(-height // TILE)


def project(splats: Splats, camera: Camera) -> Projected:
    """EWA projection, the slope that the Jacobian is taken at clamped."""
    viewmat, K = camera.viewmat.to(splats.means), camera.K.to(splats.means)
    rotation, width, height = viewmat[:3, :3], camera.width, camera.height
    in_camera = splats.means @ rotation.T + viewmat[:3, 3]  # [N, 3]
    depths = in_camera[:, 2]
    seen = (depths >= NEAR) & (depths <= FAR) & (splats.opacities >= ALPHA_MIN)
    x, y, z = torch.where(seen[:, None], in_camera, in_camera.new_tensor([0.0, 0.0, 1.0])).unbind(1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    slope_x = (x / z).clamp(-(cx / fx + margin_x), (width - cx) / fx + margin_x)
    slope_y = (y / z).clamp(-(cy / fy + margin_y), (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    J = torch.stack([fx / z, zero, -fx * slope_x / z, zero, fy / z, -fy * slope_y / z], 1).reshape(-1, 2, 3)
    half = J @ rotation @ quat_to_rotation(splats.quats) * splats.scales[:, None, :]  # [N, 2, 3]
    xx, yy = half.square().sum(2).add(DILATION).unbind(1)
    xy = (half[:, 0] * half[:, 1]).sum(1)
    ellipses = torch.stack([yy / (xx * yy - xy * xy), -xy / yy, 1 / yy], 1)
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], 1)
    return Projected(means2d, ellipses, torch.stack([xx, yy], 1).detach().sqrt(), depths, seen)


@torch.no_grad()
def list_pairs(projected: Projected, opacities: Tensor, width: int, height: int) -> Lists:
    """List the Gaussians of every tile that their {alpha >= ALPHA_MIN} meets, front to back (float32 depths)."""
    tiles_x, tiles_y = tile_grid(width, height)
    order = projected.depths.float().argsort(stable=True)
    order = order[projected.seen[order]]
    reach = (2 * torch.log(opacities[order] / ALPHA_MIN)).clamp_min(0).sqrt() + 1e-3
    centre, box = projected.means2d[order], reach[:, None] * projected.extents[order]
    last_tile = torch.tensor([tiles_x, tiles_y]) - 1
    first = ((centre - box - TILE + 0.5) / TILE).ceil().clamp_min(0).minimum(last_tile + 1).long()
    last = ((centre + box - 0.5) / TILE).floor().clamp_min(-1).minimum(last_tile).long()
    columns, rows = (last - first + 1).clamp_min(0).unbind(1)
    counts = columns * rows
    owner = torch.repeat_interleave(torch.arange(len(order)), counts)  # [pairs]
    place = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    tile_x, tile_y = first[owner, 0] + place % columns[owner], first[owner, 1] + place // columns[owner]
    corner = TILE * torch.stack([tile_x, tile_y], 1) + 0.5 - centre[owner]
    meets = nearest_sigma(projected.ellipses[order][owner], corner) <= 0.5 * reach[owner].square()
    owner, tile = owner[meets], (tile_y * tiles_x + tile_x)[meets]
    tile, by_tile = tile.sort(stable=True)
    start = torch.searchsorted(tile, torch.arange(tiles_x * tiles_y + 1))
    return Lists(start, order[owner[by_tile]])


def nearest_sigma(ellipses: Tensor, corner: Tensor) -> Tensor:
    """Return the least sigma over a tile, [pairs]; `corner` [pairs, 2] is its first pixel centre less the mean."""
    (a, k, g), (left, top) = ellipses.unbind(1), corner.unbind(1)
    right, bottom = left + TILE - 1, top + TILE - 1
    edges = []
    for dx in (left, right):
        dy = (-a * k * dx / (a * k * k + g)).clamp(top, bottom)
        edges.append(a * (dx + k * dy).square() + g * dy.square())
    for dy in (top, bottom):
        dx = (-k * dy).clamp(left, right)
        edges.append(a * (dx + k * dy).square() + g * dy.square())
    inside = (left <= 0) & (right >= 0) & (top <= 0) & (bottom >= 0)
    return torch.where(inside, 0.0, 0.5 * torch.stack(edges).amin(0))


def batches(lists: Lists, entries: int) -> Iterator[Batch]:
    """Cut the tiles that have pairs into batches of similar length, the longest lists first."""
    lengths = lists.start.diff()
    order = lengths.argsort(descending=True)
    order = order[lengths[order] > 0]
    longest, at = lengths[order].tolist(), 0
    while at < len(order):
        count = max(1, entries // (longest[at] * TILE * TILE))
        tiles = order[at : at + count]
        slot = torch.arange(longest[at])
        real = slot < lengths[tiles, None]
        yield Batch(tiles, lists.ids[(lists.start[tiles, None] + slot).clamp_max(len(lists.ids) - 1)], real)
        at += count


def pixel_centres(tiles: Tensor, tiles_x: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return x [B, TILE] of the columns and y [B, TILE] of the rows of tiles [B]."""
    inside = torch.arange(TILE) + 0.5
    x, y = TILE * (tiles % tiles_x)[:, None] + inside, TILE * (tiles // tiles_x)[:, None] + inside
    return x.to(dtype), y.to(dtype)


def raw_alphas(means2d: Tensor, ellipses: Tensor, log_opacities: Tensor, batch: Batch, tiles_x: int) -> Tensor:
    """Return o exp(-sigma) of the pixels of a batch, [B, S, G], nearly 0 where a list is padded."""
    (mx, my), (a, k, g) = means2d[batch.ids].unbind(-1), ellipses[batch.ids].unbind(-1)  # [B, G] each
    top = log_opacities[batch.ids].masked_fill(~batch.real, NOTHING)
    x, y = pixel_centres(batch.tiles, tiles_x, means2d.dtype)
    dx, dy = x[:, :, None] - mx[:, None], y[:, :, None] - my[:, None]  # [B, TILE, G]
    top = top[:, None] - 0.5 * g[:, None] * dy * dy
    root = (0.5 * a).sqrt()[:, None]
    u = (root * dx)[:, None] + (root * k[:, None] * dy)[:, :, None]  # [B, row, column, G]
    return torch.exp(top[:, :, None] - u * u).flatten(1, 2)


def blend_batch(
    means2d: Tensor, ellipses: Tensor, log_opacities: Tensor, values: Tensor, batch: Batch, tiles_x: int
) -> Tensor:
    """Blend values [N, D] over the tiles of a batch, [B, S, D]."""
    alpha = raw_alphas(means2d, ellipses, log_opacities, batch, tiles_x)
    alpha = torch.nn.functional.threshold(alpha, ALPHA_MIN, 0.0).clamp_max(ALPHA_MAX)
    after = torch.cumprod(1 - alpha, 2)
    before = torch.nn.functional.pad(after[..., :-1], (1, 0), value=1.0)
    weights = torch.where(after > T_MIN, alpha * before, 0.0)
    return weights @ values[batch.ids]


@torch.no_grad()
def clear_pixels(splats: Splats, camera: Camera, margin: float = 1e-4) -> Tensor:
    """Return where no decision is close, [H, W]; float32 may rightly decide the other way elsewhere.

    Close is an alpha within `margin` (relative) of ALPHA_MIN or ALPHA_MAX, or a transmittance of T_MIN, as long as
    the pixel is not finished.
    """
    projected = project(splats, camera)
    tiles_x, tiles_y = tile_grid(camera.width, camera.height)
    clear = torch.ones(tiles_x * tiles_y, TILE * TILE, dtype=torch.bool)
    log_opacities = splats.opacities.log()
    for batch in batches(list_pairs(projected, splats.opacities, camera.width, camera.height), 1 << 19):
        raw = raw_alphas(projected.means2d, projected.ellipses, log_opacities, batch, tiles_x)
        alpha = torch.nn.functional.threshold(raw, ALPHA_MIN, 0.0).clamp_max(ALPHA_MAX)
        after = torch.cumprod(1 - alpha, 2)
        reached = torch.nn.functional.pad(after[..., :-1], (1, 0), value=1.0) > T_MIN * (1 - margin)
        close = ((raw / ALPHA_MIN - 1).abs() < margin) | ((raw / ALPHA_MAX - 1).abs() < margin)
        close |= (after / T_MIN - 1).abs() < margin
        clear[batch.tiles] = ~(close & reached).any(2)
    return _picture(clear[..., None], camera)[..., 0]


def _picture(tiles: Tensor, camera: Camera) -> Tensor:
    """Put tiles [T, S, D] together to a picture [H, W, D]."""
    tiles_x, tiles_y = tile_grid(camera.width, camera.height)
    rows = tiles.reshape(tiles_y, tiles_x, TILE, TILE, -1).transpose(1, 2)
    return rows.reshape(tiles_y * TILE, tiles_x * TILE, -1)[: camera.height, : camera.width]


# ----------------------------------------------------------------------------------------- gsplat's torch reference


@dataclass
class GsplatReference:
    """gsplat's torch reference, whole, but for two helpers that need CUDA: which pairs count, and segment sums.

    The tile lists are made by gsplat's loop over Gaussians; `seconds_of_lists` says how long it took the last time.
    `rows` is how many rows of tiles are blended at a time, which bounds the memory.
    """

    rows: int = 8
    seconds_of_lists: float = 0.0

    def projected(self, splats: Splats, camera: Camera) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return radii [1, N, 2], means2d [1, N, 2], depths [1, N], conics [1, N, 3]."""
        from gsplat.cuda._torch_impl import _fully_fused_projection

        viewmat, K = camera.viewmat.to(splats.means)[None], camera.K.to(splats.means)[None]
        made = _fully_fused_projection(
            splats.means, covariances(splats.quats, splats.scales), viewmat, K, camera.width, camera.height
        )
        return made[:4]

    def listed(self, radii: Tensor, means2d: Tensor, depths: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
        """Return offsets [1, tile rows, tile columns] and the Gaussians of the pairs."""
        from gsplat.cuda._torch_impl import _isect_offset_encode, _isect_tiles

        begun = time.perf_counter()
        grid = tile_grid(camera.width, camera.height)
        _, keys, ids = _isect_tiles(means2d.detach(), radii, depths.detach(), TILE, *grid)
        self.seconds_of_lists = time.perf_counter() - begun
        return _isect_offset_encode(keys, 1, *grid), ids

    def forward_backward(self, splats: Splats, values: Tensor, camera: Camera, v_image: Tensor) -> Tensor:
        """Blend values [N, D] to [H, W, D], and add the gradient of sum(image * v_image) to the leaves."""
        radii, means2d, depths, conics = self.projected(splats, camera)
        offsets, ids = self.listed(radii, means2d, depths, camera)
        inputs = (means2d, conics, values[None], splats.opacities[None])
        cut = [t.detach().requires_grad_() for t in inputs]
        for t in cut:
            t.grad = torch.zeros_like(t)
        image = []
        for top, strip in self._strips(cut, offsets, ids, camera):
            if strip.requires_grad:  # something is in it
                strip.backward(v_image[top : top + len(strip)])
            image.append(strip.detach())
        torch.autograd.backward(inputs, [t.grad for t in cut])
        return torch.cat(image)

    def _strips(
        self, inputs: list[Tensor], offsets: Tensor, ids: Tensor, camera: Camera
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the first pixel row and the picture [rows, W, D] of some rows of tiles at a time.

        inputs: means2d [1, N, 2], conics [1, N, 3], values [1, N, D], opacities [1, N].
        """
        from gsplat.cuda import _torch_impl, _wrapper

        means2d, conics, values, opacities = inputs
        _, tiles_y, tiles_x = offsets.shape
        bounds = torch.cat([offsets.flatten(), torch.tensor([len(ids)])]).tolist()
        for row in range(0, tiles_y, self.rows):
            begin, end = bounds[row * tiles_x], bounds[min(row + self.rows, tiles_y) * tiles_x]
            top, height = row * TILE, min(camera.height - row * TILE, self.rows * TILE)
            lists = (offsets[:, row : row + self.rows] - begin, ids[begin:end])
            moved = means2d - means2d.new_tensor([0.0, top])
            with (
                patch.dict(sys.modules, {"nerfacc": _segment_sums()}),
                patch.object(_wrapper, "rasterize_to_indices_in_range", indices_in_range),
            ):
                picture, _ = _torch_impl._rasterize_to_pixels(
                    moved, conics, values, opacities, camera.width, height, TILE, *lists
                )
            yield top, picture[0]


def _segment_sums() -> ModuleType:
    """Return a module with the two functions of nerfacc that gsplat's `accumulate` calls."""
    module = ModuleType("nerfacc")
    vars(module).update(
        render_weight_from_alpha=weights_from_alphas,
        accumulate_along_rays=sums_of_segments,
    )
    return module


def weights_from_alphas(alphas: Tensor, *, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
    """Return alpha_i T_i and T_i [M], T_i the product of 1 - alpha_j over earlier entries of the same ray.

    The entries of a ray are neighbours. Products are differences of one running sum of logarithms in float64.
    """
    logs = torch.log1p(-alphas.double())
    before = logs.cumsum(0) - logs
    first = torch.ones_like(ray_indices, dtype=torch.bool)
    first[1:] = ray_indices[1:] != ray_indices[:-1]
    counts = torch.diff(first.nonzero()[:, 0], append=torch.tensor([len(first)]))
    transmittance = torch.exp(before - before[first].repeat_interleave(counts)).to(alphas)
    return alphas * transmittance, transmittance


def sums_of_segments(weights: Tensor, values: Tensor | None, *, ray_indices: Tensor, n_rays: int) -> Tensor:
    """Return the sums of weights [M] times values [M, D] (None: of the weights) of each ray, [n_rays, D]."""
    terms = weights[:, None] if values is None else weights[:, None] * values
    return terms.new_zeros(n_rays, terms.shape[1]).index_add(0, ray_indices, terms)


@torch.no_grad()
def indices_in_range(
    range_start: int,
    range_end: int,
    transmittances: Tensor,
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Tensor,
    flatten_ids: Tensor,
    entries: int = 1 << 22,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what gsplat's kernel of this name does for one image: the entries that count, [M] Gaussian, pixel and image.

    Of each tile's list the blocks `range_start` to `range_end` of tile_size^2 are looked at. The entries of a pixel
    are neighbours, front to back; the pixels come tile by tile.
    """
    block = tile_size * tile_size
    bounds = torch.cat([isect_offsets.flatten(), torch.tensor([len(flatten_ids)])]).long()
    begin = (bounds[:-1] + range_start * block).minimum(bounds[1:])
    length = (bounds[1:] - begin).clamp_max((range_end - range_start) * block)
    start = torch.cat([torch.zeros(1, dtype=torch.long), length.cumsum(0)])
    tile = torch.repeat_interleave(torch.arange(len(length)), length)
    ids = flatten_ids[begin[tile] + torch.arange(len(tile)) - start[tile]].long()
    found = [
        _entries_of(batch, transmittances[0], means2d[0], conics[0], opacities[0], image_width, image_height)
        for batch in batches(Lists(start, ids), entries)
    ]
    empty = torch.zeros(0, dtype=torch.long)
    gaussians, pixels = (torch.cat([empty, *(f[i] for f in found)]) for i in (0, 1))
    return gaussians, pixels, torch.zeros_like(pixels)


def _entries_of(
    batch: Batch, transmittances: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """Return the Gaussians [M] and pixels [M] of the entries of a batch that count."""
    (mx, my), (p, q, r) = means2d[batch.ids].unbind(-1), conics[batch.ids].unbind(-1)  # [B, G] each
    x, y = pixel_centres(batch.tiles, tile_grid(width, height)[0], means2d.dtype)
    dx, dy = (x[:, :, None] - mx[:, None])[:, None], (y[:, :, None] - my[:, None])[:, :, None]
    sigma = 0.5 * p[:, None, None] * dx * dx + 0.5 * r[:, None, None] * dy * dy + q[:, None, None] * dx * dy
    alpha = (opacities[batch.ids] * batch.real)[:, None, None] * torch.exp(-sigma)  # [B, row, column, G]
    alpha.clamp_max_(ALPHA_MAX)
    counts = (alpha >= ALPHA_MIN) & (sigma >= 0)
    after = torch.cumprod(1 - alpha * counts, -1)
    inside = (x < width)[:, None, :] & (y < height)[:, :, None]
    columns, rows = x.long().clamp_max(width - 1), y.long().clamp_max(height - 1)
    pixel = rows[:, :, None] * width + columns[:, None]  # [B, row, column]
    after *= transmittances.flatten()[pixel][..., None]
    b, i, j, slot = (counts & (after > T_MIN) & inside[..., None]).nonzero(as_tuple=True)
    return batch.ids[b, slot], pixel[b, i, j]
