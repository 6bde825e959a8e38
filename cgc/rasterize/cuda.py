"""The CUDA backend: gsplat's kernels, called one by one so that nothing is made twice.

A picture is three kernels of gsplat: `fully_fused_projection`, `isect_tiles` (which lists the Gaussians of each tile,
front to back, and waits once for the device to say how many there are) and `rasterize_to_pixels`, once for every 32
channels. Rows of W are found by `rasterize_to_indices_in_range` (which entries count, by the same rules) and weighed
here (entries.py); votes W^T x are the gradient of a picture by its values.

What differs from the CPU backend: arithmetic is float32 with fast approximations, so that an alpha may fall on the
other side of 1/255 and thin Gaussians are less exact (docs/conventions.md has the tolerances); gradients and votes are
summed by atomics, in another order each time. Rows of W and products with them are the same bits every time.

Inputs may lie anywhere: they are brought to the backend's device, where results are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgc.errors import InputError
from cgc.rasterize.base import NEAR, Contributions, Render
from cgc.rasterize.checks import (
    check_cameras,
    check_finite,
    check_groups,
    check_indices,
    check_pixel_rows,
    check_splats,
    check_values,
    check_weights,
)
from cgc.rasterize.gsplat_code import load_gsplat
from cgc.rasterize.project import DILATION, FAR
from cgc.rasterize.rows import TILE, Keep, Lists, Shown, rows_of_pixels
from cgc.scene.types import Camera
from cgc.splats.types import GEOMETRY, Splats

CHANNELS = 32
"""Channels of one call; gsplat's gradient with more needs more shared memory than many cards have."""
MEMORY_LIMIT = 4 << 30
MOST = 2**31 - 1
"""What gsplat counts in 32 bits: Gaussians of all cameras, pairs (Gaussian, tile), numbers of a picture."""


class _Scene(NamedTuple):
    """Projected Gaussians of C cameras: means2d [C, N, 2], conics [C, N, 3], opacities [N], depths [C, N], radii."""

    means2d: Tensor
    conics: Tensor
    opacities: Tensor
    depths: Tensor
    radii: Tensor


