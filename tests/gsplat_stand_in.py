"""A stand-in for gsplat's compiled CUDA code, in plain torch on the CPU: what `gsplat.cuda._backend._C` would be.

gsplat's own Python (its shape checks, its padding of channels, its autograd functions) runs over it unchanged; only the
compiled functions that cgc reaches are replaced, each written after its kernel in gsplat/cuda/csrc (float32, the same
formulas, the same order of decisions, gradients by the kernels' own formulas and not by autograd, transmittance
recovered by division as the kernels do). It refuses what the C++ refuses: tensors that are not contiguous
(CHECK_CONTIGUOUS), of another dtype than `data_ptr<T>()` asks for, on several devices, numbers of channels without a
kernel, and calls that divide by zero Gaussians. Memory that the kernels leave unwritten is filled with NaN.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

CHANNELS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 512, 513)
ALPHA_MIN, ALPHA_MAX, T_MIN = 1 / 255, 0.999, 1e-4
KERNELS = os.environ.get("CGC_GSPLAT_KERNELS")
"""What `tools/build_gsplat_on_cpu.py` made, to be used in place of what is here."""
SHARED_MEMORY = 48 << 10
"""What a block of any card may have without asking for more, in bytes; asking may fail, as it does in gsplat."""


class CameraModelType(Enum):
    """gsplat's camera models, by their names."""

    PINHOLE = 0


class Refused(RuntimeError):
    """What C++ would throw, or crash at."""


def check(dtype: torch.dtype = torch.float32, **tensors: Tensor | None) -> None:
    """Refuse tensors that are not contiguous, of another dtype or on several devices."""
    given = {name: t for name, t in tensors.items() if t is not None}
    if len({t.device for t in given.values()}) > 1:
        raise Refused(f"tensors on several devices: { ({name: t.device for name, t in given.items()}) }")
    for name, t in given.items():
        if not t.is_contiguous():
            raise Refused(f"{name} must be contiguous")
        if t.dtype != dtype:
            raise Refused(f"{name}: expected scalar type {dtype} but found {t.dtype}")


def bits(number: int) -> int:
    """floor(log2(number)) + 1."""
    return number.bit_length()


# ------------------------------------------------------------------------------------------------ projection


def rotations(quats: Tensor) -> Tensor:
    """quat_to_rotmat: [..., 4] -> [..., 3, 3]."""
    w, x, y, z = (quats * quats.square().sum(-1, keepdim=True).rsqrt()).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).reshape(*quats.shape[:-1], 3, 3)


def times(a: Tensor, b: Tensor) -> Tensor:
    """The product of small matrices [..., R, K] and [..., K, S], summed in one order whatever the batch."""
    return sum((a[..., k : k + 1] * b[..., k : k + 1, :] for k in range(1, a.shape[-1])), a[..., :1] * b[..., :1, :])


