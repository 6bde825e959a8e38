"""The first Gaussians of a training: on the points of the model, or anywhere where it has none.

As in 3D Gaussian Splatting (arXiv 2308.04079, section 5.1): a Gaussian a point, round, as wide as the
distance to its neighbours, in the point's colour from every side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from cgc.errors import InputError
from cgc.geometry import rgb_to_sh_dc
from cgc.splats.types import Splats

NEIGHBOURS = 3
MIN_SCALE = 1e-5
"""Smallest first standard deviation, times the extent."""
MAX_SCALE = 0.1
"""Largest first standard deviation, times the extent: far, lone points do not cover the scene."""
CUBE = 3.0
"""Half side of the cube of random Gaussians, times the extent: what the cameras look at is inside."""


def splats_from_points(
    points: np.ndarray,
    colors: np.ndarray,
    *,
    sh_degree: int,
    opacity: float,
    extent: float,
    generator: torch.Generator | None = None,
    max_points: int | None = None,
) -> Splats:
    """Make a Gaussian of every point: `points` [M, 3] world units, `colors` [M, 3] uint8.

    `opacity` in (0, 1); `extent` is the scene's, world units. With more than `max_points` points a random
    subset, drawn by `generator`, is used. Raise InputError for no points, or points that are not finite.
    """
    points = np.asarray(points, np.float64)
    colors = np.asarray(colors)
    if len(points) == 0:
        raise InputError("the model has no 3D points to start from; start from random Gaussians instead")
    broken = int((~np.isfinite(points).all(axis=1)).sum())
    if broken:
        raise InputError(f"{broken:,} of {len(points):,} points of the model are NaN or infinite; make the model again")
    if max_points is not None and len(points) > max_points:
        picked = torch.randperm(len(points), generator=generator)[:max_points].sort().values.numpy()
        points, colors = points[picked], colors[picked]
    scales = np.clip(_neighbour_distance(points), MIN_SCALE * extent, MAX_SCALE * extent)  # [M]
    rgb = torch.from_numpy(colors.astype(np.float32) / 255.0)
    return round_splats(
        torch.from_numpy(points.astype(np.float32)),
        torch.from_numpy(np.log(scales).astype(np.float32)),
        rgb,
        sh_degree=sh_degree,
        opacity=opacity,
    )


def random_splats(
    n: int,
    scene_centre: Sequence[float] | np.ndarray | Tensor,
    extent: float,
    *,
    sh_degree: int,
    opacity: float,
    generator: torch.Generator | None = None,
) -> Splats:
    """Make `n` Gaussians of random colour, uniform in a cube about `scene_centre` [3] (the mean camera).

    The cube's half side is CUBE times the extent (the radius of the camera centres): cameras inside or around
    their subject have it in the cube either way.
    """
    centre = np.asarray(scene_centre, np.float64)
    unit = torch.rand(n, 3, generator=generator, dtype=torch.float64).numpy()
    colors = torch.randint(0, 256, (n, 3), generator=generator, dtype=torch.uint8).numpy()
    points = centre + (2 * unit - 1) * CUBE * extent
    return splats_from_points(points, colors, sh_degree=sh_degree, opacity=opacity, extent=extent)


def _neighbour_distance(points: np.ndarray) -> np.ndarray:
    """Mean distance to the nearest neighbours (as many as there are; infinite for a lone point), [M]."""
    k = min(NEIGHBOURS + 1, len(points))  # the nearest of all is the point itself
    if k == 1:
        return np.full(len(points), np.inf)
    distances, _ = KDTree(points).query(points, k=k)
    return distances[:, 1:].mean(axis=1)


def round_splats(means: Tensor, log_scale: Tensor, rgb: Tensor, *, sh_degree: int, opacity: float) -> Splats:
    """Return isotropic Gaussians at `means` [N, 3] with `log_scale` [N] that show `rgb` [N, 3] from every side."""
    n = len(means)
    sh = means.new_zeros(n, (sh_degree + 1) ** 2, 3)
    sh[:, 0] = rgb_to_sh_dc(rgb)
    quats = means.new_zeros(n, 4)
    quats[:, 0] = 1.0
    logit = math.log(opacity / (1.0 - opacity))
    return Splats(means, quats, log_scale[:, None].repeat(1, 3), means.new_full((n,), logit), sh)
