"""What cameras have in common; and cameras in a file of their own, for where the photos and their model are gone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgc.errors import InputError
from cgc.files import read_json, write_json
from cgc.scene.types import Camera

FORMAT = 1
LARGEST_SIDE = 1 << 17  # pixels
OFF_ROTATION = 1e-2  # R R^T of a pose may differ from 1 by this: poses are written with few digits
SHORTEST_FOCAL = 3.0  # pixels: less, in a picture that is over five times as wide, is in shares of it
FARTHEST_CENTRE = 4.0  # times the picture's size: how far the principal point may lie beside it, of a tile say
CONVENTION = (
    "cameras here are OpenCV's (x right, y down, z forward): viewmat is cam_from_world, a rotation and a translation "
    "over the row 0 0 0 1, and K has fx 0 cx, 0 fy cy, 0 0 1 in pixels of the picture"
)
UPRIGHT = 0.1  # of 1: a shorter mean of unit directions has none
Z = np.array([0.0, 0.0, 1.0])
"""What is up where nothing else is known."""


def up_of(cameras: Iterable[Camera]) -> np.ndarray | None:
    """Return the mean of what is up in pictures, a unit direction [3]; None where there are none, or they disagree."""
    ups = [-camera.viewmat[1, :3].double().cpu().numpy() for camera in cameras]
    mean = np.mean(ups, axis=0) if ups else np.zeros(3)
    length = float(np.linalg.norm(mean))
    return mean / length if length > UPRIGHT else None


def project(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where points [n, 3] are in a picture, x and y in pixels, and how far before the camera, z; [n] each.

    Of what lies behind the camera x and y mean nothing.
    """
    view, K = camera.viewmat.cpu().numpy().astype(float), camera.K.cpu().numpy().astype(float)
    at = points @ view[:3, :3].T + view[:3, 3]
    z = np.where(at[:, 2] > 0, at[:, 2], np.inf)
    return K[0, 0] * at[:, 0] / z + K[0, 2], K[1, 1] * at[:, 1] / z + K[1, 2], at[:, 2]


def in_view(camera: Camera, points: np.ndarray) -> np.ndarray:
    """Say which points [P, 3] lie in the picture of a camera, hidden or not, [P]."""
    x, y, z = project(camera, points)
    return (z > 0) & (x > 0) & (x < camera.width) & (y > 0) & (y < camera.height)


def write_cameras(path: Path, cameras: Mapping[str, Camera]) -> None:
    """Write cameras by name as JSON, to the bit."""
    views = [
        {"name": name, "width": c.width, "height": c.height, "K": c.K.tolist(), "viewmat": c.viewmat.tolist()}
        for name, c in cameras.items()
    ]
    write_json(path, {"format": FORMAT, "views": views})


def read_camera_file(path: Path) -> dict[str, Camera]:
    """Read what `write_cameras` wrote; InputError where it is missing or broken."""
    value = read_json(path, "the file of cameras")
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {value['format']} where {FORMAT} was expected")
        return {str(row["name"]): _camera(row) for row in value["views"]}
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{path} is broken ({error}); remove it, or render again") from error


def _camera(row: Mapping[str, Any]) -> Camera:
    made = Camera(row["viewmat"], row["K"], row["width"], row["height"])
    try:
        return _well_formed(made)
    except InputError as error:
        raise ValueError(f"{row['name']}: {error}") from error


def checked(camera: Camera) -> Camera:
    """Return a camera with float32 tensors; InputError where no picture could be made by it, or it follows other rules.

    What cannot be told is world_from_cam in place of cam_from_world, and other axes: they are rotations too.
    """
    camera = _well_formed(camera)
    if camera.K.device.type == camera.viewmat.device.type == "cpu" and (wrong := _unlike(camera)):
        raise InputError(f"{wrong}; {CONVENTION}")
    return camera


def _unlike(camera: Camera) -> str:
    """Say what shows that a camera is of another convention; nothing where that cannot be told."""
    view, K = (matrix.detach().numpy().astype(float) for matrix in (camera.viewmat, camera.K))
    width, height, R = camera.width, camera.height, view[:3, :3]
    off, det = np.abs(R @ R.T - np.eye(3)).max(), np.linalg.det(R)
    if np.abs(view[3] - (0, 0, 0, 1)).max() > 1e-3:
        return f"the last row of a camera's viewmat is {_row(view[3])}: it may be transposed or scaled"
    if det < 0 or off > OFF_ROTATION:
        return f"a camera's viewmat is scaled, sheared or mirrored: R R^T is off by {off:.2g}, det R is {det:.2g}"
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    if np.abs([*(K[2] - (0, 0, 1)), K[1, 0] / fy, K[0, 1] / fx]).max() > 1e-3:
        return f"the rows of a camera's K are {', '.join(map(_row, K))}: it may be transposed"
    if min(fx - min(SHORTEST_FOCAL, width / 16), fy - min(SHORTEST_FOCAL, height / 16)) < 0:
        return f"the focal lengths {fx:g} and {fy:g} came for a picture of {width}x{height}: K may be in shares of it"
    if max(abs(cx / width - 0.5), abs(cy / height - 0.5)) > 0.5 + FARTHEST_CENTRE:
        return f"the principal point {cx:g}, {cy:g} came for a picture of {width}x{height}: K may be of another size"
    return ""


def _row(values: np.ndarray) -> str:
    return " ".join(f"{value:g}" for value in values)


def _well_formed(camera: Camera) -> Camera:
    """Return a camera with float32 tensors of the right shapes and finite; InputError where they are not."""
    try:
        viewmat, K = (torch.as_tensor(x, dtype=torch.float32) for x in (camera.viewmat, camera.K))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("a camera's viewmat and K are a 4x4 and a 3x3 matrix of numbers; give such") from error
    sides = camera.width, camera.height
    if K.shape != (3, 3) or viewmat.shape != (4, 4):
        raise InputError(
            f"a camera's viewmat and K are a 4x4 and a 3x3 matrix, got {list(viewmat.shape)} and {list(K.shape)}"
        )
    if not all(isinstance(side, (int, np.integer)) and 0 < side < LARGEST_SIDE for side in sides):
        raise InputError(f"a picture of {sides[0]}x{sides[1]} cannot be made; each side is a whole number over 0")
    if K.device.type == viewmat.device.type == "cpu":  # elsewhere that would wait for the device
        if not (K.isfinite().all() and viewmat.isfinite().all()):
            raise InputError("a camera's viewmat and K must be finite; correct them")
        if not (K[0, 0] > 0 and K[1, 1] > 0):
            raise InputError(f"a camera's focal lengths must be over 0, got {K[0, 0]:g} and {K[1, 1]:g} pixels")
    if viewmat is camera.viewmat and K is camera.K:
        return camera
    return Camera(viewmat, K, int(sides[0]), int(sides[1]))
