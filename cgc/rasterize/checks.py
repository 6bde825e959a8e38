"""What every backend refuses: shapes that disagree, NaN or infinite numbers, images of zero size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cgc.errors import InputError
from cgc.scene.types import Camera
from cgc.splats.types import Splats


def check_splats(splats: Splats) -> None:
    """Raise ValueError unless the geometry of `splats` has its shapes and is finite."""
    n = len(splats)
    shapes = {"means": [n, 3], "quats": [n, 4], "log_scales": [n, 3], "logit_opacities": [n]}
    for name, shape in shapes.items():
        tensor = getattr(splats, name)
        if list(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape} for {n} Gaussians, got {list(tensor.shape)}")
        check_finite(name, tensor)


def check_cameras(cameras: Sequence[Camera]) -> None:
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
            check_finite(name, matrix)


def check_values(values: Tensor, n: int, cameras: int, backgrounds: Tensor | None) -> None:
    """Raise ValueError unless `values` and `backgrounds` fit N Gaussians and C cameras and are finite."""
    if values.ndim not in (2, 3) or list(values.shape[:-1]) not in ([n], [cameras, n]):
        raise ValueError(
            f"values must be [{n}, D] or [{cameras}, {n}, D] for {n} Gaussians and {cameras} cameras, "
            f"got {list(values.shape)}"
        )
    check_finite("values", values)
    if backgrounds is not None:
        channels = values.shape[-1]
        if list(backgrounds.shape) not in ([channels], [cameras, channels]):
            raise ValueError(
                f"backgrounds must be [{channels}] or [{cameras}, {channels}] for {channels} channels and "
                f"{cameras} cameras, got {list(backgrounds.shape)}"
            )
        check_finite("backgrounds", backgrounds)


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


def check_groups(groups: np.ndarray, n: int) -> None:
    """Raise ValueError unless `groups` gives each of N Gaussians a whole number from 0."""
    if groups.shape != (n,) or not np.issubdtype(groups.dtype, np.integer):
        got = f"{list(groups.shape)} of {groups.dtype}"
        raise ValueError(f"groups must be a whole number for each of {n} Gaussians, got {got}")
    if n and groups.min() < 0:
        raise ValueError(f"groups must be numbered from 0, got {groups.min()}")


def check_indices(name: str, indices: Tensor, end: int) -> None:
    """Raise ValueError unless `indices` is a list of whole numbers from 0 to `end` - 1."""
    whole = not (indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool)
    if indices.ndim != 1 or not whole:
        got = f"{list(indices.shape)} of {indices.dtype}"
        raise ValueError(f"{name} must be a list of whole numbers, got {got}")
    if len(indices):
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= end:
            raise ValueError(f"{name} must lie in 0 to {end - 1}, got {low} to {high}")
