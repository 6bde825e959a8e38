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
UPRIGHT = 0.1  # of 1: a shorter mean of unit directions has none
Z = np.array([0.0, 0.0, 1.0])
"""What is up where nothing else is known."""


def up_of(cameras: Iterable[Camera]) -> np.ndarray | None:
    """Return the mean of what is up in pictures, a unit direction [3]; None where there are none, or they disagree."""
    ups = [-camera.viewmat[1, :3].double().cpu().numpy() for camera in cameras]
    mean = np.mean(ups, axis=0) if ups else np.zeros(3)
    length = float(np.linalg.norm(mean))
    return mean / length if length > UPRIGHT else None


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
    K, viewmat = (torch.tensor(row[name], dtype=torch.float32) for name in ("K", "viewmat"))
    width, height = row["width"], row["height"]
    if K.shape != (3, 3) or viewmat.shape != (4, 4) or not (K.isfinite().all() and viewmat.isfinite().all()):
        raise ValueError(f"the matrices of {row['name']} are not finite ones of 3x3 and 4x4")
    if not all(isinstance(side, int) and 0 < side < 1 << 17 for side in (width, height)):
        raise ValueError(f"the image of {row['name']} is {width}x{height}")
    return Camera(viewmat, K, width, height)
