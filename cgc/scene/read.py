"""Read a scene: find its model, match its images, give every view a pinhole camera at its used size."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgc.errors import InputError, some
from cgc.files import sha256
from cgc.scene.cameras import in_view
from cgc.scene.colmap import PLY_POINTS, fuller_model, read_colmap
from cgc.scene.find import find_model, is_usual
from cgc.scene.images import find_images, read_header
from cgc.scene.lens import intrinsics, is_pinhole, resized, undistorted
from cgc.scene.model import Model, Shot, check_model, find_origin, moved
from cgc.scene.names import check_own, missing, other_folder, photo_root, settle
from cgc.scene.transforms import TRANSFORMS, find_transforms, read_transforms
from cgc.scene.types import Camera, Lens, Scene, View
from cgc.scene.undistort import Distorted, undistort_photos
from cgc.settings import SceneSettings

Size = tuple[int, int]  # width, height

TRIED = (2_000, 200_000)
"""So many points of a model at most are looked for in each view; more in those that have none of the first."""


@dataclass(frozen=True)
class _Photo:
    """A shot and its file: `size` is the file's, `full_size` its photo's in the images folder."""

    shot: Shot
    path: Path
    size: Size
    full_size: Size
    exif_rotated: bool
    shrunk: bool  # the file is from images_N


def read_scene(
    root: Path | str,
    settings: SceneSettings | None = None,
    cache: Path | None = None,
    quiet: bool = False,
) -> Scene:
    """Read a COLMAP or transforms.json scene; distorted photos are undistorted once, into a cache.

    `root` holds sparse/0 (or sparse, colmap/sparse/0, or the model's files themselves) and images, or
    transforms.json, or else one model below it, which a note names. `cache` overrides root/.cgc_cache. Sizes may differ
    between views. Raises InputError where anything is missing, broken or does not fit together.
    """
    root, settings = Path(root), settings or SceneSettings()
    if settings.downscale < 1 or settings.max_side < 0:
        raise InputError(
            f"downscale is {settings.downscale} and max_side is {settings.max_side}; "
            "expected downscale of at least 1 and max_side of at least 0"
        )
    model = _settled(_read_model(root), root)
    check_model(model)
    model.shots.sort(key=lambda shot: shot.name)
    notes = list(model.notes)
    finite = np.isfinite(model.points).all(1) & (np.abs(model.points).max(1, initial=0) < np.finfo(np.float32).max)
    if lost := int((~finite).sum()):
        notes.append(f"{lost:,} of {len(finite):,} points of {model.path} are NaN, infinite or too far, and left out")
        model = replace(model, points=model.points[finite], point_colors=model.point_colors[finite])
    if fuller := fuller_model(model.path):
        path, count, own = fuller
        notes.append(f"{path} has {count} images where {model.path}, which is used, has {own}: give it as the scene")
    if (origin := find_origin(model)).any():
        model = moved(model, origin)
        less = ", ".join(f"{x:.12g}" for x in origin)
        notes.append(
            "the model lies so far from its origin that single precision, which splats are kept in, cannot tell near "
            f"places apart: all coordinates of the run are the model's less ({less})"
        )
    photos = _find_photos(model, root, settings.downscale, notes)
    if not is_usual(root, model.path):
        check_own(root, model.path, [photo.path for photo in photos])
    views = _make_views(photos, settings, root, cache, quiet, notes)
    notes += _say_shrunk(views, settings)
    points = model.points.astype(np.float32)
    notes += _say_blind(views, points)
    return Scene(root, tuple(views), points, model.point_colors, model.path, tuple(notes), tuple(origin.tolist()))


def read_cameras(
    root: Path | str, settings: SceneSettings | None = None, sizes: Mapping[str, Size] | None = None
) -> dict[str, Camera]:
    """Read the cameras of a scene's model by the names of its photos, which need not be there; lenses are undistorted.

    `root` is a scene or the folder of a COLMAP model. Photos are taken to be as large as the model says, or as `sizes`
    has them (width, height), which then also says what they are called. The cameras are those of `read_scene`.
    """
    settings, model = settings or SceneSettings(), _settled(_read_model(Path(root)), Path(root))
    check_model(model)
    model = moved(model, find_origin(model))
    full_names = {os.path.splitext(name)[0]: name for name in sizes or ()}
    cameras = {}
    for shot in sorted(model.shots, key=lambda shot: shot.name):
        name = shot.name if sizes is None or shot.name in sizes else full_names.get(shot.name, "")
        if not name and sizes is not None:
            raise InputError(f"{model.path} has the view {shot.name}, which {root} had not before; restore the model")
        lens = shot.lens
        size = (lens.width, lens.height) if sizes is None else sizes[name]
        if not is_pinhole(lens):
            lens = undistorted(resized(lens, *size))
            size = lens.width, lens.height
        cameras[name] = _camera(shot, lens, _used_size(size, settings.downscale, settings.max_side))
    return cameras


def _camera(shot: Shot, lens: Lens, size: Size) -> Camera:
    viewmat = torch.tensor(shot.viewmat, dtype=torch.float32)
    K = torch.tensor(intrinsics(lens), dtype=torch.float32)
    return Camera(viewmat, K, lens.width, lens.height).resized(*size)


def model_hashes(root: Path | str) -> dict[str, str]:
    """The hashes of a scene's model, as its fingerprint has them; no photo is looked at."""
    return {path.name: sha256(path) for path in _model_files(_read_model(Path(root)).path)}


def fingerprint(scene: Scene) -> dict[str, Any]:
    """Return what tells this scene from another, as JSON values: image names and sizes, the model's hashes.

    `root` is the path as given; the same scene elsewhere differs in nothing else.
    """
    return {
        "root": str(scene.root),
        "views": len(scene.views),
        "images": [[v.name, *(v.full_size or (v.camera.width, v.camera.height))] for v in scene.views],
        "model": {path.name: sha256(path) for path in _model_files(scene.model_path)},
    }


def _model_files(path: Path | None) -> list[Path]:
    if path is None:
        return []
    if path.is_dir():
        names = ("cameras", "images", "points3D", "rigs", "frames")
        files = [p for name in names for end in (".bin", ".txt") if (p := path / f"{name}{end}").is_file()]
        matched = any(p.stem == "points3D" for p in files)
        return files if matched or not (cloud := path / PLY_POINTS).is_file() else [*files, cloud]
    return find_transforms(path.parent) if path.name in TRANSFORMS else [path]


def _read_model(root: Path) -> Model:
    if not root.is_dir():
        what = "it is a file" if root.exists() else "there is no such folder"
        raise InputError(f"{root} was expected to be the folder of a scene, but {what}; check the path")
    if place := find_model(root):
        model = read_colmap(root, place.colmap) if place.colmap else read_transforms(place.transforms, root)
        return replace(model, notes=(place.note, *model.notes)) if place.note else model
    if (sparse := root / "sparse").exists():
        held = some(sorted(p.relative_to(root).as_posix() for p in sparse.rglob("*") if p.is_file()))
        raise InputError(
            f"{root} is not a scene: expected a COLMAP model in sparse/0, but sparse holds no cameras and images of "
            f"one (files in it: {held}); restore them, or move sparse away to make a scene of the photos with "
            f"`cgc reconstruct {root}`"
        )
    raise InputError(
        f"{root} is not a scene: expected a COLMAP model in sparse/0 or a transforms.json, found neither; "
        f"make a scene of a folder of photos with `cgc reconstruct {root}`, or go from photos to objects with "
        f"`cgc run {root}`"
    )


def _settled(model: Model, root: Path) -> Model:
    """Return a model whose photos are called as they are found, where its names count from another folder."""
    home = photo_root(root, model.path)
    photos = settle([shot.name for shot in model.shots], home, [model.images, home], model.path)
    shots = [replace(shot, name=name) for shot, name in zip(model.shots, photos.names)]
    note = photos.note
    if home != root and any(photos.found) and not note:
        note = f"the photos are those in {photos.folder}: {root} has a model and no photos"
    return replace(model, shots=shots, images=photos.folder, notes=(*model.notes, note) if note else model.notes)


def _find_photos(model: Model, root: Path, downscale: int, notes: list[str]) -> list[_Photo]:
    """Match every shot to its file: in images_N where that serves `downscale`, else in the images folder.

    Where none of them is there, in the only other folder that has them all.
    """
    names = [shot.name for shot in model.shots]
    full = find_images(model.images, names)
    small_folder = model.images.parent / f"{model.images.name}_{downscale}"
    if downscale > 1 and model.images != root and small_folder.is_dir():
        small = find_images(small_folder, names)
        if lacking := small.count(None):
            notes.append(
                f"{small_folder} lacks {lacking} of {len(small)} images, so the full photos are shrunk instead"
            )
        else:
            triples = zip(model.shots, small, full)
            return [_photo(shot, path, True, other) for shot, path, other in triples if path]
    if not any(full) and (other := other_folder(model, root)):
        notes.append(f"the photos are those in {other}: none that {model.path} names is in {model.images}")
        full = find_images(other, names)
    _check_found(model, full)
    photos = [_photo(shot, path) for shot, path in zip(model.shots, full) if path]
    rescaled = Counter((p.size, (p.shot.lens.width, p.shot.lens.height)) for p in photos)
    for (size, expected), count in rescaled.items():
        if size != expected:
            notes.append(
                f"{count} images are {_text(size)} where the model's camera is {_text(expected)}: "
                "its intrinsics were scaled to the images"
            )
    return photos


def _check_found(model: Model, found: list[Path | None]) -> None:
    lost = [shot for shot, path in zip(model.shots, found) if path is None]
    if not lost:
        return
    if not model.images.is_dir():
        raise InputError(
            f"the images folder {model.images} does not exist; put the {len(lost)} photos that {model.path} names there"
        )
    where = lost[0].file or model.path
    names = [shot.name for shot in lost if shot.file == lost[0].file]
    total = sum(shot.file == lost[0].file for shot in model.shots)
    raise missing(where, names, total, model.images)


def _photo(shot: Shot, path: Path, shrunk: bool = False, full: Path | None = None) -> _Photo:
    """Check that a file's size fits the shot's camera; `full` is the photo that `path` was shrunk from."""
    expected = shot.lens.width, shot.lens.height
    size, turned = _fit(path, expected)
    full_size = _fit(full, expected)[0] if full else expected if shrunk else size
    return _Photo(shot, path, size, full_size, turned, shrunk)


def _fit(path: Path, expected: Size) -> tuple[Size, bool]:
    """Return the image's size and whether its EXIF tag must be obeyed to fit the camera's `expected` size."""
    header = read_header(path)
    turned = header.size[1], header.size[0]
    if header.size == expected:
        return header.size, False
    if header.sideways and turned == expected:
        return turned, True
    if _same_shape(header.size, expected):
        return header.size, False
    if header.sideways and _same_shape(turned, expected):
        return turned, True
    raise InputError(
        f"{path} is {_text(header.size)} but its camera in the model is {_text(expected)}, which is no "
        "scaled copy; "
        "use the images that the model was made from"
    )


def _same_shape(size: Size, expected: Size) -> bool:
    """Tell whether the sizes have one aspect, within 2 px or 1 %."""
    height = size[0] * expected[1] / expected[0]
    return abs(size[1] - height) <= max(2, 0.01 * height)


def _make_views(
    photos: list[_Photo],
    settings: SceneSettings,
    root: Path,
    cache: Path | None,
    quiet: bool,
    notes: list[str],
) -> list[View]:
    distorted = {
        p.shot.name: Distorted(p.shot.name, p.path, p.exif_rotated, resized(p.shot.lens, *p.size))
        for p in photos
        if not is_pinhole(p.shot.lens)
    }
    flat_paths: dict[str, Path] = {}
    if distorted:
        flat_paths = dict(zip(distorted, undistort_photos(list(distorted.values()), root, cache, quiet)))
        folder = next(iter(flat_paths.values())).parents[next(iter(distorted)).count("/")]
        notes.append(f"{len(distorted)} images were undistorted; the copies that are used lie in {folder}")
    views = []
    for photo in photos:
        shot, bent = photo.shot, distorted.get(photo.shot.name)
        lens = undistorted(bent.lens) if bent else shot.lens
        size = (lens.width, lens.height) if bent else photo.size
        size = _used_size(size, 1 if photo.shrunk else settings.downscale, settings.max_side)
        views.append(
            View(
                name=shot.name if Path(shot.name).suffix else f"{shot.name}{photo.path.suffix}",
                camera=_camera(shot, lens, size),
                image_path=flat_paths.get(shot.name, photo.path),
                full_size=photo.full_size,
                distortion=bent.lens if bent else None,
                exif_rotated=photo.exif_rotated and bent is None,
            )
        )
    return views


def _say_shrunk(views: Sequence[View], settings: SceneSettings) -> list[str]:
    """Say what `max_side` has done to photos, by the largest of them."""
    if not settings.max_side:
        return []
    sizes = {view.full_size: view.camera for view in views if view.full_size}
    whole = max(sizes, key=max, default=(0, 0))
    if max(whole) <= settings.downscale * settings.max_side:
        return []
    used = (sizes[whole].width, sizes[whole].height)
    return [
        f"photos of {_text(whole)} are used at {_text(used)}, no side longer than {settings.max_side} pixels "
        "(--max-side 0: as they are)"
    ]


def _say_blind(views: Sequence[View], points: np.ndarray) -> list[str]:
    """Name the cameras that look away from all points [M, 3], where others do not; of many points some are tried."""
    blind, tried = list(views), points
    for count in TRIED:
        tried = points[:: 1 + len(points) // count]
        blind = [view for view in blind if not in_view(view.camera, tried).any()]
    if not 0 < len(blind) < len(views):
        return []
    return [
        f"{len(blind)} of {len(views)} cameras have none of {len(tried):,} points of the model in view: "
        f"{some(view.name for view in blind)}; their poses may be wrong, and photos with wrong poses blur the splats: "
        "leave these out, or reconstruct the scene again"
    ]


def _used_size(size: Size, downscale: int, max_side: int) -> Size:
    """Return the size an image is used at: shrunk by `downscale`, then to `max_side` (0: no limit)."""
    width, height = size[0] / downscale, size[1] / downscale
    if max_side:
        shrink = min(1.0, max_side / max(width, height))
        width, height = width * shrink, height * shrink
    return max(1, round(width)), max(1, round(height))


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
