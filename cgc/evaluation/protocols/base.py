"""What a benchmark's folder holds, whatever its layout: true masks by scene, view and prompt, and references."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from cgc.errors import InputError, reason, some
from cgc.scene.images import SUFFIXES, UNREADABLE


@dataclass(frozen=True)
class TrueMask:
    """One true mask: `view` is what the benchmark calls the view, `prompt` what the object is called."""

    scene: str
    view: str
    prompt: str
    path: Path

    def load(self) -> np.ndarray:
        """Return the mask, [H, W] bool."""
        return read_mask(self.path)


@dataclass(frozen=True)
class Reference:
    """What points at the object of a prompt, in one view: a mask, or positive and negative scribbles."""

    scene: str
    view: str
    prompt: str
    positive: tuple[Path, ...]
    negative: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's truth. `orders`: by scene, the stems of its images in the order in which a number names a view.

    `mean` says how IoUs are averaged in a scene: over each prompt's views and then over prompts, or over all at once.
    `definition` is what the numbers are, in a sentence.
    """

    protocol: str
    definition: str
    masks: tuple[TrueMask, ...]
    references: tuple[Reference, ...] = ()
    orders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mean: Literal["prompts", "masks"] = "masks"
    notes: tuple[str, ...] = ()

    @property
    def scenes(self) -> tuple[str, ...]:
        """The scenes there are, in order."""
        return tuple(dict.fromkeys(m.scene for m in self.masks))

    def prompts(self, scene: str) -> tuple[str, ...]:
        """The prompts of a scene, in order."""
        return tuple(dict.fromkeys(m.prompt for m in self.masks if m.scene == scene))


def read_mask(path: Path) -> np.ndarray:
    """Read a binary mask, [H, W] bool: what is not black where the file holds one other value, else above half.

    Colours count by their strongest channel, and what is transparent is not set.
    """
    try:
        with Image.open(path) as image:
            values, shown = _strength(image)
    except UNREADABLE as error:
        raise InputError(f"the mask {path} cannot be read ({reason(error)}); restore it") from error
    values = np.where(shown, values, 0)
    if len(np.unique(values[values > 0])) <= 1:
        return values > 0
    return values > (128 if values.max() <= 255 else 128 * 257)


def _strength(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the strongest channel of an image and whether anything is shown, [H, W] each."""
    if image.mode in ("L", "I;16", "I"):
        values = np.asarray(image)
        return values, np.ones(values.shape, bool)
    colours = np.asarray(image.convert("RGBA"))
    return colours[..., :3].max(axis=2), colours[..., 3] > 0


def folders(root: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def pictures(root: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The image files in a folder, by name, without hidden ones."""
    if not root.is_dir():
        return []
    found = (p for p in root.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
    return sorted(p for p in found if p.is_file())


def check_folder(root: Path, layout: str) -> None:
    """Raise InputError where a benchmark's folder is none."""
    if root.is_file():
        raise InputError(f"{root} is a file where the benchmark's folder was expected, {layout}")
    if not root.is_dir():
        raise InputError(f"the benchmark folder {root} does not exist; expected {layout}")


def find_scenes(root: Path, inside: str, layout: str) -> dict[str, Path]:
    """The scene folders, by name, that hold `inside`: the folder itself, or those in it; InputError where none does."""
    check_folder(root, layout)
    if (root / inside).is_dir():
        return {root.resolve().name: root}
    found = {p.name: p for p in folders(root) if (p / inside).is_dir()}
    if not found:
        raise InputError(
            f"{root} has no {inside} folder, nor has any folder in it ({some(p.name for p in folders(root))}); "
            f"expected {layout}"
        )
    return found


def find_view(token: str, stems: Sequence[str], order: Sequence[str], *, contained: bool = False) -> int:
    """The index in `stems` of the view that a benchmark calls `token`.

    That is its stem, or its last part where this is unique; or a number, the place of its image in `order`; or, where
    names may be `contained`, the longest stem that `token` holds as a word of its own. InputError where there is no
    such view, or where there are several.
    """
    last = [s.rsplit("/", 1)[-1] for s in stems]
    for names in (list(stems), last):
        if names.count(token) == 1:
            return names.index(token)
    if token.isdecimal() and int(token) < len(order) and order[int(token)] != token:
        return find_view(order[int(token)], stems, ())
    if contained:
        held = [s for s in last if _holds(token, s)]
        longest = [s for s in held if len(s) == max(map(len, held))]
        if len(longest) == 1:
            return last.index(longest[0])
    raise InputError(f"the truth has a view {token!r}, but the views of the run are {some(stems)}")


def find_views(tokens: Sequence[str], stems: Sequence[str], order: Sequence[str], *, contained: bool) -> dict[str, int]:
    """The views that a benchmark calls `tokens`, as `find_view` finds them; InputError where two are one view."""
    index = {token: find_view(token, stems, order, contained=contained) for token in tokens}
    for view in set(index.values()):
        if len(same := [token for token, i in index.items() if i == view]) > 1:
            raise InputError(
                f"the truth's views {some(same)} would all be the run's view {stems[view]!r}; name them like the "
                f"run's views, {some(stems)}"
            )
    return index


def _holds(token: str, stem: str) -> bool:
    """Whether a stem is in a token, but not inside a longer number or word."""
    alike = {True: "[0-9]", False: "[^\\W\\d_]"}
    before, after = (alike[c.isdecimal()] if c.isalnum() else "(?!)" for c in (stem[:1], stem[-1:]))
    return re.search(rf"(?<!{before}){re.escape(stem)}(?!{after})", token) is not None


def scenes_of(names: Iterable[str], scenes: Sequence[str]) -> list[str]:
    """The benchmark's scenes that belong to a run called one of `names`: of that name, or with it among its words."""
    wanted = [n.lower() for n in names if n]
    for name in wanted:
        if exact := [s for s in scenes if s.lower() == name]:
            return exact
    for name in wanted:
        word = re.compile(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])")
        if found := [s for s in scenes if word.search(s.lower().replace("_", " ")) or word.search(s.lower())]:
            return found
    return list(scenes) if len(scenes) == 1 else []
