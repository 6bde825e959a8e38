"""Read a COLMAP model: binary or text, with or without the rigs and frames files of newer versions."""

from __future__ import annotations

import math
import shutil
import tempfile
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pycolmap

from cgc.errors import InputError, reason
from cgc.files import open_text
from cgc.scene.binary import BrokenFile, check_binary_model
from cgc.scene.lens import from_colmap
from cgc.scene.model import Model, Shot
from cgc.scene.names import photo_root
from cgc.scene.points import read_points

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", ".")
PLY_POINTS = "points3D.ply"

_NAMES = ("cameras", "images", "points3D")
_FILES = (*_NAMES, "rigs", "frames")
_ENDS = (".bin", ".txt")


def find_colmap(root: Path) -> Path | None:
    """Return the usual folder under `root` that holds a COLMAP model, or None."""
    for folder in MODEL_FOLDERS:
        if any((root / folder / f"{name}{end}").is_file() for name in _NAMES for end in _ENDS):
            return root / folder if folder != "." else root
    return None


def has_cameras(folder: Path) -> bool:
    """Say whether a folder holds the cameras and images of a COLMAP model."""
    return _kind(folder, _NAMES[:2]) is not None


def _kind(folder: Path, names: Sequence[str]) -> str | None:
    """Return the suffix that files of all these names have in a folder."""
    return next((end for end in _ENDS if all((folder / f"{name}{end}").is_file() for name in names)), None)


def read_colmap(root: Path, folder: Path) -> Model:
    """Read the model in `folder` of the scene `root`; raise InputError where it is broken or incomplete.

    Points may be in points3D.ply, as tools that match nothing write them.
    """
    kind, cloud = _kind(folder, _NAMES), folder / PLY_POINTS
    if kind:
        return Model(*_read_files(folder, kind), images=_images_of(root, folder), path=folder)
    kind = _kind(folder, _NAMES[:2])
    if kind is None or not cloud.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir() if p.suffix in _ENDS)) or "none"
        raise InputError(
            f"{folder} is not a whole COLMAP model: expected cameras, images and points3D, all .bin or all "
            ".txt, "
            f"found {found}; run COLMAP's mapper again or restore the files"
        )
    points = read_points(cloud, folder, f"write an empty points3D{kind}")
    with tempfile.TemporaryDirectory() as work:  # pycolmap wants points of its own
        try:
            for path in (folder / f"{name}{kind}" for name in ("cameras", "images", "rigs", "frames")):
                if path.is_file():
                    shutil.copy(path, work)
        except OSError as error:
            raise InputError(f"{folder} cannot be read: {error.strerror}; make its files readable") from error
        Path(work, f"points3D{kind}").write_bytes(bytes(8) if kind == ".bin" else b"")
        shots, *_ = _read_files(Path(work), kind, folder)
    note = f"the model has no points3D{kind}: its points are those of {cloud}"
    return Model(shots, *points, images=_images_of(root, folder), path=folder, notes=(note,))


def _read_files(folder: Path, kind: str, place: Path | None = None) -> tuple[list[Shot], np.ndarray, np.ndarray]:
    """Read the shots, points and colours of the files of one kind in `folder`; `place` is what a refusal names."""
    try:
        if kind == ".bin":
            check_binary_model(folder)
        names = {} if kind == ".bin" else _names_in_text(folder / "images.txt")
        with tempfile.TemporaryDirectory() as work:
            model = pycolmap.Reconstruction(str(_unmarked(folder, Path(work)) if kind == ".txt" else folder))
        return [_shot(image, names) for image in model.images.values() if image.has_pose], *_points(model)
    except (BrokenFile, OSError, RuntimeError, ValueError, IndexError, KeyError, MemoryError) as error:
        raise InputError(
            f"{place or folder} is broken: expected a COLMAP model, but {reason(error)}; restore the files or run "
            "COLMAP's mapper again"
        ) from error


