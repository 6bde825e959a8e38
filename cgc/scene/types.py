"""Camera, View and Scene: what photos with a camera model are to the rest of the project.

Notation: H W image size in pixels, K intrinsics in pixels, viewmat = cam_from_world. OpenCV camera axes
(+x right, +y down, +z forward), pixel centres at +0.5 (the top-left pixel's centre is (0.5, 0.5)).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cgc.errors import InputError
from cgc.geometry import vector

LEAST_EXTENT = 1e-6  # world units: that of cameras in one place


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: `viewmat` [4, 4] cam_from_world, `K` [3, 3] in pixels, float32; the image's size."""

    viewmat: Tensor
    K: Tensor
    width: int
    height: int

    @property
    def position(self) -> Tensor:
        """Camera centre in the world, [3]."""
        return -self.viewmat[:3, :3].T @ self.viewmat[:3, 3]

    def resized(self, width: int, height: int) -> Camera:
        """Return the same camera for an image of another size; K scales per axis."""
        scale = torch.tensor([width / self.width, height / self.height, 1.0], dtype=self.K.dtype)
        return replace(self, K=self.K * scale[:, None].to(self.K.device), width=width, height=height)

    def to(self, device: torch.device | str) -> Camera:
        """Return the camera with its tensors on `device`."""
        return replace(self, viewmat=self.viewmat.to(device), K=self.K.to(device))

    @staticmethod
    def look_at(
        eye: Sequence[float],
        target: Sequence[float],
        *,
        width: int,
        height: int,
        focal: float | None = None,
        up: Sequence[float] = (0.0, 0.0, 1.0),
    ) -> Camera:
        """Make a camera at `eye` that looks at `target`; `focal` in pixels (default: the larger side).

        InputError where that says no direction, where a number is not finite, and for a picture without a pixel.
        """
        e, t = vector(eye, 3, "a camera's eye (x, y, z)"), vector(target, 3, "a camera's target (x, y, z)")
        u = vector(up, 3, "an up direction (x, y, z)")
        if not (np.linalg.norm(t - e) > 0 and np.linalg.norm(u) > 0):
            raise InputError(
                f"a camera at {e.tolist()} cannot look at {t.tolist()} with {u.tolist()} as up; give two places and an "
                "up that is not 0"
            )
        if not (isinstance(width, (int, np.integer)) and isinstance(height, (int, np.integer)) and width > 0 < height):
            raise InputError(f"a picture of {width}x{height} cannot be made; each side must be a whole number over 0")
        if focal is not None and not (isinstance(focal, (int, float, np.number)) and 0 < focal < np.inf):
            raise InputError(f"a focal length over 0 was expected, in pixels, got {focal!r}")
        forward = (t - e) / np.linalg.norm(t - e)
        right = np.cross(forward, u / np.linalg.norm(u))
        if np.linalg.norm(right) < 1e-8:  # looking along `up`: any right vector will do
            right = np.cross(forward, np.eye(3)[int(np.abs(forward).argmin())])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])  # rows: camera axes in the world
        viewmat = np.eye(4)
        viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ e
        f = float(max(width, height) if focal is None else focal)
        K = np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1.0]])
        return Camera(torch.tensor(viewmat).float(), torch.tensor(K).float(), width, height)


@dataclass(frozen=True)
class Lens:
    """A camera model of COLMAP, without a pose: name, parameters in COLMAP's order, the photo's size."""

    model: str
    params: tuple[float, ...]
    width: int
    height: int


@dataclass(frozen=True)
class View:
    """One photo: its `name` as the model writes it (posix, sub-folders kept), its camera and its file.

    The file may be larger than the camera's image (it is resized on load). `full_size` is the (width, height)
    of the photo as the user has it. `distortion` is the photo's lens where `image_path` is its undistorted
    copy.
    """

    name: str
    camera: Camera
    image_path: Path
    full_size: tuple[int, int] | None = None
    distortion: Lens | None = None
    exif_rotated: bool = False

    @property
    def stem(self) -> str:
        """The name without its suffix: what masks of this view are called."""
        return stem_of(self.name)


def stem_of(name: str) -> str:
    """Return the name of a photo without its suffix; sub-folders stay."""
    return name.rsplit(".", 1)[0] if "." in name.rsplit("/", 1)[-1] else name


def picture_names(names: Sequence[str]) -> list[str]:
    """Return what pictures and masks of views are called: the stem of a name, or the name where two share its stem."""
    stems = [stem_of(name) for name in names]
    shared = Counter(stems)
    made = [stem if shared[stem] == 1 else name for name, stem in zip(names, stems)]
    return made if len(set(made)) == len(made) else list(names)  # a.jpg beside a.png, and a.jpg.png


@dataclass(frozen=True)
class Scene:
    """Views sorted by name, and the model's sparse points: `points` [M, 3], `point_colors` [M, 3] uint8.

    `origin` is where the scene's origin lies in the model's world: not at 0 where that is too far off for float32.
    """

    root: Path
    views: tuple[View, ...]
    points: np.ndarray
    point_colors: np.ndarray
    model_path: Path | None = None
    notes: tuple[str, ...] = field(default=())
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def split(self, test_every: int) -> tuple[list[int], list[int]]:
        """Return (train, test) view indices; every `test_every`-th from the first is for testing; 0: none."""
        indices = range(len(self.views))
        test = [i for i in indices if test_every > 0 and i % test_every == 0]
        return [i for i in indices if i not in set(test)], test

    @property
    def extent(self) -> float:
        """1.1 times the radius of the camera centres about their mean: the length every setting is relative to."""
        return extent_of(np.stack([v.camera.position.cpu().numpy() for v in self.views]).astype(float))


def extent_of(centres: np.ndarray) -> float:
    """Return 1.1 times the radius of camera centres [C, 3] about their mean, more than 0."""
    return max(1.1 * float(np.linalg.norm(centres - centres.mean(0), axis=1).max()), LEAST_EXTENT)