def project_pairs(
    means: Tensor, quats: Tensor, scales: Tensor, views: Tensor, Ks: Tensor, width: int, height: int, eps2d: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return means2d [M, 2], dilated covariances [M, 2, 2] and depths [M] of M Gaussians, each in its own camera."""
    R, t = views[:, :3, :3], views[:, :3, 3]
    x, y, z = (times(R, means[:, :, None])[:, :, 0] + t).unbind(1)
    half = rotations(quats) * scales[:, None, :]
    cov = times(times(R, times(half, half.transpose(1, 2))), R.transpose(1, 2))
    fx, fy, cx, cy = Ks[:, 0, 0], Ks[:, 1, 1], Ks[:, 0, 2], Ks[:, 1, 2]
    margin_x, margin_y = 0.3 * (0.5 * width / fx), 0.3 * (0.5 * height / fy)
    rz = 1 / z
    tx = z * torch.minimum((width - cx) / fx + margin_x, torch.maximum(-(cx / fx + margin_x), x * rz))
    ty = z * torch.minimum((height - cy) / fy + margin_y, torch.maximum(-(cy / fy + margin_y), y * rz))
    zero = torch.zeros_like(z)
    J = torch.stack([fx * rz, zero, -fx * tx * rz * rz, zero, fy * rz, -fy * ty * rz * rz], 1).reshape(-1, 2, 3)
    cov2d = times(times(J, cov), J.transpose(1, 2)) + eps2d * torch.eye(2)
    return torch.stack([fx * x * rz + cx, fy * y * rz + cy], 1), cov2d, z


def inverse(cov2d: Tensor) -> tuple[Tensor, Tensor]:
    """Return conics [M, 3] and determinants [M]."""
    det = cov2d[:, 0, 0] * cov2d[:, 1, 1] - cov2d[:, 0, 1] * cov2d[:, 1, 0]
    return torch.stack([cov2d[:, 1, 1] / det, -cov2d[:, 0, 1] / det, cov2d[:, 0, 0] / det], 1), det


def projection_ewa_3dgs_fused_fwd(
    means: Tensor, covars: None, quats: Tensor, scales: Tensor, opacities: Tensor | None, viewmats: Tensor, Ks: Tensor,
    width: int, height: int, eps2d: float, near: float, far: float, radius_clip: float, calc_compensations: bool,
    camera_model: CameraModelType,
) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:  # fmt: skip
    """ProjectionEWA3DGSFused.cu, forward, pinhole, without compensations."""
    assert covars is None and not calc_compensations and camera_model is CameraModelType.PINHOLE
    check(means=means, quats=quats, scales=scales, opacities=opacities, viewmats=viewmats, Ks=Ks)
    n, c = means.shape[0], viewmats.shape[0]
    if n == 0:
        raise Refused("division by zero: means.numel() / (N * 3)")
    image, gaussian = torch.arange(c).repeat_interleave(n), torch.arange(n).repeat(c)
    means2d, cov2d, z = project_pairs(
        means[gaussian], quats[gaussian], scales[gaussian], viewmats[image], Ks[image], width, height, eps2d
    )
    conics, det = inverse(cov2d)
    extend = torch.full_like(z, 3.33)
    hidden = (z < near) | (z > far) | (det <= 0)
    if opacities is not None:
        hidden |= opacities[gaussian] < ALPHA_MIN
        extend = extend.minimum((2 * (opacities[gaussian] / ALPHA_MIN).log()).clamp_min(0).sqrt())
    radius = (extend[:, None] * cov2d.diagonal(dim1=1, dim2=2).sqrt()).ceil()
    size = torch.tensor([width, height])
    hidden |= (radius <= radius_clip).all(1)
    hidden |= ((means2d + radius <= 0) | (means2d - radius >= size)).any(1)
    radii = torch.where(hidden[:, None], 0, radius.nan_to_num(0).clamp(0, 2**31 - 129)).to(torch.int32)
    unwritten = torch.tensor(torch.nan)
    made = (torch.where(hidden[:, None], unwritten, t) for t in (means2d, z[:, None], conics))
    means2d, depths, conics = (t.reshape(c, n, -1) for t in made)
    return radii.reshape(c, n, 2), means2d, depths[..., 0], conics, None


def projection_ewa_3dgs_fused_bwd(
    means: Tensor, covars: None, quats: Tensor, scales: Tensor, viewmats: Tensor, Ks: Tensor, width: int, height: int,
    eps2d: float, camera_model: CameraModelType, radii: Tensor, conics: Tensor, compensations: None,
    v_means2d: Tensor, v_depths: Tensor, v_conics: Tensor, v_compensations: None, viewmats_requires_grad: bool,
) -> tuple[Tensor, None, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """ProjectionEWA3DGSFused.cu, backward: of the Gaussians that are seen alone."""
    assert covars is None and compensations is None and v_compensations is None
    check(means=means, quats=quats, scales=scales, viewmats=viewmats, Ks=Ks, conics=conics)
    check(v_means2d=v_means2d, v_depths=v_depths, v_conics=v_conics)
    check(torch.int32, radii=radii)
    image, gaussian = (radii > 0).all(2).nonzero(as_tuple=True)
    with torch.enable_grad():
        given = [t.detach().requires_grad_() for t in (means, quats, scales, viewmats)]
        picked = (given[0][gaussian], given[1][gaussian], given[2][gaussian], given[3][image])
        means2d, cov2d, z = project_pairs(*picked, Ks[image], width, height, eps2d)
        symmetric = 0.5 * (cov2d + cov2d.transpose(1, 2))
        made = (means2d, z, inverse(symmetric)[0])
        upstream = [v[image, gaussian] for v in (v_means2d, v_depths, v_conics)]
        v_means, v_quats, v_scales, v_views = torch.autograd.grad(made, given, upstream)
    return v_means, None, v_quats, v_scales, v_views if viewmats_requires_grad else None


# ------------------------------------------------------------------------------------------------ tile lists


def intersect_tile(
    means2d: Tensor, radii: Tensor, depths: Tensor, image_ids: None, gaussian_ids: None, n_images: int, tile_size: int,
    tile_width: int, tile_height: int, sort: bool, segmented: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """IntersectTile.cu: keys image | tile | depth bits, sorted stably."""
    assert image_ids is None and gaussian_ids is None and sort and not segmented
    check(means2d=means2d, depths=depths)
    check(torch.int32, radii=radii)
    if means2d.dim() == 2:
        raise Refused("When packed is set, image_ids and gaussian_ids must be provided.")
    tile_bits = bits(tile_width * tile_height)
    if tile_bits + bits(n_images) > 32:
        raise Refused("image_n_bits + tile_n_bits <= 32")
    flat, radius = means2d.reshape(-1, 2) / tile_size, radii.reshape(-1, 2).float() / tile_size
    seen, grid = (radii.reshape(-1, 2) > 0).all(1), torch.tensor([tile_width, tile_height])
    flat = torch.where(seen[:, None], flat, 0.0)
    low = (flat - radius).floor().clamp_min(0).minimum(grid.float()).long()
    high = (flat + radius).ceil().clamp_min(0).minimum(grid.float()).long()
    wide, tall = (high - low).unbind(1)
    counts = torch.where(seen, wide * tall, 0)
    owner = torch.repeat_interleave(torch.arange(len(flat)), counts)
    place = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    tile = (low[owner, 1] + place // wide[owner].clamp_min(1)) * tile_width + low[owner, 0]
    tile += place % wide[owner].clamp_min(1)
    depth = depths.flatten().view(torch.int32).to(torch.int64)[owner] & 0xFFFFFFFF
    n = means2d.shape[-2]
    keys = (owner // max(n, 1) << (32 + tile_bits)) | (tile << 32) | depth
    keys, order = keys.sort(stable=True)
    return counts.to(torch.int32).reshape(depths.shape), keys, owner[order].to(torch.int32)


def intersect_offset(keys: Tensor, n_images: int, tile_width: int, tile_height: int) -> Tensor:
    """IntersectTile.cu: the first pair of every tile."""
    check(torch.int64, isect_ids=keys)
    tile_bits, n_tiles = bits(tile_width * tile_height), tile_width * tile_height
    images, tiles = torch.arange(n_images).repeat_interleave(n_tiles), torch.arange(n_tiles).repeat(n_images)
    firsts = torch.searchsorted(keys, ((images << tile_bits) | tiles) << 32)
    return firsts.to(torch.int32).reshape(n_images, tile_height, tile_width)


# -------------------------------------------------------------------------------------------------- blending


class Tile:
    """What a block of threads sees: the pixels of a tile and its list. Notation: S pixels, G Gaussians in the list."""

    def __init__(self, image: int, ids: Tensor, first: int, rows: Tensor, columns: Tensor, of: tuple[Tensor, ...]):
        means2d, conics, opacities = (t.reshape(-1, *t.shape[2:]) for t in of)
        self.image, self.ids, self.first, self.rows, self.columns = image, ids.long(), first, rows, columns
        self.conics, self.opacities = conics[self.ids], opacities[self.ids]
        self.delta = means2d[self.ids] - torch.stack([columns + 0.5, rows + 0.5], -1)[:, None]  # [S, G, 2]
        dx, dy = self.delta.unbind(-1)
        a, b, c = self.conics.unbind(-1)
        sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
        self.vis = torch.exp(-sigma)
        self.alpha = (self.opacities * self.vis).clamp_max(ALPHA_MAX)
        self.valid = (sigma >= 0) & (self.alpha >= ALPHA_MIN)

    def counted(self, transmittance: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Return which entries count [S, G], and the transmittance before each and after the last [S, G + 1]."""
        after = transmittance * torch.cumprod(torch.where(self.valid, 1 - self.alpha, 1.0), 1)
        counts = self.valid & ((self.valid & (after <= T_MIN)).cumsum(1) == 0)
        kept = torch.where(counts, 1 - self.alpha, 1.0)
        start = torch.as_tensor(transmittance).expand(len(self.rows), 1)
        return counts, torch.cat([start, kept], 1).cumprod(1)


def tiles(
    offsets: Tensor, ids: Tensor, width: int, height: int, size: int, of: tuple[Tensor, ...], block_range: range | None
) -> Iterator[Tile]:
    """Yield the tiles whose lists (of a range of blocks of tile^2 Gaussians) are not empty."""
    _, tile_rows, tile_columns = offsets.shape
    bounds = [*offsets.flatten().tolist(), len(ids)]
    for number in range(offsets.numel()):
        begin, end = bounds[number], bounds[number + 1]
        if block_range is not None:
            end = min(end, begin + block_range.stop * size * size)
            begin += block_range.start * size * size
        if begin >= end:
            continue
        image, tile = divmod(number, tile_rows * tile_columns)
        y = torch.arange(size) + tile // tile_columns * size
        x = torch.arange(size) + tile % tile_columns * size
        rows, columns = torch.meshgrid(y[y < height], x[x < width], indexing="ij")
        yield Tile(image, ids[begin:end], begin, rows.flatten(), columns.flatten(), of)


def check_blending(channels: int, backward: bool = False) -> None:
    """Refuse numbers of channels without a kernel, and (backward) blocks that want more memory than every card has."""
    if channels not in CHANNELS:
        raise Refused(f"Unsupported number of channels: {channels}")
    if backward and 256 * (28 + 4 * channels) > SHARED_MEMORY:
        raise Refused("Failed to set maximum shared memory size, try lowering tile_size.")


def rasterize_to_pixels_3dgs_fwd(
    means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, backgrounds: Tensor | None, masks: None,
    width: int, height: int, tile_size: int, offsets: Tensor, ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """RasterizeToPixels3DGSFwd.cu."""
    assert masks is None
    check(means2d=means2d, conics=conics, colors=colors, opacities=opacities, backgrounds=backgrounds)
    check(torch.int32, tile_offsets=offsets, flatten_ids=ids)
    check_blending(colors.shape[-1])
    n_images, flat = offsets.shape[0], colors.reshape(-1, colors.shape[-1])
    image = torch.zeros(n_images, height, width, colors.shape[-1])
    if backgrounds is not None:
        image += backgrounds[:, None, None]
    alphas, last = torch.zeros(n_images, height, width, 1), torch.zeros(n_images, height, width, dtype=torch.int32)
    for t in tiles(offsets, ids, width, height, tile_size, (means2d, conics, opacities), None):
        counts, T = t.counted()
        weights = torch.where(counts, t.alpha * T[:, :-1], 0.0)
        made = (weights.double() @ flat[t.ids].double()).float()  # a channel does not depend on how many there are
        if backgrounds is not None:
            made = made + T[:, -1:] * backgrounds[t.image]
        image[t.image, t.rows, t.columns] = made
        alphas[t.image, t.rows, t.columns, 0] = 1 - T[:, -1]
        numbers = torch.arange(t.first, t.first + len(t.ids), dtype=torch.int32)
        last[t.image, t.rows, t.columns] = torch.where(counts, numbers, 0).amax(1)
    return image, alphas, last


def rasterize_to_pixels_3dgs_bwd(
    means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, backgrounds: Tensor | None, masks: None,
    width: int, height: int, tile_size: int, offsets: Tensor, ids: Tensor, alphas: Tensor, last: Tensor,
    v_colors: Tensor, v_alphas: Tensor, absgrad: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """RasterizeToPixels3DGSBwd.cu: from back to front, the transmittance recovered by division."""
    assert masks is None
    check(means2d=means2d, conics=conics, colors=colors, opacities=opacities, backgrounds=backgrounds, alphas=alphas)
    check(v_render_colors=v_colors, v_render_alphas=v_alphas)
    check(torch.int32, tile_offsets=offsets, flatten_ids=ids, last_ids=last)
    channels = colors.shape[-1]
    check_blending(channels, backward=True)
    flat, n = colors.reshape(-1, channels), colors.shape[0] * colors.shape[1]
    grads, sizes = [torch.zeros(n, k) for k in (2, 3, channels, 1)], torch.zeros(n, 2)
    for t in tiles(offsets, ids, width, height, tile_size, (means2d, conics, opacities), None):
        at = (t.image, t.rows, t.columns)
        counts = t.valid & (torch.arange(t.first, t.first + len(t.ids)) <= last[at][:, None])
        v, T_final = v_colors[at], 1 - alphas[at]  # [S, D], [S, 1]
        ra = torch.where(counts, 1 / (1 - t.alpha), 1.0)
        T = T_final * ra.flip(1).cumprod(1).flip(1)  # before each entry
        weights = torch.where(counts, t.alpha * T, 0.0)
        value = v @ flat[t.ids].T  # [S, G], of each Gaussian in the gradient's direction
        behind = (weights * value).flip(1).cumsum(1).flip(1) - weights * value
        v_alpha = value * T - behind * ra + T_final * ra * v_alphas[at]
        if backgrounds is not None:
            v_alpha = v_alpha - T_final * ra * (v @ backgrounds[t.image])[:, None]
        live = counts & (t.opacities * t.vis <= ALPHA_MAX)
        v_sigma = torch.where(live, -t.opacities * t.vis * v_alpha, 0.0)
        (dx, dy), (a, b, c) = t.delta.unbind(-1), t.conics.unbind(-1)
        v_xy = torch.stack([v_sigma * (a * dx + b * dy), v_sigma * (b * dx + c * dy)], -1)
        v_conic = torch.stack([0.5 * v_sigma * dx * dx, v_sigma * dx * dy, 0.5 * v_sigma * dy * dy], -1)
        v_opacity = torch.where(live, t.vis * v_alpha, 0.0)
        for grad, part in zip(grads, (v_xy.sum(0), v_conic.sum(0), weights.T @ v, v_opacity.sum(0)[:, None])):
            grad.index_add_(0, t.ids, part)
        sizes.index_add_(0, t.ids, v_xy.abs().sum(0))
    shaped = (g.reshape(like.shape) for g, like in zip(grads, (means2d, conics, colors, opacities)))
    return sizes.reshape(means2d.shape) if absgrad else None, *shaped


def rasterize_to_indices_3dgs(
    range_start: int, range_end: int, transmittances: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor,
    width: int, height: int, tile_size: int, offsets: Tensor, ids: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """RasterizeToIndices3DGS.cu: Gaussians and pixels of the entries that count, pixel by pixel."""
    check(means2d=means2d, conics=conics, opacities=opacities, transmittances=transmittances)
    check(torch.int32, tile_offsets=offsets, flatten_ids=ids)
    if not 0 <= range_start <= range_end < 2**32:
        raise Refused("an unsigned 32-bit number was expected")
    n = means2d.shape[-2]
    if n == 0:
        raise Refused("division by zero: means2d.numel() / (2 * N)")
    gaussians, pixels = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    blocks = range(range_start, range_end)
    for t in tiles(offsets, ids, width, height, tile_size, (means2d, conics, opacities), blocks):
        counts, _ = t.counted(transmittances[t.image, t.rows, t.columns][:, None])
        pixel, entry = counts.nonzero(as_tuple=True)
        gaussians.append(t.ids[entry] % n)
        pixels.append((t.image * height + t.rows[pixel]) * width + t.columns[pixel])
    gaussian, pixel = torch.cat(gaussians), torch.cat(pixels)
    pixel, order = pixel.sort(stable=True)
    return gaussian[order], pixel


@cache
def built(path: str) -> ModuleType:
    """Load what was built, once."""
    spec = spec_from_file_location("gsplat_cuda", path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled() -> Any:
    """Return the stand-in of `gsplat.cuda._backend._C`, or gsplat's own kernels where these were built for the CPU."""
    module = ModuleType("gsplat_cuda")
    if KERNELS:
        vars(module).update(vars(built(KERNELS)))
        return module
    functions = (
        projection_ewa_3dgs_fused_fwd, projection_ewa_3dgs_fused_bwd, intersect_tile, intersect_offset,
        rasterize_to_pixels_3dgs_fwd, rasterize_to_pixels_3dgs_bwd, rasterize_to_indices_3dgs,
    )  # fmt: skip
    vars(module).update({f.__name__: torch.no_grad()(f) for f in functions})
    vars(module).update(CameraModelType=CameraModelType, PINHOLE=CameraModelType.PINHOLE)
    return module


@contextmanager
def standing_in() -> Iterator[None]:
    """Let gsplat's Python find the stand-in in place of its compiled code, and cgc load it anew."""
    from cgc.rasterize import gsplat_code

    name = "gsplat.cuda._backend"
    before, backend = sys.modules.get(name), ModuleType(name)
    vars(backend)["_C"] = compiled()
    gsplat_code._attempt.cache_clear()
    sys.modules[name] = backend
    try:
        yield
    finally:
        gsplat_code._attempt.cache_clear()
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
