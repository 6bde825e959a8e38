"""What every importer gives and is given: the masks of one file, where they lie, and the view they must fit."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
from PIL import Image

from cgc.errors import InputError, reason
from cgc.files import open_text, read_text
from cgc.masks.id_maps import Size, fitting
from cgc.scene.images import UNREADABLE
from cgc.scene.types import View

Resize = Literal["error", "nearest"]
LARGEST = 64
"""Masks that may be resized have at most this many times the pixels of their photo."""
LONGEST = 1 << 31
"""Pixels, more than a side of any picture."""


@dataclass(frozen=True)
class Frame:
    """The view that a file's masks must fit. `check` a size before anything of that size is made."""

    view: View
    path: Path
    resize: Resize

    @property
    def photo(self) -> Size:
        """Width and height of the photo as the user has it."""
        return self.view.full_size or (self.view.camera.width, self.view.camera.height)

    def check(self, width: Any, height: Any) -> Size:
        """Return the size, (width, height); InputError where it is none, or not the view's."""
        if not (is_whole(width) and is_whole(height) and 0 < width < LONGEST and 0 < height < LONGEST):
            size = f"{width!r:.20}x{height!r:.20}"
            raise InputError(f"{self.path} says that its masks are {size}; expected a size in pixels")
        self.fitting((width, height))
        if width * height > LARGEST * self.photo[0] * self.photo[1]:
            raise InputError(
                f"{self.path} says that its masks are {width}x{height}, over {LARGEST} times the pixels of "
                f"{self.view.name} ({self.photo[0]}x{self.photo[1]}); they are of another image, or the file is broken"
            )
        return width, height

    def fits(self, width: int, height: int) -> bool:
        """Tell whether masks of this size need no leave to be resized."""
        try:
            fitting(self.view, self.path, (width, height), "error")
        except InputError:
            return False
        return min(width, height) > 0

    def fitting(self, size: Size) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
        """Return what brings a mask of `size` to the view's camera, and the note that says so."""
        return fitting(self.view, self.path, size, self.resize)


@dataclass(frozen=True)
class Found:
    """The masks of one view at the size of their file: `ids` [L, h, w] (0 = unassigned, L levels) or run lengths.

    object_ids: which object each of `counts` is, where they are the same in every view. skipped: how often what was
    left out.
    """

    width: int
    height: int
    ids: np.ndarray | None = None
    counts: list[np.ndarray] = field(default_factory=list)
    scores: list[float] | None = None
    object_ids: list[int] | None = None
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Entry:
    """Where the masks of one image lie, and what reads them."""

    path: Path
    read: Callable[[Frame], Found]


@dataclass
class Source:
    """All that was found: an entry a name (without suffix, sub-folders kept).

    tracked: ids mean the same in every view. decisions: sentences. frames: names are numbers of photos, from 0.
    photos: what an entry's file calls its photo, {that: entry}, taken where it fits more images than entries' names.
    """

    entries: dict[str, Entry]
    tracked: bool = False
    decisions: list[str] = field(default_factory=list)
    frames: bool = False
    photos: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, entry: Entry) -> None:
        """Add an entry; InputError where the name is there already."""
        if name in self.entries:
            raise InputError(
                f"{self.entries[name].path} and {entry.path} both hold masks of {name}; keep one of them"
                if self.entries[name].path != entry.path
                else f"{entry.path} has two entries for the image {name}; keep one of them"
            )
        self.entries[name] = entry


@dataclass(frozen=True)
class Listing:
    """The files that an importer may read: `root` is a folder, `files` lie below it."""

    root: Path
    files: tuple[Path, ...]

    def named(self, *suffixes: str) -> list[Path]:
        """Return the files with one of these suffixes."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    def name(self, path: Path) -> str:
        """Return a file's name below the root without its suffix."""
        return path.relative_to(self.root).with_suffix("").as_posix()


def jsons(listing: Listing, wanted: Callable[[Path], bool], read: Callable[[Frame], Found]) -> Source:
    """Find the JSON files of a kind, one an image of the same name; `read` gives a file's masks."""
    source, skipped = Source({}), []
    for path in listing.named(".json"):
        if wanted(path):
            source.add(listing.name(path), Entry(path, read))
        else:
            skipped.append(path.name)
    if skipped:
        source.decisions.append(f"{len(skipped)} JSON files of another kind were skipped, {skipped[0]} among them.")
    return source


def is_whole(value: Any) -> TypeGuard[int]:
    """Tell whether a value of a JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def read_json(path: Path) -> Any:
    """Read a JSON file of somebody else; InputError where it is broken in any way."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); it is truncated or damaged, export it again") from error


def start_of(path: Path) -> str:
    """Return the first 4096 characters of a text file, which show what it is; nothing where it is none."""
    try:
        with open_text(path) as file:
            return file.read(4096)
    except (OSError, UnicodeDecodeError):
        return ""


def image_header(path: Path) -> tuple[Size, str]:
    """Return (width, height) and the kind of pixels of an image without decoding it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # sizes are compared with the photo's
            with Image.open(path) as image:
                return image.size, image.mode
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def read_pixels(path: Path, frame: Frame | None = None) -> tuple[np.ndarray, str]:
    """Decode an image of masks: its pixels and their kind; its size is compared with the frame's first."""
    size, _ = image_header(path)
    if frame is not None:
        frame.check(*size)
    try:
        with Image.open(path) as image:
            image.load()
            return np.asarray(image), image.mode
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> InputError:
    """Return the error of an image that cannot be decoded."""
    return InputError(f"the mask {path} cannot be read ({reason(error)}): it is truncated or no image; export it again")
