"""Id maps: one integer image a view that says which object every pixel is of; 0 = unassigned.

Ids are independent from view to view. 8 or 16 bits on disk, int32 in memory. A map of another size than its
view is resized only by a stated rule, to the nearest id, and a note says so.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from cgc.errors import InputError, reason
from cgc.files import files_below, write_beside
from cgc.masks.image_masks import read_wholes
from cgc.masks.record import read_record, set_path
from cgc.scene.images import UNREADABLE
from cgc.scene.types import View

Size = tuple[int, int]  # width, height
MAX_ID = 65535
_ID_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class MaskSet:
    """The id maps of a scene's views: a file each, None for a view without; `notes` say what was resized.

    `record` is what masks.json beside them says of how they were made, {} where there is none.
    """

    folder: Path
    views: tuple[View, ...]
    paths: tuple[Path | None, ...]
    resize: Literal["error", "nearest"] = "error"
    notes: tuple[str, ...] = field(default=())
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tracked(self) -> bool:
        """Say whether ids are known to mean the same thing in every view."""
        return bool(self.record.get("tracked"))

    def set_of(self, view_index: int) -> Path | None:
        """The file with all masks of a view, nested ones too; None where only the id map is known."""
        path = self.paths[view_index]
        beside = set_path(self.folder, path.relative_to(self.folder).with_suffix("").as_posix()) if path else None
        return beside if beside is not None and self.record and beside.is_file() else None

    def wholes(self, view_index: int) -> np.ndarray | None:
        """Return which whole each id of a view is of, [ids + 1], where its masks are known to nest; None elsewhere."""
        beside = self.set_of(view_index)
        if beside is None:
            return None
        found = read_wholes(beside)
        return found if len(np.unique(found)) < len(found) else None

    def load(self, view_index: int) -> np.ndarray:
        """Return the id map of a view at its camera's size, [H, W] int32; all 0 for a view without a mask."""
        view, path = self.views[view_index], self.paths[view_index]
        if path is None:
            return np.zeros((view.camera.height, view.camera.width), np.int32)
        ids = read_id_map(path)
        fit, _ = fitting(view, path, (ids.shape[1], ids.shape[0]), self.resize, bool(self.record))
        return fit(ids)


def read_mask_folder(
    folder: Path | str, scene_views: Sequence[View], resize: Literal["error", "nearest"] = "error"
) -> MaskSet:
    """Match the PNG id maps in `folder` to views by name and check every one of them.

    A mask of `sub/0001.jpg` is `sub/0001.png` or `sub/0001.jpg.png`, or `0001.png` where that name fits one
    view only. Its size is its image's: the size the view is used at or, with a note, the photo's own (a scene
    that was downscaled or undistorted). `resize="nearest"` accepts every size. Raises InputError where no
    name matches, a file is broken or of another size, or no mask holds an id.
    """
    folder, views = Path(folder), tuple(scene_views)
    record = read_record(folder)
    if not folder.is_dir():
        raise InputError(f"the mask folder {folder} does not exist; expected a folder with one PNG id map per view")
    found = {path.relative_to(folder).as_posix(): path for path in sorted(files_below(folder)) if _is_png(path)}
    paths = match_names(found, views)
    if not any(paths):
        came = ", ".join(list(found)[:3]) or "no PNG at all"
        expected = ", ".join(f"{view.stem}.png" for view in views[:3])
        raise InputError(
            f"no name in the mask folder {folder} matches an image: found {came}, expected {expected}; "
            "name every mask like its image"
        )
    if not record:
        _check_numbers(folder, found, views)
    notes: Counter[str] = Counter()
    any_id = False
    for view, path in zip(views, paths):
        if path is not None:
            ids = read_id_map(path)
            _, note = fitting(view, path, (ids.shape[1], ids.shape[0]), resize, bool(record))
            any_id = any_id or bool(ids.any())
            notes.update([note] if note else [])
    if not any_id:
        raise InputError(
            f"the masks in {folder} hold no id at all: every pixel is 0, which means unassigned; "
            "make masks in which every object has an id over 0"
        )
    counted = tuple(f"{count} masks {note}" for note, count in notes.items())
    return MaskSet(folder, views, tuple(paths), resize, counted, record)


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png" and not path.name.startswith(".") and path.is_file()


