"""Planes, and cameras that look at them along parallel lines."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage

from cgc.rasterize.base import Rasterizer
from cgc.scene.cameras import project
from cgc.scene.types import Camera
from cgc.splats.types import Splats

FAR = 60.0
"""Cameras that should see along parallel lines are so many radii away."""


class Plane(NamedTuple):
    """A point of it [3], rows u, v and normal n [3, 3], and how far its points are off, world units."""

    origin: np.ndarray
    axes: np.ndarray
    spread: float

    def height(self, points: np.ndarray) -> np.ndarray:
        """Return how far points [n, 3] are over the plane, [n]."""
        return (points - self.origin) @ self.axes[2]

    def below(self, point: np.ndarray) -> np.ndarray:
        """Return the point of the plane that is nearest to a point [3]."""
        return point - self.height(point[None])[0] * self.axes[2]


def fit_plane(points: np.ndarray, towards: np.ndarray) -> Plane:
    """Fit a plane to most of three points or more [n, 3]; its normal is on the side of `towards` [3]."""
    ok = np.ones(len(points), bool)
    origin, axes, spread = points.mean(0), np.eye(3), 0.0
    for _ in range(8):
        origin = points[ok].mean(0)
        axes = np.linalg.eigh(np.cov(points[ok].T))[1].T[::-1]  # rows by falling extent
        height = (points - origin) @ axes[2]
        spread = 1.4826 * float(np.median(np.abs(height[ok])))
        ok = np.abs(height) <= max(2.5 * spread, 1e-9)
        if ok.sum() < 3:
            break
    n = axes[2] if (towards - origin) @ axes[2] > 0 else -axes[2]
    return Plane(origin, np.stack([axes[0], np.cross(n, axes[0]), n]), spread)


def ball_of(splats: Splats) -> tuple[np.ndarray, float]:
    """Return the middle [3] and the radius of a ball around nearly all of an object."""
    means = splats.means.cpu().numpy().astype(float)
    low, high = np.quantile(means, 0.01, axis=0), np.quantile(means, 0.99, axis=0)
    return (low + high) / 2, max(0.6 * float(np.linalg.norm(high - low)), 1e-6)


def camera_along(centre: np.ndarray, direction: np.ndarray, up: np.ndarray, radius: float, side: int) -> Camera:
    """Return a camera far away in a direction that sees a ball of a radius, `side` pixels wide."""
    eye = centre + FAR * radius * direction
    return Camera.look_at(eye.tolist(), centre.tolist(), width=side, height=side, focal=side * FAR / 2, up=up.tolist())


def alpha_of(splats: Splats, camera: Camera, rasterizer: Rasterizer) -> np.ndarray:
    """Return how opaque splats are in a picture, [H, W]."""
    ones = torch.ones(len(splats), 1, device=splats.means.device)
    return rasterizer.render(splats, ones, [camera]).values[0, ..., 0].cpu().numpy().astype(float)


def sample(picture: np.ndarray, camera: Camera, points: np.ndarray) -> np.ndarray:
    """Return what a picture [H, W] shows of points [n, 3], 0 outside, [n]."""
    x, y, _ = project(camera, points)
    return ndimage.map_coordinates(picture, [y - 0.5, x - 0.5], order=1, mode="constant")


def points_of(camera: Camera, plane: Plane, where: np.ndarray) -> np.ndarray:
    """Return the points [n, 3] of a plane that are in the middles of the pixels `where` [H, W] of a camera above it."""
    y, x = np.nonzero(where)
    view, K = camera.viewmat.cpu().numpy().astype(float), camera.K.cpu().numpy().astype(float)
    rays = np.stack([(x + 0.5 - K[0, 2]) / K[0, 0], (y + 0.5 - K[1, 2]) / K[1, 1], np.ones(len(x))], 1) @ view[:3, :3]
    eye = -view[:3, :3].T @ view[:3, 3]
    return eye - (plane.height(eye[None])[0] / (rays @ plane.axes[2]))[:, None] * rays
