"""Find the photos that a model names, where its names count from another folder than they should."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cgc.errors import InputError, some
from cgc.scene.images import SUFFIXES, PhotoFolder, find_images
from cgc.scene.model import DEEPEST, Model, is_inside, parts_of

PHOTO_WORDS = ("image", "input", "photo", "rgb", "color")
"""A folder whose name has one of these may hold photos ..."""
OTHER_WORDS = ("mask", "depth", "normal", "instance", "semantic", "label", "seg")
"""... but not where it has one of these."""

MODEL_WORDS = ("sparse", "colmap", "dense", "distorted")
"""A folder whose name begins with one of these may hold a model and nothing else."""

LEAST_PHOTOS = 3
"""So many are needed to make a scene of them: fewer beside a model are pictures of something."""


@dataclass(frozen=True)
class Settled:
    """The names of photos, from `folder` on, and their files; `note` says where that is not as the model has them."""

    folder: Path
    names: list[str]
    found: list[Path | None]
    note: str = ""


def settle(names: Sequence[str], root: Path, folders: Sequence[Path], where: Path) -> Settled:
    """Find the photos that `where` names in `folders`, inside the scene `root` only; the first has them as a rule.

    Tools write names from where they were run. Absolute ones that lie in the root count from there; then the first
    folders of all names are left out, as few as need be, while they still differ. What is where it should be is never
    taken from elsewhere. Where some are still missing but every name is the end of one path below the first folder,
    that is meant. Where nothing more is found, names stay.
    """
    inside = [from_root(root, name) for name in names]
    safe = all(is_inside(name) for name in inside)
    best = Settled(folders[0], inside, [None] * len(inside))
    places = [PhotoFolder(folder) for folder in folders]
    for photos in places:
        for tried in _cuts(inside):
            first = next((i for i, path in enumerate(best.found) if path), None)
            if first is not None and photos.find([tried[first]]) != [best.found[first]]:
                continue  # as below, at a glance
            found = photos.find(tried)
            kept = all(new == old for new, old in zip(found, best.found) if old)
            if kept and found.count(None) < best.found.count(None) and (safe or all(found)):
                usual = photos is places[0] and tried == inside
                best = Settled(photos.path, tried, found, "" if usual else _said(names, tried, photos.path, where))
            if all(best.found):
                return best
    return (folders[0] != root and _deeper(places[0], best, names, where)) or best


def _deeper(photos: PhotoFolder, best: Settled, names: Sequence[str], where: Path) -> Settled | None:
    """Find all photos in deeper folders than names say, where it is clear which; None where it is not."""
    for tried in _cuts(best.names):
        found = [path for path in photos.find_deeper(tried) if path]
        if len(set(found)) < len(tried) or any(new != old for new, old in zip(found, best.found) if old):
            continue
        folders = [path.parent.relative_to(photos.path) for path in found]
        if not any(_has_word(folder.as_posix(), OTHER_WORDS) for folder in folders):
            there = [(folder / parts_of(name)[-1]).as_posix() for folder, name in zip(folders, tried)]
            return Settled(photos.path, there, list(found), _said(names, there, photos.path, where))
    return None


def _cuts(names: Sequence[str]) -> Iterator[list[str]]:
    """Yield names without their first 0, 1, ... folders, while they lead to files inside and still differ."""
    for cut in range(max((len(parts_of(name)) for name in names), default=0)):
        tried = [_without(name, cut) for name in names]
        if len(set(tried)) == len(set(names)) and all(is_inside(name) for name in tried):
            yield tried


def _said(names: Sequence[str], tried: Sequence[str], folder: Path, where: Path) -> str:
    name, taken = min((pair for pair in zip(names, tried) if pair[0] != pair[1]), default=(names[0], tried[0]))
    return f"{where} names its photos from elsewhere: {name} is {folder / taken}, and the others likewise"


def from_root(root: Path, name: str) -> str:
    """Return a name from the root on, where it is an absolute one inside it."""
    for folder in (root.absolute(), root.resolve()) if os.path.isabs(name) else ():
        if Path(name).is_relative_to(folder):
            return Path(name).relative_to(folder).as_posix()
    return name


def from_above(here: Path, root: Path, names: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """Follow names that lead up from the folder `here` by `..`, to files in the scene `root` or beside `here`.

    Returns the folder to start from and what each name is from there on: `here`, and nothing, where none leads up, one
    leads elsewhere, or nothing is there.
    """
    whole = root.resolve()
    top, below = (root, here.relative_to(root)) if here != root else (whole.parent, Path(whole.name))
    led = {name: posixpath.normpath((below / name).as_posix()) for name in names}
    if not any(".." in parts_of(name) for name in names) or not all(is_inside(name) for name in led.values()):
        return here, {}
    if not any(os.path.isfile(top / f"{name}{end}") for name in led.values() for end in ("", *SUFFIXES)):
        return here, {}
    firsts = {name.split("/", 1)[0] for name in led.values()}
    if len(firsts) > 1 or any("/" not in name for name in led.values()):
        return top, led
    return top / firsts.pop(), {name: new.split("/", 1)[1] for name, new in led.items()}


def _without(name: str, cut: int) -> str:
    """Return a name without its first folders."""
    parts = parts_of(name)
    return "/".join(parts[min(cut, len(parts) - 1) :]) if cut else name


def photo_root(root: Path, model: Path) -> Path:
    """Return the folder in and below which the photos of a model lie: the scene, as a rule.

    Where that has none, for it is the folder of nothing but the model, such as SCENE/sparse or SCENE/sparse/0, the
    innermost around it that has.
    """
    real = root.resolve()
    if model.is_file() or _has_photos(root):
        return root
    levels = zip((real, *real.parents), real.parents[:DEEPEST])
    around = [p for inner, p in levels if inner.name.startswith(MODEL_WORDS) or (inner == real and root == model)]
    return next((p for p in around if _has_photos(p)), root)


def _has_photos(folder: Path) -> bool:
    """Say whether photos lie in a folder, or it has one called like a folder of photos."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:  # of somebody else
        return False
    bare = sum(os.path.splitext(entry.name)[1].lower() in SUFFIXES for entry in found)
    return bare >= LEAST_PHOTOS or any(_may_hold_photos(entry.name) and entry.is_dir() for entry in found)