def _check_numbers(folder: Path, found: Mapping[str, Path], views: Sequence[View]) -> None:
    """Refuse masks whose numbers start elsewhere than the images': by name each would be another image's."""
    names, stems = [name.removesuffix(".png") for name in found], [view.stem for view in views]
    if shift := number_shift(names, stems):
        numbers = sorted(numbers_of(names))
        raise InputError(
            f"the masks in {folder} are numbered {numbers[0]} to {numbers[-1]} and the images {numbers[0] + shift} to "
            f"{numbers[-1] + shift}, so by name each would be another image's; bring them in with `cgc masks SCENE "
            f"--from {folder}`, which matches them by their numbers, or, where equal numbers do belong together, "
            f"remove mask {numbers[0] if shift > 0 else numbers[-1]}"
        )


def numbers_of(names: Sequence[str]) -> list[int]:
    """Return the numbers at the end of names that differ in nothing else; none where names differ otherwise."""
    matches = [re.fullmatch(r"(.*?)([0-9]{1,9})(\.[A-Za-z]\w*)?", name) for name in names]
    numbers = [int(match[2]) for match in matches if match]
    alike = len({(match[1], match[3]) if match else None for match in matches}) == 1
    return numbers if alike and len(set(numbers)) == len(names) else []


def number_shift(names: Sequence[str], images: Sequence[str]) -> int | None:
    """Return what takes the first and last number of names to those of images, where every image has one then."""
    masks, numbers = numbers_of(names), numbers_of(images)
    if not masks or not numbers:
        return None
    shift = min(numbers) - min(masks)
    fits = max(numbers) - max(masks) == shift and set(masks) >= {number - shift for number in numbers}
    return shift if fits else None


def match_names(found: dict[str, Path], views: Sequence[View]) -> list[Path | None]:
    """Return every view's file: by its stem or whole name, else by its name alone where that is unique."""
    by_stem = {os.path.splitext(name)[0]: path for name, path in found.items()}
    flat = Counter(view.stem.rsplit("/", 1)[-1] for view in views)
    paths = []
    for view in views:
        path = by_stem.get(view.stem) or by_stem.get(view.name)
        bare = view.stem.rsplit("/", 1)[-1]
        if path is None and "/" in view.name and flat[bare] == 1:
            path = by_stem.get(bare) or by_stem.get(view.name.rsplit("/", 1)[-1])
        paths.append(path)
    return paths


def fitting(
    view: View, path: Path, size: Size, resize: Literal["error", "nearest"], of_view: bool = False
) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """Return what brings a mask of `size` to the view's camera, and the note that says so ("": nothing).

    `of_view`: it was made of what the view's camera sees, of whatever size, and not of the photo before undistortion.
    """
    camera = view.camera
    used: Size = (camera.width, camera.height)
    lens = view.distortion
    photo_sizes = {view.full_size, (lens.width, lens.height) if lens else None}
    as_photo = size in photo_sizes
    if lens is not None and not (as_photo or of_view or size == used):
        from cgc.scene.lens import undistorted

        flat = undistorted(lens)
        photo, whole = (lens.width, lens.height), (flat.width, flat.height)
        photo_sizes.add(whole)
        as_photo = resize == "nearest" and size != whole and _stretch(size, photo) <= _stretch(size, whole)
    if lens is not None and as_photo and not of_view:

        def undistort(ids: np.ndarray) -> np.ndarray:
            from cgc.scene.lens import sample_distorted  # pycolmap takes half a second to import

            return sample_distorted(ids, lens, camera)

        return undistort, "are of the photos before undistortion: they were undistorted likewise (nearest id)"
    if size == used:
        return lambda ids: ids, ""
    if size not in photo_sizes and not of_view and _on_its_side(size, used):
        raise InputError(
            f"{view.name} is {_text(view.full_size or used)} but its mask {path} is {_text(size)}, on its side: the "
            "tool that made it has turned the photo as its EXIF tag says, and the model has not; turn the masks back, "
            "or make them of photos without the tag"
        )
    if size in photo_sizes or resize == "nearest" or of_view:
        note = f"were resized from {_text(size)} to the {_text(used)} of their images (nearest id)"
        return lambda ids: resize_nearest(ids, *used), note
    raise InputError(
        f"{view.name} is {_text(view.full_size or used)} but its mask {path} is {_text(size)}; "
        "make the mask again from this image, or have all of them resized to the nearest id: "
        "cgc masks SCENE --from DIR --resize nearest"
    )


def _stretch(size: Size, other: Size) -> float:
    """How far a size is from being another one, scaled."""
    return abs(math.log(size[0] * other[1] / (size[1] * other[0])))


