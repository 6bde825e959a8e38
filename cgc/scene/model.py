"""What every reader returns: shots (a name, a lens, a pose) and points, before any image is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cgc.errors import InputError
from cgc.scene.cameras import OFF_ROTATION
from cgc.scene.lens import intrinsics
from cgc.scene.types import LEAST_EXTENT, Lens, extent_of

LARGEST = 1e12  # poses and parameters beyond this are damage, and would overflow in float32
FAR_OFF = 1000.0  # times the extent: float32, which splats are kept in, rounds places so far from 0 by 1e-4 of it
DEEPEST = 3
"""How many folders below a scene its model may lie."""


@dataclass(frozen=True)
class Shot:
    """One photo as the model describes it; `viewmat` [4, 4] float64 cam_from_world, OpenCV axes.

    `file`: which of the model's files names it, where it has several that do.
    """

    name: str
    lens: Lens
    viewmat: np.ndarray
    file: Path | None = None


@dataclass(frozen=True)
class Model:
    """Shots, points [M, 3] float64, their colours [M, 3] uint8, the folder names start from, the model's path.

    `notes` say what was decided where it was found and read.
    """

    shots: list[Shot]
    points: np.ndarray
    point_colors: np.ndarray
    images: Path
    path: Path
    notes: tuple[str, ...] = ()


def no_points() -> tuple[np.ndarray, np.ndarray]:
    """Return empty points [0, 3] and colours [0, 3] uint8."""
    return np.zeros((0, 3)), np.zeros((0, 3), np.uint8)


def find_origin(model: Model) -> np.ndarray:
    """Return where the origin of the model's world should be [3]: amid its cameras if they are far off, else 0.

    Numbers are round where that moves it by less than the extent.
    """
    centres = np.stack([-shot.viewmat[:3, :3].T @ shot.viewmat[:3, 3] for shot in model.shots])
    middle, extent = centres.mean(0), extent_of(centres)
    far = np.abs(middle).max() > FAR_OFF * extent > FAR_OFF * LEAST_EXTENT  # cameras in one place tell of no size
    return middle.round(-math.floor(math.log10(extent))) if far else np.zeros(3)


def moved(model: Model, origin: np.ndarray) -> Model:
    """Return the model in a world whose origin is at `origin` [3]."""

    def move(shot: Shot) -> Shot:
        viewmat = shot.viewmat.copy()
        viewmat[:3, 3] += viewmat[:3, :3] @ origin
        return replace(shot, viewmat=viewmat)

    return replace(model, shots=[move(shot) for shot in model.shots], points=model.points - origin)


def check_model(model: Model) -> None:
    """Check views, names, poses and lenses; raise InputError with what is wrong with the first bad one."""
    where = model.path
    if len(model.shots) < 2:
        raise InputError(
            f"{where} has {len(model.shots)} posed views, at least 2 are needed; reconstruct with more photos"
        )
    names = set()
    for shot in model.shots:
        if shot.name in names:
            raise InputError(f"{where} names the image {shot.name!r} twice; every view needs an image of its own")
        names.add(shot.name)
        check_name(shot.name, where)
        _check_pose(shot, where)
        _check_lens(shot, where)


def parts_of(name: str) -> list[str]:
    """Return the folders of a name and its last part, whichever system has written it."""
    return name.replace("\\", "/").split("/")


def is_inside(name: str) -> bool:
    """Say whether a name leads to a file inside the folder that it is relative to."""
    parts = parts_of(name)
    return bool(name) and "\0" not in name and ".." not in parts and parts[0] != "" and not parts[0].endswith(":")


def check_name(name: str, where: Path) -> None:
    """Raise InputError where a name that a model gives leads out of the folder it is relative to."""
    if not is_inside(name):
        raise InputError(
            f"{where} names the file {name!r}, which lies outside the scene's folder; "
            "put it inside and name it relative to it"
        )


def _check_pose(shot: Shot, where: Path) -> None:
    rotation = shot.viewmat[:3, :3]
    if not np.abs(shot.viewmat).max() < LARGEST:
        raise InputError(f"{where}: the pose of {shot.name} is not finite; reconstruct the scene again")
    off = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if off > OFF_ROTATION or np.linalg.det(rotation) < 0:
        raise InputError(
            f"{where}: the pose of {shot.name} is not a rotation and a translation "
            f"(R R^T is off by {off:.2g}, det R is {np.linalg.det(rotation):.2g}); export the poses again"
        )


def _check_lens(shot: Shot, where: Path) -> None:
    lens = shot.lens
    if lens.model == "EQUIRECTANGULAR":
        raise InputError(
            f"{where}: {shot.name} is an equirectangular panorama, which no pinhole camera can show; "
            "cut it into perspective images first"
        )
    if not (0 < lens.width < 1 << 17 and 0 < lens.height < 1 << 17):
        raise InputError(f"{where}: the camera of {shot.name} has an image of {lens.width}x{lens.height}; fix its size")
    K = intrinsics(lens)
    if not np.abs(lens.params).max() < LARGEST or min(K[0, 0], K[1, 1]) <= 0:
        raise InputError(
            f"{where}: the camera of {shot.name} ({lens.model}) has the parameters {list(lens.params)}; "
            "they must be finite, with a focal length over 0; reconstruct the scene again"
        )
