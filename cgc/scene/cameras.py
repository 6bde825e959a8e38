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
        return checked(made)
    except InputError as error:
        raise ValueError(f"{row['name']}: {error}") from error


def checked(camera: Camera) -> Camera:
    """Return a camera with float32 tensors; InputError where it is none that a picture could be made by."""
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