def _on_its_side(size: Size, used: Size) -> bool:
    """Say whether a size is another one with its sides swapped, but for the scale and a pixel or two."""
    (width, height), (high, wide) = size, used
    swapped = math.isclose(width * high, height * wide, rel_tol=0.02)
    return swapped and wide != high and (width > height) == (wide > high)


def resize_nearest(ids: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize an id map [h, w] to [height, width]: every pixel takes the id that its centre falls on."""
    rows = (np.arange(height) * 2 + 1) * ids.shape[0] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * ids.shape[1] // (2 * width)
    return ids[rows[:, None], columns]


def as_photo(ids: np.ndarray, view: View) -> np.ndarray:
    """Bring an id map [H, W] that a view's camera has to its photo, in size and, where it was undistorted, in lens.

    Every pixel takes the nearest id, and 0 where the undistorted picture does not show it. The other way: `fitting`.
    """
    width, height = view.full_size or (view.camera.width, view.camera.height)
    if view.distortion:
        from cgc.scene.lens import sample_undistorted  # pycolmap takes half a second to import

        return sample_undistorted(ids, view.camera, view.distortion, width, height)
    return ids if ids.shape == (height, width) else resize_nearest(ids, width, height)


def read_id_map(path: Path | str) -> np.ndarray:
    """Read an id map, [H, W] int32: a PNG of one channel, 1 to 16 bits; a palette's indices; equal channels.

    Raises InputError where the file is no whole image or holds colours.
    """
    try:
        with Image.open(path) as image:
            image.load()
            mode, pixels = image.mode, np.asarray(image)
    except UNREADABLE as error:
        raise InputError(
            f"the mask {path} cannot be read ({reason(error)}): it is truncated or no PNG; make it again or remove it "
            "(views without a mask are fine)"
        ) from error
    if mode in ("RGB", "RGBA", "LA", "La"):
        opaque = mode == "RGB" or (pixels[..., -1] == 255).all()
        channels = pixels if mode == "RGB" else pixels[..., :-1]
        if not opaque or (channels != channels[..., :1]).any():
            raise InputError(
                f"the mask {path} has {pixels.shape[-1]} channels ({mode}) that differ; expected an id map: "
                "a PNG of one channel, 8 or 16 bits, whose values are ids; export it as one"
            )
        pixels = channels[..., 0]
    elif mode not in _ID_MODES:
        raise InputError(f"the mask {path} is of the kind {mode}; expected a PNG of one channel, 8 or 16 bits")
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > MAX_ID:  # a TIFF, whatever it is called
        raise InputError(f"the mask {path} holds the ids {low} to {high}; expected 0 to {MAX_ID}, as in a 16-bit PNG")
    return pixels.astype(np.int32)


def write_id_map(path: Path | str, ids: np.ndarray) -> None:
    """Write an id map [H, W] as a 16-bit PNG, whole or not at all; raise InputError for ids over 65535."""
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"expected an id map [H, W] of integers, got {list(ids.shape)} of {ids.dtype}")
    low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
    if low < 0 or high > MAX_ID:
        raise InputError(
            f"{path} would hold the ids {low} to {high}, but a 16-bit PNG holds 0 to {MAX_ID}; number the ids anew"
        )
    with write_beside(path) as temporary:
        Image.fromarray(ids.astype(np.uint16)).save(temporary, format="PNG")


def border_mask(ids: np.ndarray, width: int) -> np.ndarray:
    """Return where a pixel within `width` px (in x and in y) has another id, [H, W] bool; 0 is one too."""
    if width < 1:
        return np.zeros(ids.shape, bool)
    size = 2 * width + 1
    low = ndimage.minimum_filter(ids, size, mode="nearest")
    return low != ndimage.maximum_filter(ids, size, mode="nearest")


def disagree(masks: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Say which pixels of masks [H, W] are of another segment `ids` [H, W] than most of their mask, [H, W] bool.

    Pixels in no mask never are; a segment that several masks share is no disagreement.
    """
    _, mask = np.unique(masks, return_inverse=True)
    found, segment = np.unique(ids, return_inverse=True)
    mask, segment = mask.ravel(), segment.ravel()
    pairs, counts = np.unique(mask.astype(np.int64) * len(found) + segment, return_counts=True)
    order = np.lexsort((-pairs, counts))  # of equal counts the lower segment comes last and wins
    most = np.zeros(mask.max(initial=0) + 1, np.int64)
    most[pairs[order] // len(found)] = pairs[order] % len(found)
    return (masks > 0) & (segment != most[mask]).reshape(masks.shape)


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
