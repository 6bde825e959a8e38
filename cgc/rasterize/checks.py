"""What every backend refuses: shapes that disagree, NaN or infinite numbers, images of zero size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cgc.errors import InputError
from cgc.scene.types import Camera
from cgc.splats.types import GEOMETRY, Splats


def check_splats(splats: Splats, *, finite: bool = True) -> None:
    """Raise ValueError unless the geometry of `splats` has its shapes and is finite."""
    n = len(splats)
    for name, shape in zip(GEOMETRY, ([n, 3], [n, 4], [n, 3], [n])):
        tensor = getattr(splats, name)
        if list(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape} for {n} Gaussians, got {list(tensor.shape)}")
        if finite:
            check_finite(name, tensor)


def check_cameras(cameras: Sequence[Camera], *, finite: bool = True) -> None:
    """Raise ValueError unless there are cameras, of one image size that is not zero, with finite matrices."""
    sizes = sorted({(c.width, c.height) for c in cameras})
    if not sizes:
        raise ValueError("a render needs at least one camera, got none")
    if len(sizes) > 1:
        raise ValueError(f"cameras of one call must share one image size, got {sizes}; call once a size")
    width, height = sizes[0]
    if width < 1 or height < 1:
        raise ValueError(f"an image must be at least 1 x 1 pixels, got {width} x {height}")
    for camera in cameras:
        for name, shape in (("viewmat", [4, 4]), ("K", [3, 3])):
            matrix = getattr(camera, name)
            if list(matrix.shape) != shape:
                raise ValueError(f"{name} of a camera must be {shape}, got {list(matrix.shape)}")
            if finite:
                check_finite(name, matrix)


def check_values(values: Tensor, n: int, cameras: int, backgrounds: Tensor | None, *, finite: bool = True) -> None:
    """Raise ValueError unless `values` and `backgrounds` fit N Gaussians and C cameras and are finite."""
    if values.ndim not in (2, 3) or list(values.shape[:-1]) not in ([n], [cameras, n]):
        raise ValueError(
            f"values must be [{n}, D] or [{cameras}, {n}, D] for {n} Gaussians and {cameras} cameras, "
            f"got {list(values.shape)}"
        )
    if finite:
        check_finite("values", values)
    if backgrounds is not None:
        channels = values.shape[-1]
        if list(backgrounds.shape) not in ([channels], [cameras, channels]):
            raise ValueError(
                f"backgrounds must be [{channels}] or [{cameras}, {channels}] for {channels} channels and "
                f"{cameras} cameras, got {list(backgrounds.shape)}"
            )
        if finite:
            check_finite("backgrounds", backgrounds)


def check_weights(heaviest: int, dtype: torch.dtype) -> None:
    """Raise ValueError unless the weights of `contributions` can be kept so."""
    if heaviest < 0 or dtype not in (torch.float32, torch.float16):
        raise ValueError(f"heaviest >= 0 and dtype float32 or float16 expected, got {heaviest} and {dtype}")


def check_pixel_rows(x: Tensor, camera: Camera) -> None:
    """Raise ValueError unless `x` has a row for each pixel of the camera's image."""
    pixels = camera.width * camera.height
    if x.ndim != 2 or x.shape[0] != pixels:
        raise ValueError(f"x must be [{pixels}, M], a row for each pixel, got {list(x.shape)}")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise InputError that counts the NaN and infinite entries of `tensor`, if it has any."""
    if torch.isfinite(tensor.detach().sum()):  # fast: no temporary; a sum that overflows is looked at again
        return
    nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    if nan or infinite:
        raise InputError(
            f"{name} must be finite, but of its {tensor.numel()} entries {nan} are NaN and {infinite} "
            "infinite; remove them, or lower the learning rate that made them"
        )


def check_groups(groups: Tensor, n: int) -> None:
    """Raise ValueError unless `groups` gives each of N Gaussians a whole number from 0."""
    if groups.shape != (n,) or not _are_whole(groups):
        got = f"{list(groups.shape)} of {str(groups.dtype).removeprefix('torch.')}"
        raise ValueError(f"groups must be a whole number for each of {n} Gaussians, got {got}")
    if n and int(groups.min()) < 0:
        raise ValueError(f"groups must be numbered from 0, got {int(groups.min())}")


def _are_whole(numbers: Tensor) -> bool:
    return not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)


def check_indices(name: str, indices: Tensor, end: int) -> None:
    """Raise ValueError unless `indices` is a list of whole numbers from 0 to `end` - 1."""
    if indices.ndim != 1 or not _are_whole(indices):
        got = f"{list(indices.shape)} of {indices.dtype}"
        raise ValueError(f"{name} must be a list of whole numbers, got {got}")
    if len(indices):
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= end:
            raise ValueError(f"{name} must lie in 0 to {end - 1}, got {low} to {high}")
