"""Far Gaussians to start from, where photos show what no point of the model is near: sky, and hills too far off.

Structure from motion has no points there. Without Gaussians that are far, training explains the sky by haze before its
cameras, which other views then look into. So directions all around are tried. One is far where most views that look
there have no point near it and agree on its colour: of near things without points, views that look in one direction see
different places. Where too few views look to tell, it is as the directions beside it are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import KDTree

from cgc.appearance.photos import Photo
from cgc.scene.cameras import project
from cgc.scene.types import Camera, Scene
from cgc.splats.init import round_splats
from cgc.splats.types import Splats

DISTANCE = 50.0
"""How far away they are, times the extent: from one camera to the other they hardly move."""
MOST_POINTS = 100_000
"""Points that are looked at, at most, evenly of the model's."""
CELL = 0.5
"""Pictures are looked at in cells of so much of the spacing of directions; a point is near in its cell or beside it."""
COVERED = 0.5
"""Points are near a far direction in less than this share of the views that look there ..."""
LOOKS, AGREE, ALIKE = 3, 0.6, 0.1
"""... of which so many at least, and this share, see its median colour, give or take so much of a channel's range."""
BESIDE = 2.0
"""Directions that fewer views look at are far beside one that is, times the spacing."""


def backdrop(scene: Scene, photos: Mapping[int, Photo], directions: int, *, sh_degree: int, opacity: float) -> Splats:
    """Make a far Gaussian of each of so many evenly spread `directions` that is far, in the median colour of its views.

    `photos` are those of some of the scene's views, of any size, on the host. Where none of them sees a point there is
    none: the model is not of these cameras then, and training says so.
    """
    ways = spread(directions)  # [D, 3]
    spacing = math.sqrt(4 * math.pi / directions)  # radians
    colors = np.full((len(photos), directions, 3), np.nan, np.float32)
    covered, seen_points = np.zeros((len(photos), directions), bool), 0
    points = scene.points[:: 1 + len(scene.points) // MOST_POINTS].astype(float)  # [P, 3]
    for row, photo in enumerate(photos.values()):
        camera = photo.camera
        side = max(1.0, CELL * spacing * float(camera.K[0, 0]))  # pixels
        columns, rows = max(1, round(camera.width / side)), max(1, round(camera.height / side))
        small = photo.shrunk(columns, rows)
        view = camera.resized(columns, rows)
        filled = np.zeros((rows, columns), bool)
        y, x, _ = _pixels(view, points)
        filled[y, x] = True
        if small.shape[2] == 4:
            filled |= small[..., 3] < 128  # there is nothing to be far
        seen_points += len(y)
        near = ndimage.binary_dilation(filled, np.ones((3, 3), bool))
        y, x, seen = _pixels(view, ways + view.position.double().numpy())  # as if they began at the camera
        colors[row, seen], covered[row, seen] = small[y, x, :3], near[y, x]
    looks = np.isfinite(colors[..., 0]).sum(axis=0)
    bare = np.flatnonzero((seen_points > 0) & (looks > 0) & (covered.sum(axis=0) < COVERED * looks))
    shown = np.nanmedian(colors[:, bare], axis=0) if len(bare) else np.zeros((0, 3), np.float32)  # [B, 3]
    alike = (np.abs(colors[:, bare] - shown).max(axis=2) < ALIKE * 255).sum(axis=0)  # NaN is not
    enough = looks[bare] >= LOOKS
    sure = enough & (alike >= AGREE * looks[bare])
    if sure.any():
        chord = 2 * math.sin(BESIDE * spacing / 2)
        sure |= ~enough & (KDTree(ways[bare[sure]]).query(ways[bare])[0] < chord)
    far, shown = bare[sure], shown[sure]
    centre = np.mean([photo.camera.position.double().numpy() for photo in photos.values()], axis=0)
    reach = DISTANCE * scene.extent
    return round_splats(
        torch.from_numpy((centre + reach * ways[far]).astype(np.float32)),
        torch.full((len(far),), math.log(spacing * reach)),
        torch.from_numpy(shown / 255.0),
        sh_degree=sh_degree, opacity=opacity,
    )  # fmt: skip


def spread(count: int) -> np.ndarray:
    """Return directions evenly spread over a sphere, on a spiral of the golden angle, [count, 3] unit vectors."""
    step = np.arange(count) + 0.5
    z, angle = 1 - 2 * step / count, math.pi * (1 + math.sqrt(5)) * step
    across = np.sqrt(1 - z * z)
    return np.stack([across * np.cos(angle), across * np.sin(angle), z], axis=1)


def _pixels(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row and column of those points [P, 3] that a camera has in its picture, and which they are."""
    x, y, z = project(camera, points)
    inside = np.flatnonzero((z > 0) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height))
    return y[inside].astype(int), x[inside].astype(int), inside
