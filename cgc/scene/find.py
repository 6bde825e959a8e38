"""Find the camera model of a scene: in its usual places, or else the only one below."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cgc.errors import InputError, some
from cgc.scene.colmap import find_colmap, has_cameras
from cgc.scene.model import DEEPEST
from cgc.scene.transforms import find_transforms


@dataclass(frozen=True)
class Place:
    """Where a model lies: a folder of COLMAP's files, or else transforms files; `note` says where that is unusual."""

    colmap: Path | None
    transforms: list[Path]
    note: str = ""


def find_model(root: Path) -> Place | None:
    """Find the model of the scene `root`; InputError where it is not clear which of several is meant."""
    if folder := find_colmap(root):
        return Place(folder, [])
    if files := find_transforms(root):
        return Place(None, files)
    below = list(_folders_below(root, set()))
    of_colmap = [folder for folder in below if has_cameras(folder)]
    models = of_colmap or [folder for folder in below if find_transforms(folder)]
    if len(models) > 1:
        scenes = dict.fromkeys(_scene_of(folder, root) for folder in models)
        raise InputError(
            f"{root} has neither sparse/0 nor a transforms.json, but several camera models lie below it: give the one "
            f"to use as the scene ({some(scenes)}), or move the others away"
        )
    if not models:
        return None
    files = [] if of_colmap else find_transforms(models[0])
    what = f"the COLMAP model below it is used, {models[0]}" if of_colmap else f"that below it is used, {files[0]}"
    return Place(models[0] if of_colmap else None, files, f"{root} has neither sparse/0 nor a transforms.json: {what}")


def is_usual(root: Path, model: Path) -> bool:
    """Say whether the model of a scene, a folder of COLMAP's or a transforms file, lies in a usual place."""
    return model.parent == root if model.is_file() else model == find_colmap(root)


def _scene_of(folder: Path, root: Path) -> Path:
    """Return the scene below `root` that has the model `folder` in its usual place; where none has, the folder."""
    above = list(folder.relative_to(root).parents)[-2::-1]  # from below the root on
    return next((root / path for path in above if find_colmap(root / path) == folder), folder)


def _folders_below(root: Path, seen: set[Path], depth: int = DEEPEST) -> Iterator[Path]:
    """Yield the folders below one but hidden ones and runs, by name; each once, though links lead to it too."""
    seen.add(root.resolve())
    try:
        with os.scandir(root) as entries:
            found = [(e.is_symlink(), e.name) for e in entries if not e.name.startswith(".") and e.is_dir()]
    except OSError:  # of somebody else
        return
    for _, name in sorted(found):  # links last
        folder = root / name
        if folder.resolve() in seen or ((folder / "scene.json").is_file() and (folder / "config.json").is_file()):
            continue
        seen.add(folder.resolve())
        yield folder
        if depth > 1:
            yield from _folders_below(folder, seen, depth - 1)
