"""Image files: find them, read their sizes from the header, decode them at their view's size.

COLMAP works on stored pixels and ignores EXIF orientation, other tools turn the photo first. The size tells
which: a photo is turned by its tag only where its turned size fits the camera and its stored size does not. One that
its tag says is upside down or mirrored fits both ways, and is taken as it is stored.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, features

from cgc.errors import InputError, reason
from cgc.files import folders_below
from cgc.scene.types import View

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", *((".avif",) if features.check("avif") else ()))
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 swap width and height
_WIDTH, _HEIGHT = 256, 257  # tags of a TIFF
_TURN = Image.Transpose
_BACK = {
    2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE, 6: _TURN.ROTATE_90,
    7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_270,
}  # fmt: skip
"""What undoes the turn that a tag asks for."""
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, Image.DecompressionBombError)
"""What PIL raises for files that are no images, or broken ones; MemoryError it raises for whole ones, too."""


@dataclass(frozen=True)
class Header:
    """Stored (width, height) of an image file, and whether its EXIF tag turns it by 90 degrees."""

    size: tuple[int, int]
    sideways: bool


def find_images(folder: Path, names: Sequence[str]) -> list[Path | None]:
    """Find every name's file in `folder`: the name itself, or its stem with another image suffix or other codes."""
    return PhotoFolder(folder).find(names)


class PhotoFolder:
    """The photos below a folder, which is listed once, when a name is not there as it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, names: Sequence[str]) -> list[Path | None]:
        """Find every name's file: the name itself, or its stem with another image suffix or other codes."""
        there = [os.path.isfile(os.path.join(self.path, name)) for name in names]
        return [self.path / name if exact else self._alike(name) for name, exact in zip(names, there)]

    def find_deeper(self, names: Sequence[str]) -> list[Path | None]:
        """Find every name's file in any folder below: the only one whose path ends in the name, its suffix aside."""
        stems = [os.path.splitext(_plain(name))[0] for name in names]
        ends: dict[str, list[str]] = {}
        for depth in {stem.count("/") for stem in stems}:
            for path, files in self._by_stem.items():
                ends.setdefault("/".join(path.rsplit("/", depth + 1)[-depth - 1 :]), []).extend(files)
        candidates = [ends.get(stem, []) for stem in stems]
        return [Path(files[0]) if len(files) == 1 else None for files in candidates]

    def _alike(self, name: str) -> Path | None:
        name = _plain(name)
        candidates = self._by_stem.get(os.path.splitext(name)[0], []) or self._by_stem.get(name, [])
        return Path(candidates[0]) if len(candidates) == 1 else None

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """The files by their names from the folder on, without a suffix."""
        stems: dict[str, list[str]] = {}
        for parent, files in folders_below(self.path):
            inner = _plain(os.path.relpath(parent, self.path)) + "/"
            for stem, suffix in map(os.path.splitext, files):
                if suffix.lower() in SUFFIXES:
                    name = ("" if inner == "./" else inner) + _plain(stem)
                    stems.setdefault(name, []).append(os.path.join(parent, stem + suffix))
        return stems


def _plain(name: str) -> str:
    """Return a name with slashes as here and accents in one code, whichever system has written it."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def read_header(path: Path) -> Header:
    """Read an image's size without decoding it; raise InputError where it is no image."""
    try:
        with Image.open(path) as image:
            # PNG may keep EXIF behind the pixels; looking for it there would decode the whole image
            has_exif = image.format != "PNG" or "exif" in image.info
            orientation = image.getexif().get(_ORIENTATION, 1) if has_exif else 1
            size = _stored_size(image)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if min(size) < 1:
        raise InputError(f"{path} is {size[0]}x{size[1]}; an image needs at least one pixel, so restore it")
    return Header(size, orientation in (5, 6, 7, 8))


def load_photo(path: Path, exif_rotated: bool) -> np.ndarray:
    """Decode an image to [H, W, 3] uint8; what is see-through is black."""
    return load_colors(path, exif_rotated)[..., :3]


def load_colors(path: Path, exif_rotated: bool, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image, shrunk to `size` (width, height) by area; see-through: [H, W, 4], colours times alpha, alpha."""
    try:
        with Image.open(path) as file:
            image = _turned(file) if exif_rotated else _as_stored(file)
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # which convert() would clip
                image = Image.fromarray(_as_bytes(np.asarray(image)))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                least, most = image.getchannel("A").getextrema()
                image = image.convert("RGBa" if least < 255 and most > 0 else "RGB")  # type: ignore[operator]
            else:
                image = image.convert("RGB")
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if size is not None and image.size != size:
        smaller = size[0] <= image.width and size[1] <= image.height
        image = image.resize(size, Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC)
    return np.array(image, np.uint8)


def _stored_size(file: Image.Image) -> tuple[int, int]:
    """Return (width, height) as an opened file has them; of a TIFF, PIL may name those that its tag leads to."""
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        return int(file.tag_v2[_WIDTH]), int(file.tag_v2[_HEIGHT])
    return file.size


def _turned(file: Image.Image) -> Image.Image:
    """Decode an opened file, turned as its tag says."""
    file.load()
    return ImageOps.exif_transpose(file)


def _as_stored(file: Image.Image) -> Image.Image:
    """Decode an opened file as it is stored, as COLMAP does; PIL turns a TIFF unasked, and takes its tag away."""
    is_tiff = isinstance(file, TiffImagePlugin.TiffImageFile)
    asked = file.getexif().get(_ORIENTATION, 1) if is_tiff else 1
    file.load()
    if asked in _BACK and _ORIENTATION not in file.getexif():
        return file.transpose(_BACK[asked])
    return file


def _as_bytes(grey: np.ndarray) -> np.ndarray:
    """Bring a grey picture [H, W] of 0..1, 0..255 or 16 bits to bytes: which it is, its type or largest value says."""
    if grey.dtype == np.uint16:
        return (grey // 257).astype(np.uint8)
    grey = np.nan_to_num(grey.astype(float))
    most = grey.max(initial=0)
    scale = 255 if most <= 1 else 1 if most <= 255 else 1 / 257 if most <= 65535 else 255 / most
    return (np.clip(grey, 0, None) * scale).astype(np.uint8)


def load_image(view: View, white: bool = False) -> np.ndarray:
    """Decode a view's image at its camera's size, [H, W, 3] uint8, what is see-through on black or on white.

    Raise InputError for a broken file.
    """
    colors = load_view(view)
    if white and colors.shape[2] == 4:
        return colors[..., :3] + (255 - colors[..., 3:])
    return colors[..., :3]


def load_whole(view: View) -> np.ndarray:
    """Decode a view's image as large as its file is, [H, W, 3] uint8, what is see-through on black."""
    return load_photo(view.image_path, view.exif_rotated)


def load_view(view: View) -> np.ndarray:
    """Decode a view's image at its camera's size as `load_colors` does, [H, W, 3 or 4] uint8."""
    return load_colors(view.image_path, view.exif_rotated, (view.camera.width, view.camera.height))


def check_images(views: Iterable[View]) -> None:
    """Decode every view's image once and throw it away; raise InputError that names the first broken one."""
    for view in views:
        load_photo(view.image_path, exif_rotated=False)


def _unreadable(path: Path, error: BaseException) -> InputError:
    return InputError(
        f"{path} cannot be read as an image ({reason(error)}): it is truncated, damaged or of another kind; "
        "copy it again, or remove it and reconstruct the scene without it"
    )