class CudaRasterizer:
    """The `Rasterizer` of a CUDA device, over gsplat; InputError where gsplat's code cannot be had.

    memory_limit: bytes that the entries of one `contributions` may take, and those it works on at once.
    near: world units; Gaussians nearer to a camera's plane than this are not in its picture.
    check: look for NaN and infinite numbers in every input. It costs a pass over them but no wait of its own: the
    answer is read when gsplat waits anyway.
    """

    def __init__(
        self, device: torch.device | str = "cuda", *, memory_limit: int = MEMORY_LIMIT, near: float = NEAR,
        check: bool = True,
    ) -> None:  # fmt: skip
        self.device = torch.device(device)
        self.memory_limit = memory_limit
        self.near = near
        self.check = check
        self._gsplat: Any = load_gsplat()

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
        """See `Rasterizer.render`; absgrad is of one call of gsplat, so of at most 33 channels, depth one of them."""
        n, width, height = len(splats), *self._check_cameras(splats, cameras)
        check_values(values, n, len(cameras), backgrounds, finite=False)
        shown = self._here(values).expand(len(cameras), n, values.shape[-1])
        scene, lists = self._project_and_list(splats, cameras, values=values, backgrounds=backgrounds)
        if depth:
            shown = torch.cat([shown, scene.depths[:, :n, None]], 2)
        if backgrounds is not None:
            backgrounds = self._here(backgrounds).expand(len(cameras), values.shape[-1])
            backgrounds = torch.nn.functional.pad(backgrounds, (0, int(depth)))
        if absgrad and len(_chunks(shown.shape[2])) > 1:
            raise InputError(
                f"gsplat gives absolute gradients of at most {CHANNELS + 1} channels, and {shown.shape[2]} were asked "
                "for; learn features of fewer dimensions, or train with --train.strategy default"
            )
        image, alphas = self._blend(scene, lists, _padded(shown, scene), backgrounds, width, height, absgrad)
        depths = image[..., -1] / alphas.clamp_min(1e-10) if depth else None
        return Render(
            values=image[..., : values.shape[-1]],
            alphas=alphas,
            depths=depths,
            means2d=scene.means2d if n else scene.means2d[:, :0],
            radii=scene.radii[:, :n],
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
        keep = Keep(min_weight, heaviest, dtype, memory_limit=self.memory_limit)
        return self._rows(splats, camera, pixels, keep, len(splats))

    def group_contributions(
        self, splats: Splats, camera: Camera, groups: Tensor, pixels: Tensor | None = None
    ) -> Contributions:
        """See `GroupRasterizer.group_contributions`; a row's groups come by rising number."""
        check_groups(groups, len(splats))
        keep = Keep(groups=groups.detach().to(self.device, torch.int64), memory_limit=self.memory_limit)
        made = self._rows(splats, camera, pixels, keep, int(groups.max()) + 1 if len(groups) else 0)
        return replace(made, remainder=None)

    @torch.no_grad()
    def transpose_product(self, splats: Splats, camera: Camera, x: Tensor) -> Tensor:
        """See `VoteRasterizer.transpose_product`: one picture and its gradient for every 32 columns of x."""
        width, height = self._check_cameras(splats, [camera])
        check_pixel_rows(x, camera)
        scene, lists = self._project_and_list(splats, [camera], x=x)
        upstream = self._here(x.detach()).reshape(1, height, width, -1)
        made = [upstream.new_zeros(1, scene.depths.shape[1], 0)]
        for begin, end in _chunks(x.shape[1]):
            values = upstream.new_zeros(1, scene.depths.shape[1], end - begin).requires_grad_()
            with torch.enable_grad():
                image, _ = self._blend(scene, lists, values, None, width, height)
                made += torch.autograd.grad(image, values, upstream[..., begin:end])
        return torch.cat(made, 2)[0, : len(splats)]

    # --- the parts ------------------------------------------------------------------------------------------

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, torch.float32, non_blocking=True)

    def _check_cameras(self, splats: Splats, cameras: Sequence[Camera]) -> tuple[int, int]:
        """Check all but for finite numbers; return the width and height of the pictures."""
        check_splats(splats, finite=False)
        check_cameras(cameras, finite=False)
        width, height = cameras[0].width, cameras[0].height
        if max(len(splats), width * height) * (CHANNELS + 1) * len(cameras) > 2 * MOST:
            raise InputError(
                f"{len(cameras)} cameras of {width} x {height} pixels and {len(splats):,} Gaussians are more than "
                "gsplat counts in one call; render fewer cameras at once, or smaller pictures"
            )
        return width, height

    def _project_and_list(
        self, splats: Splats, cameras: Sequence[Camera], **more: Tensor | None
    ) -> tuple[_Scene, Lists]:
        """Project, and list the Gaussians of each tile; `more` inputs are checked with the splats."""
        given: dict[str, Tensor] = {name: getattr(splats, name) for name in GEOMETRY}
        viewmats, Ks = (torch.stack([self._here(getattr(c, name)) for c in cameras]) for name in ("viewmat", "K"))
        given |= {"viewmat": viewmats, "K": Ks} | {name: t for name, t in more.items() if t is not None}
        told = _finite(given, self.device) if self.check else None
        scene = self._project(splats, viewmats, Ks, cameras[0].width, cameras[0].height)
        lists = self._list(scene, cameras[0].width, cameras[0].height)
        if told is not None and not bool(told):  # it has come: listing has waited for the device
            for name, tensor in given.items():
                check_finite(name, tensor)
        return scene, lists

    def _project(self, splats: Splats, viewmats: Tensor, Ks: Tensor, width: int, height: int) -> _Scene:
        means, quats, log_scales, logits = (self._here(getattr(splats, name)) for name in GEOMETRY)
        scales, opacities = log_scales.exp(), logits.sigmoid()
        if not len(splats):  # gsplat divides by their number: one that is not seen stands for none
            given = (means, quats, scales, opacities)
            means, quats, scales, opacities = (torch.cat([t, t.new_zeros(1, *t.shape[1:])]) for t in given)
        zero = (quats == 0).all(1, keepdim=True)  # gsplat divides by the norm; here it is the identity
        quats = torch.where(zero, torch.nn.functional.pad(zero.to(quats.dtype), (0, 3)), quats)
        radii, means2d, depths, conics, _ = self._gsplat.fully_fused_projection(
            means, None, quats, scales, viewmats, Ks, width, height, eps2d=DILATION, near_plane=self.near,
            far_plane=FAR, opacities=opacities.detach(),
        )  # fmt: skip
        seen = (radii > 0).all(2, keepdim=True)  # what is not seen is not written
        return _Scene(torch.where(seen, means2d, 0.0), conics, opacities, depths, radii)

    def _list(self, scene: _Scene, width: int, height: int) -> Lists:
        tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
        n_images = len(scene.depths)
        args = (scene.means2d, scene.radii, scene.depths, TILE, tiles_x, tiles_y)
        _, keys, ids = self._gsplat.isect_tiles(*(a.detach() if isinstance(a, Tensor) else a for a in args))
        if len(ids) > MOST:
            raise InputError(
                f"the picture has {len(ids):,} pairs of a Gaussian and a tile, more than gsplat counts; render fewer "
                "cameras at once, smaller pictures, or fewer Gaussians"
            )
        return Lists(self._gsplat.isect_offset_encode(keys, n_images, tiles_x, tiles_y), ids)

    def _blend(
        self, scene: _Scene, lists: Lists, shown: Tensor, backgrounds: Tensor | None, width: int, height: int,
        absgrad: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Blend shown [C, N, D]; returns [C, H, W, D] and alphas [C, H, W]."""
        opacities = scene.opacities.expand(shown.shape[:2])
        images, alphas = [], []
        for begin, end in _chunks(shown.shape[2]) or [(0, 0)]:
            part = shown[..., begin:end] if end else shown.new_zeros(*shown.shape[:2], 1)
            image, alpha = self._gsplat.rasterize_to_pixels(
                scene.means2d, scene.conics, part, opacities, width, height, TILE, lists.offsets, lists.ids,
                backgrounds=backgrounds[:, begin:end] if backgrounds is not None and end else None, absgrad=absgrad,
            )  # fmt: skip
            images.append(image[..., : end - begin])
            alphas.append(alpha[..., 0])
        return images[0] if len(images) == 1 else torch.cat(images, 3), alphas[0]

    @torch.no_grad()
    def _rows(self, splats: Splats, camera: Camera, pixels: Tensor | None, keep: Keep, columns: int) -> Contributions:
        width, height = self._check_cameras(splats, [camera])
        if pixels is not None:
            check_indices("pixels", pixels, width * height)
            pixels = pixels.detach().to(self.device, torch.int64)
        scene, lists = self._project_and_list(splats, [camera])
        shown = Shown(scene.means2d, scene.conics, scene.opacities, lists, width, height)
        indptr, ids, weights, left_out = rows_of_pixels(self._gsplat, shown, pixels, keep)
        if pixels is None:
            pixels = torch.arange(width * height, device=self.device)
        return Contributions(indptr, ids, weights, pixels, width, height, columns, remainder=left_out)


def _chunks(channels: int) -> list[tuple[int, int]]:
    """Cut channels into calls of 32; one of 33 is made at once, as gsplat has a kernel for it."""
    if channels == CHANNELS + 1:
        return [(0, channels)]
    return [(begin, min(begin + CHANNELS, channels)) for begin in range(0, channels, CHANNELS)]


def _padded(shown: Tensor, scene: _Scene) -> Tensor:
    """Return shown [C, N, D] with a row for the Gaussian that stands for none."""
    missing = scene.depths.shape[1] - shown.shape[1]
    return torch.nn.functional.pad(shown, (0, 0, 0, missing)) if missing else shown


def _finite(tensors: dict[str, Tensor], device: torch.device) -> Tensor:
    """Say whether all sums are finite, [] on the CPU; on a GPU it is there once the device was waited for."""
    sums = [t.detach().sum(dtype=torch.float32).to(device, non_blocking=True) for t in tensors.values()]
    return torch.stack(sums).isfinite().all().to("cpu", non_blocking=True)
