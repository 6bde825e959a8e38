"""Cameras a viewer looks through: those of the views, those on a circle, at any size; and what they project to."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import torch

from cgc.errors import InputError
from cgc.geometry import quat_to_rotation
from cgc.scene import cameras
from cgc.scene.cameras import up_of
from cgc.scene.types import Camera
from cgc.segmentation.objects import Object, Selection
from cgc.segmentation.orbit import orbit
from cgc.segmentation.pictures import ViewOrCamera, camera_of
from cgc.segmentation.segmentation import Segmentation

Size = tuple[int, int]
"""Width and height in pixels."""

ORBIT = "orbit"
DEFAULT_SIZE: Size = (1280, 720)
LARGEST_SIDE = 8192
CIRCLE = 72
"""Cameras on a circle that the one nearest to a photo is chosen from."""


def parse_size(text: str) -> Size:
    """Read "1280x720"; InputError where it is no size, or one too large to draw."""
    found = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", text)
    if not found:
        raise InputError(f"the size {text!r} is none; give the width and the height in pixels, as in 1280x720")
    return check_size((int(found[1]), int(found[2])))


def check_size(size: Size) -> Size:
    """Return a size; InputError where a side is not in 1 to LARGEST_SIDE."""
    if np.shape(size) != (2,) or not all(isinstance(side, (int, np.integer)) for side in size):
        raise InputError(f"the size {size!r} is none; give the width and the height in pixels, as in (1280, 720)")
    if not all(1 <= side <= LARGEST_SIDE for side in size):
        raise InputError(
            f"a picture of {size[0]}x{size[1]} cannot be drawn; each side must be from 1 to {LARGEST_SIDE} pixels"
        )
    return size


def fit(camera: Camera, size: Size) -> Camera:
    """Return the camera for an image of another size, its pixels as square as they were: all it sees stays in sight."""
    width, height = check_size(size)
    scale = min(width / camera.width, height / camera.height)
    K = camera.K.clone()
    K[:2] *= scale
    K[0, 2] += (width - scale * camera.width) / 2
    K[1, 2] += (height - scale * camera.height) / 2
    return replace(camera, K=K, width=width, height=height)


def camera_named(segmentation: Segmentation, name: ViewOrCamera, size: Size | None = None) -> Camera:
    """Return the camera of a view by its name, or one on a circle: "orbit", "orbit:90" (degrees further on).

    A camera is taken as it is. size: None is the view's own, and DEFAULT_SIZE on a circle.
    """
    found = re.fullmatch(rf"{ORBIT}(?::(.*))?", name) if isinstance(name, str) else None
    if not found:
        camera = _view(segmentation, name)
        return camera if size is None else fit(camera, size)
    try:
        turn = float(0 if found[1] is None else found[1])
    except ValueError:
        turn = math.nan
    if not math.isfinite(turn):
        raise InputError(f"{name!r} is no place on a circle; give orbit, or orbit:90 for a quarter further on")
    return around(segmentation, turn, check_size(size or DEFAULT_SIZE))


def _view(segmentation: Segmentation, name: ViewOrCamera) -> Camera:
    try:
        return camera_of(segmentation, name)
    except InputError as error:
        raise InputError(f"{error}, or take {ORBIT}") from error


def around(thing: Segmentation | Object | Selection, turn: float, size: Size) -> Camera:
    """Return a camera on a circle around an object, a selection or a scene, `turn` degrees from where a photo is near.

    Around a scene the circle goes through its views, so that what they saw is seen: a room from inside of it.
    """
    width, height = size
    seg = thing if isinstance(thing, Segmentation) else thing.segmentation
    views = seg.context.known_cameras
    if isinstance(thing, Segmentation) and (ring := _ring(views)):
        return _on_ring(ring, views, turn, size)
    circle = orbit(thing, CIRCLE, elevation=25, width=width, height=height)
    first = 0
    if views:
        centre = _looked_at(circle)
        ways = np.stack([_unit(c.position.double().numpy() - centre) for c in circle])
        seen = np.stack([_unit(v.position.double().numpy() - centre) for v in views])
        first = int((ways @ seen.T).max(axis=1).argmax())
    return circle[(first + round(turn * CIRCLE / 360)) % CIRCLE]


def _ring(views: list[Camera]) -> tuple[np.ndarray, np.ndarray] | None:
    """The point that views look at and the direction that is up for them; None where they do not look at one point."""
    if len(views) < 3:
        return None
    centre = _looked_at(views)
    ahead = [(c.viewmat[:3, :3].double().numpy() @ centre + c.viewmat[:3, 3].double().numpy())[2] for c in views]
    up = up_of(views)
    return None if up is None or not (np.array(ahead) > 0).all() else (centre, up)


def _looked_at(cameras: list[Camera]) -> np.ndarray:
    """The point that is nearest to the axes of cameras, [3], in the least squares."""
    eyes = np.stack([c.position.double().numpy() for c in cameras])
    axes = np.stack([c.viewmat[2, :3].double().numpy() for c in cameras])
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # [C, 3, 3], what is off an axis
    return np.linalg.lstsq(across.sum(0), np.einsum("cij,cj->i", across, eyes), rcond=None)[0]


def _on_ring(ring: tuple[np.ndarray, np.ndarray], views: list[Camera], turn: float, size: Size) -> Camera:
    """A camera as far from the middle and as high as half of the views are, starting where the first of them is."""
    centre, up = ring
    arms = np.stack([c.position.double().numpy() for c in views]) - centre
    rise = float(np.median(arms @ up))
    flat = arms - np.outer(arms @ up, up)
    reach = float(np.median(np.linalg.norm(flat, axis=1)))
    first = _unit(flat[0]) if np.linalg.norm(flat[0]) > 1e-9 else _unit(np.cross(up, np.eye(3)[np.abs(up).argmin()]))
    angle = math.radians(turn)
    way = math.cos(angle) * first + math.sin(angle) * np.cross(up, first)
    eye = centre + reach * way + rise * up
    made = Camera.look_at(eye.tolist(), centre.tolist(), width=size[0], height=size[1], up=up.tolist())
    K = fit(views[0], size).K.clone()
    K[0, 2], K[1, 2] = size[0] / 2, size[1] / 2
    return replace(made, K=K)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / max(float(np.linalg.norm(v)), 1e-12)


def project(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project points [P, 3] to pixels [P, 2] and depths [P] along the camera's axis; behind it pixels mean nothing."""
    x, y, z = cameras.project(camera, np.asarray(points, float))
    return np.stack([x, y], 1), z


