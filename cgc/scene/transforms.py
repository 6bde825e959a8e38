"""Read transforms.json: nerfstudio's, instant-ngp's, and transforms_train/test.json of NeRF-synthetic.

Poses there are world-from-camera with OpenGL axes (+y up, -z forward): the camera's y and z columns change
sign.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cgc.errors import InputError
from cgc.files import read_json
from cgc.scene.images import Header, read_header
from cgc.scene.model import Model, Shot, check_name, no_points
from cgc.scene.names import Settled, from_above, from_root, missing, settle
from cgc.scene.points import read_points
from cgc.scene.types import Lens

TRANSFORMS = ("transforms.json", "transforms_train.json", "transforms_val.json", "transforms_test.json")
_POLYNOMIAL = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV", "PERSPECTIVE")
_FISHEYE = ("OPENCV_FISHEYE", "FISHEYE")


def find_transforms(root: Path) -> list[Path]:
    """Return root/transforms.json, or else the transforms_train/val/test.json that are there."""
    found = [root / name for name in TRANSFORMS if (root / name).is_file()]
    return found[:1] if found and found[0].name == "transforms.json" else found


def read_transforms(files: list[Path], scene: Path) -> Model:
    """Read the frames of all `files` of a folder in the folder `scene`; raise InputError where one is broken.

    Names count from the files' folder, and may lead up from it to what lies in `scene` or beside the folder. Cameras of
    _test and _val none of whose photos is there are left out with a note, if others have theirs.
    """
    root = files[0].parent
    contents = [_read(file) for file in files]
    all_names = [_names(root, content["frames"], file) for file, content in zip(files, contents)]
    start, led = from_above(root, scene, [name for names in all_names for name in names])
    shots: list[Shot] = []
    points = no_points()
    notes: list[str] = []
    photos_there = False
    for file, content, names in zip(files, contents, all_names):
        frames = content["frames"]
        photos = settle([led.get(name, name) for name in names], root, [start], file)
        for name in photos.names:
            check_name(name, file)
        if photos_there and frames and not any(photos.found):
            notes.append(f"LEFT OUT: the {len(frames)} cameras of {file}, none of whose photos is there")
            continue
        photos_there |= any(photos.found)
        notes += [photos.note] if photos.note else []
        shots += _shots(photos, frames, {k: v for k, v in content.items() if k != "frames"}, file)
        if isinstance(content.get("ply_file_path"), str):
            cloud = _cloud(root, scene, content["ply_file_path"], file)
            points = read_points(cloud, file, "remove ply_file_path from it")
    tops = {shot.name.split("/", 1)[0] for shot in shots if "/" in shot.name}
    if len(tops) == 1 and next(iter(tops)).startswith("images") and all("/" in shot.name for shot in shots):
        images = start / tops.pop()  # names start inside the images folder, as COLMAP's do
        shots = [replace(shot, name=shot.name.split("/", 1)[1]) for shot in shots]
    else:
        images = start
    return Model(shots, *points, images=images, path=files[0], notes=tuple(notes))


def _read(file: Path) -> dict[str, Any]:
    content = read_json(file, "the scene's transforms file")
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f"{file} has no list of frames; expected nerfstudio's or instant-ngp's transforms.json")
    return content


def _names(root: Path, frames: list[dict[str, Any]], file: Path) -> list[str]:
    names = []
    for i, frame in enumerate(frames):
        name = frame.get("file_path")
        if not isinstance(name, str) or not name:
            raise InputError(f"{file}: frame {i} has no file_path; every frame must name its image")
        name = _with_slashes(name, root)
        names.append(os.path.normpath(name).replace(os.sep, "/") if ".." not in name else name)
    return names


def _cloud(root: Path, scene: Path, name: str, file: Path) -> Path:
    name = _with_slashes(from_root(root, name), root)
    start, led = from_above(root, scene, [name])
    check_name(name := led.get(name, name), file)
    return start / name


def _shots(photos: Settled, frames: list[dict[str, Any]], shared: dict[str, Any], file: Path) -> list[Shot]:
    all_values = [{**shared, **frame} for frame in frames]
    unsized = [
        name
        for name, path, values in zip(photos.names, photos.found, all_values)
        if path is None and not (values.get("w") and values.get("h"))
    ]
    if unsized:  # the photos alone have the sizes
        raise missing(file, unsized, len(frames), photos.folder)
    shots = []
    for name, frame, values, path in zip(photos.names, frames, all_values, photos.found):
        try:
            shots.append(Shot(name, _lens(values, path), _viewmat(frame), file))
        except InputError:  # of its image
            raise
        except (ValueError, TypeError, OverflowError, ZeroDivisionError, np.linalg.LinAlgError) as error:
            raise InputError(f"{file}: the frame of {name} is bad: {error}; export the scene again") from error
    return shots


def _with_slashes(name: str, root: Path) -> str:
    """Return a path as Windows writes it with slashes, unless a file is called so."""
    return name if "\\" not in name or (root / name).exists() else name.replace("\\", "/")


def _viewmat(frame: dict[str, Any]) -> np.ndarray:
    """Return cam_from_world [4, 4] with OpenCV axes."""
    pose = np.array(frame.get("transform_matrix"), np.float64)
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0, 0, 0, 1]])
    if pose.shape != (4, 4):
        raise ValueError(f"its transform_matrix has the shape {list(pose.shape)}, expected 4x4")
    opencv = pose @ np.diag([1.0, -1.0, -1.0, 1.0])
    return np.linalg.inv(opencv) if np.isfinite(opencv).all() else opencv


def _lens(values: dict[str, Any], image: Path | None) -> Lens:
    """Build the lens of a frame; a file that gives no size leaves it to the image."""

    def number(key: str, default: float = 0.0) -> float:
        value = values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{key} is {value!r}, expected a number")
        return float(value)

    width, height = int(number("w")), int(number("h"))
    if not (width and height):
        if image is None:
            raise ValueError("neither w and h nor its image are there to tell its size")
        told = (number(key) for key in ("cx", "cy", "camera_angle_x", "camera_angle_y"))
        width, height = _size(read_header(image), *told)
    fx, fy = number("fl_x"), number("fl_y")
    if not fx and number("camera_angle_x"):
        fx = 0.5 * width / math.tan(0.5 * number("camera_angle_x"))
    if not fy and number("camera_angle_y"):
        fy = 0.5 * height / math.tan(0.5 * number("camera_angle_y"))
    fx, fy = fx or fy, fy or fx
    if not fx:
        raise ValueError("it has neither fl_x nor camera_angle_x")
    pinhole = (fx, fy, number("cx", width / 2), number("cy", height / 2))
    k1, k2, k3, k4, k5, k6, p1, p2 = (number(key) for key in ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2"))
    model = str(values.get("camera_model") or "OPENCV").upper()
    if model in _FISHEYE or values.get("is_fisheye") is True:
        return Lens("OPENCV_FISHEYE", (*pinhole, k1, k2, k3, k4), width, height)
    if model not in _POLYNOMIAL:
        raise ValueError(f"camera_model is {model}, expected one of {', '.join(_POLYNOMIAL + _FISHEYE)}")
    if k4 and not (k5 or k6) and model != "FULL_OPENCV":
        raise ValueError(
            "it has k4, the fourth term of nerfstudio's lenses (Metashape's), which none of COLMAP's has; undistort "
            "the photos with the tool that has calibrated them"
        )
    if any((k3, k4, k5, k6)):
        return Lens("FULL_OPENCV", (*pinhole, k1, k2, p1, p2, k3, k4, k5, k6), width, height)
    if any((k1, k2, p1, p2)):
        return Lens("OPENCV", (*pinhole, k1, k2, p1, p2), width, height)
    return Lens("PINHOLE", pinhole, width, height)


def _size(header: Header, cx: float, cy: float, angle_x: float, angle_y: float) -> tuple[int, int]:
    """Return the size (width, height) that a frame's other numbers were given for; those that are 0 say nothing.

    As everywhere a photo is taken as it is stored, and turned by its EXIF tag only where that alone fits: where the
    principal point is nearer to the middle of the turned photo, or the fields of view are wider along its longer side.
    """
    stored, turned = header.size, (header.size[1], header.size[0])

    def off(size: tuple[int, int]) -> float:
        """How far a photo's middle is from the principal point, in sides."""
        return sum(abs(c / side - 0.5) for c, side in zip((cx, cy), size) if c)

    if not header.sideways:
        return stored
    if cx or cy:
        return turned if off(turned) < off(stored) else stored
    stands = angle_x < angle_y if angle_x and angle_y and angle_x != angle_y else stored[0] < stored[1]
    return turned if stands != (stored[0] < stored[1]) else stored