def _unmarked(folder: Path, work: Path) -> Path:
    """Return `folder`; or, where a text file in it begins with a mark, which pycolmap chokes on, `work` with copies."""
    paths = [path for name in _FILES if (path := folder / f"{name}.txt").is_file()]
    if not any(_is_marked(path) for path in paths):
        return folder
    for path in paths:
        with open(path, "rb") as file, open(work / path.name, "wb") as copy:
            file.seek(len(BOM_UTF8) if _is_marked(path) else 0)
            shutil.copyfileobj(file, copy)
    return work


def _is_marked(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(BOM_UTF8)) == BOM_UTF8


def _images_of(root: Path, folder: Path) -> Path:
    """Return the images folder of a model: the scene's where the model is in a usual place.

    Else that of the innermost folder that has one, up to the scene's.
    """
    if folder == find_colmap(root) and (root / "images").is_dir():
        return root / "images"
    around = [p for p in (folder, *folder.parents) if p.is_relative_to(root)]
    return next((p / "images" for p in around if (p / "images").is_dir()), photo_root(root, folder) / "images")


def fuller_model(folder: Path) -> tuple[Path, int, int] | None:
    """Return the model beside sparse/N, if any, that has more images, their number, and that of those in `folder`.

    COLMAP's mapper numbers models as it makes them: 0 may be the smallest.
    """
    if folder.parent.name != "sparse" or not folder.name.isdecimal():
        return None
    beside = [path for path in sorted(folder.parent.iterdir()) if path.name.isdecimal() and path.name != folder.name]
    counts = {path: _image_count(path) for path in beside}
    best = max(beside, key=lambda path: counts[path], default=None)
    own = _image_count(folder) if best else 0
    return (best, counts[best], own) if best and counts[best] > own > 0 else None


def _image_count(folder: Path) -> int:
    """Return how many images a model says it has; 0 where it does not."""
    try:
        if (folder / "images.bin").is_file():
            with open(folder / "images.bin", "rb") as file:
                return int.from_bytes(file.read(8), "little")
        return len(_names_in_text(folder / "images.txt"))
    except (OSError, ValueError, IndexError):
        return 0


def _names_in_text(path: Path) -> dict[int, str]:
    """Return the names of images.txt by id, with their spaces, at the first of which pycolmap (4.2) cuts them."""
    names = {}
    with open_text(path, errors="surrogateescape") as lines:
        for line in lines:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            cells = line.strip().split(maxsplit=9)
            names[int(cells[0])] = cells[9]
            if not _is_points(points := next(lines, "")):
                raise ValueError(
                    f"in images.txt the line of {cells[9]} is followed by one that ends in {points.split()[-1]} where "
                    "that of its points was expected, which may be empty"
                )
    return names


def _is_points(line: str) -> bool:
    """Say whether a line of images.txt may be the second of an image: X, Y and the number of a point, and so on."""
    last = line[-40:].split()[-1:]
    try:
        return not last or math.isfinite(float(last[0]))
    except ValueError:
        return False


def _shot(image: pycolmap.Image, names: Mapping[int, str]) -> Shot:
    if image.camera is None:
        raise ValueError(f"the image {image.name} has no camera")
    viewmat = np.eye(4)
    viewmat[:3] = image.cam_from_world().matrix()  # pyright: ignore[reportOptionalMemberAccess]
    return Shot(names.get(image.image_id, image.name), from_colmap(image.camera), viewmat)


def _points(model: pycolmap.Reconstruction) -> tuple[np.ndarray, np.ndarray]:
    """Return the points that two images or more see, [M, 3], and colours [M, 3] uint8, by id.

    Where no point says which images see it (models that were not made by matching), all of them.
    """
    by_id = sorted(model.points3D.items(), key=lambda item: item[0])  # pycolmap's order is a hash map's
    least = 2 if any(point.track.length() for _, point in by_id) else 0
    kept = [point for _, point in by_id if point.track.length() >= least]
    points = np.array([p.xyz for p in kept], np.float64).reshape(-1, 3)
    colors = np.array([p.color for p in kept], np.uint8).reshape(-1, 3)
    return points, colors