def other_folder(model: Model, root: Path) -> Path | None:
    """Find the only folder of a scene but `model.images` that has all photos; InputError where several have."""
    names = [shot.name for shot in model.shots]
    there = [folder for folder in _photo_folders(model, root) if all(find_images(folder, names))]
    if len(there) > 1:
        raise InputError(
            f"the {len(names)} photos that {model.path} names are not in {model.images} but in {some(there)}: call the "
            "folder of those that it was made from images, or say by --downscale which images_N to use"
        )
    return there[0] if there else None


def _photo_folders(model: Model, root: Path) -> list[Path]:
    """Return the folders called like ones of photos beside a model, and beside those it lies in up to the root."""
    inner = model.path if model.path.is_dir() else model.path.parent
    around = [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    if model.images != root:
        around.append(model.images.parent)
    found = [p for folder in dict.fromkeys(around) for p in sorted(folder.iterdir()) if p.is_dir()]
    return [p for p in found if p != model.images and _may_hold_photos(p.name)]


def _may_hold_photos(name: str) -> bool:
    return _has_word(name, PHOTO_WORDS) and not _has_word(name, OTHER_WORDS)


def _has_word(name: str, words: Sequence[str]) -> bool:
    return any(word in name.lower() for word in words)


def check_own(root: Path, model: Path, photos: Sequence[Path]) -> None:
    """Raise InputError where a model that was found below `root` is of others than the photos that root has itself."""
    if (root / "images").is_dir():
        mine = all(path.relative_to(root).parts[0].startswith("images") for path in photos)  # images_N too
    else:
        bare = sum(path.suffix.lower() in SUFFIXES for path in root.iterdir())
        mine = bare < LEAST_PHOTOS or all(path.parent == root for path in photos)
    if not mine:
        raise InputError(
            f"{root} has photos of its own, but the only camera model below it is of those in {photos[0].parent}: give "
            f"{os.path.commonpath([model, photos[0].parent])} as the scene, or move {model} away"
        )


def missing(where: Path, names: Sequence[str], total: int, folder: Path) -> InputError:
    """Say which photos that `where` names are not in their folder."""
    return InputError(
        f"{len(names)} of the {total} images that {where} names are missing in {folder}: {some(names)}; restore them, "
        "or reconstruct the scene from the images that are there"
    )