def clip_segment(camera: Camera, a: np.ndarray, b: np.ndarray, near: float) -> np.ndarray | None:
    """Project the line from a to b [3], cut off where it comes nearer than `near`, [2, 2]; None: all of it does."""
    ends = np.stack([a, b]).astype(float)
    _, z = project(camera, ends)
    if (z < near).all():
        return None
    if (z < near).any():
        share = (near - z[0]) / (z[1] - z[0])
        ends[int(z[1] < near)] = ends[0] + share * (ends[1] - ends[0])
    return project(camera, ends)[0]


def ray(camera: Camera, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """The origin and unit direction [3] of the ray through the middle of a pixel."""
    K = camera.K.double()
    local = torch.linalg.solve(K, torch.tensor([math.floor(x) + 0.5, math.floor(y) + 0.5, 1.0], dtype=torch.float64))
    way = camera.viewmat[:3, :3].double().T @ local
    return camera.position.double().numpy(), _unit(way.numpy())


# --- OpenGL -----------------------------------------------------------------------------------------------
# OpenGL's camera axes are +x right, +y up, +z back; its clip space goes from -1 to 1, +y up

_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def from_gl(view: np.ndarray, projection: np.ndarray, size: Size) -> Camera:
    """Return the camera of OpenGL's view matrix (eye_from_world) and projection matrix [4, 4], for a viewport."""
    width, height = check_size(size)
    p = np.asarray(projection, float)
    K = np.array(
        [
            [p[0, 0] * width / 2, 0, (1 - p[0, 2]) * width / 2],
            [0, p[1, 1] * height / 2, (1 + p[1, 2]) * height / 2],
            [0, 0, 1],
        ]
    )
    viewmat = _FLIP @ np.asarray(view, float)
    return Camera(torch.from_numpy(viewmat).float(), torch.from_numpy(K).float(), width, height)


def vertical_fov(camera: Camera) -> float:
    """The angle that a camera sees from top to bottom, in degrees, had it its middle in the middle."""
    return math.degrees(2 * math.atan(camera.height / (2 * float(camera.K[1, 1]))))


def from_pose(wxyz: np.ndarray, position: np.ndarray, fov: float, size: Size) -> Camera:
    """Return the camera at a position, turned by world_from_camera; `fov` from top to bottom, in radians."""
    width, height = check_size(size)
    turn = quat_to_rotation(torch.from_numpy(np.asarray(wxyz, float))).T
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3] = turn
    viewmat[:3, 3] = -turn @ torch.from_numpy(np.asarray(position, float))
    focal = height / (2 * math.tan(fov / 2))
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return Camera(viewmat.float(), K.float(), width, height)


def focus(segmentation: Segmentation) -> np.ndarray:
    """The point to turn a scene around, [3]: what its views look at; the middle of its objects where there are none."""
    ring = _ring(segmentation.context.known_cameras)
    if ring is not None:
        return ring[0]
    means = segmentation.splats.means.detach().cpu().numpy().astype(float)
    inside = means[segmentation.labels > 0]
    return np.median(inside if len(inside) else means, axis=0)
