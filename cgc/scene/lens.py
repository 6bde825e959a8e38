"""Lenses by pycolmap: what is a pinhole, K, the undistorted twin, and where a pixel of it came from."""

from __future__ import annotations

import functools

import numpy as np
import pycolmap
import torch

from cgc.errors import InputError
from cgc.scene.types import Camera, Lens

# Pinholes with coefficients on top: with all coefficients 0 they are pinholes. (A fisheye lens is not.)
_POLYNOMIAL = ("SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")

_BAND = 256  # rows whose rays are in memory at once


@functools.lru_cache(4096)
def is_pinhole(lens: Lens) -> bool:
    """Tell whether the lens has no distortion, so that its photo is used as it is."""
    if lens.model in ("SIMPLE_PINHOLE", "PINHOLE"):
        return True
    extra = to_colmap(lens).extra_params_idxs()
    return lens.model in _POLYNOMIAL and all(lens.params[i] == 0 for i in extra)


def to_colmap(lens: Lens) -> pycolmap.Camera:
    """Return the lens as pycolmap's camera."""
    model = pycolmap.CameraModelId.__members__[lens.model]
    camera = pycolmap.Camera.create_from_model_id(1, model, 1.0, lens.width, lens.height)
    camera.params = lens.params
    return camera


def from_colmap(camera: pycolmap.Camera) -> Lens:
    """Return pycolmap's camera as a lens."""
    return Lens(camera.model_name, tuple(map(float, camera.params)), int(camera.width), int(camera.height))


@functools.lru_cache(4096)
def resized(lens: Lens, width: int, height: int) -> Lens:
    """Return the lens for a photo of another size."""
    if (lens.width, lens.height) == (width, height):
        return lens
    if is_pinhole(lens):  # exact per axis, where one focal length would have to be a mean
        K = intrinsics(lens)
        x, y = width / lens.width, height / lens.height
        return Lens("PINHOLE", (K[0, 0] * x, K[1, 1] * y, K[0, 2] * x, K[1, 2] * y), width, height)
    camera = to_colmap(lens)
    camera.rescale(width, height)
    return from_colmap(camera)


def intrinsics(lens: Lens) -> np.ndarray:
    """Return K [3, 3] float64 of the lens, distortion left aside."""
    return np.asarray(to_colmap(lens).calibration_matrix(), float)


@functools.lru_cache(4096)
def undistorted(lens: Lens) -> Lens:
    """Return the pinhole lens that COLMAP undistorts to; raise InputError for senseless coefficients."""
    broken = InputError(
        f"the {lens.model} camera of {lens.width}x{lens.height} with the parameters {list(lens.params)} "
        "cannot be undistorted; check its coefficients, or reconstruct the scene again with --camera_model "
        "OPENCV"
    )
    try:
        pinhole = from_colmap(pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), to_colmap(lens)))
    except (RuntimeError, ValueError) as error:
        raise broken from error
    if not np.isfinite(pinhole.params).all() or min(pinhole.width, pinhole.height) < 1:
        raise broken
    return pinhole


def undistort_photo(photo: np.ndarray, lens: Lens) -> np.ndarray:
    """Undistort a photo [H, W, 3] uint8 (bilinear) to the size of `undistorted(lens)`."""
    bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(photo))
    flat, _ = pycolmap.undistort_image(pycolmap.UndistortCameraOptions(), bitmap, to_colmap(lens))
    return np.asarray(flat.to_array())


def sample_distorted(ids: np.ndarray, lens: Lens, camera: Camera) -> np.ndarray:
    """Look up a map of the distorted photo at the pixels of the undistorted `camera`: nearest, 0 outside.

    `ids` [h, w] covers the whole distorted photo at any resolution. Returns [camera.height, camera.width].
    """
    K = camera.K.to(torch.float64).cpu().numpy()
    y, x = np.mgrid[: camera.height, : camera.width] + 0.5
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], -1)  # [H, W, 3]
    height, width = ids.shape
    pixels = np.asarray(to_colmap(lens).img_from_cam(rays.reshape(-1, 3)))  # [H * W, 2]
    pixels = pixels * (width / lens.width, height / lens.height)
    inside = np.all((pixels >= 0) & (pixels < (width, height)), axis=1)  # NaN, where no ray lands, is outside
    column, row = np.floor(np.where(inside[:, None], pixels, 0)).astype(np.int64).T
    return np.where(inside, ids[row, column], 0).reshape(camera.height, camera.width).astype(ids.dtype)


def sample_undistorted(
    ids: np.ndarray, camera: Camera, lens: Lens, width: int, height: int, outside: int = 0
) -> np.ndarray:
    """Look up a map [H, W] of the undistorted `camera` at the pixels of the distorted photo: nearest, or `outside`.

    Returns [height, width], the whole photo at any resolution.
    """
    K = camera.K.to(torch.float64).cpu().numpy()
    pinhole = Lens("PINHOLE", (K[0, 0], K[1, 1], K[0, 2], K[1, 2]), camera.width, camera.height)
    index = _index_of_undistorted(lens, pinhole, width, height)
    return np.where(index < 0, outside, ids.ravel()[index]).astype(ids.dtype)


@functools.lru_cache(2)  # photos of one lens follow each other, and to trace 24 million rays takes 10 s
def _index_of_undistorted(lens: Lens, pinhole: Lens, width: int, height: int) -> np.ndarray:
    """Return which pixel of the undistorted picture each of a photo's has, [height, width] int32; -1 where none."""
    index = np.empty((height, width), np.int32)
    fx, fy, cx, cy = pinhole.params
    for top in range(0, height, _BAND):
        y, x = np.mgrid[top : min(top + _BAND, height), :width] + 0.5
        pixels = np.stack([x * (lens.width / width), y * (lens.height / height)], -1).reshape(-1, 2)
        rays = np.asarray(to_colmap(lens).cam_from_img(pixels))[:, :2]
        flat = rays * (fx, fy) + (cx, cy)
        inside = np.all((flat >= 0) & (flat < (pinhole.width, pinhole.height)), axis=1)  # NaN is outside
        column, row = np.floor(np.where(inside[:, None], flat, 0)).astype(np.int32).T
        index[top : top + _BAND] = np.where(inside, row * pinhole.width + column, -1).reshape(-1, width)
    index.flags.writeable = False
    return index
