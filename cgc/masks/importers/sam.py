"""Segment Anything's own output: a folder of PNGs with metadata.csv an image, a JSON an image, SA-1B's JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cgc.errors import InputError
from cgc.files import open_text, read_text
from cgc.masks.id_maps import Size
from cgc.masks.image_masks import encode
from cgc.masks.importers.base import Entry, Found, Frame, Listing, Source, jsons, read_json, read_pixels, start_of
from cgc.masks.importers.coco import image_name
from cgc.masks.importers.names import natural
from cgc.masks.importers.rle import read_runs

HEADER = "id,area,bbox_x0"


def is_folder(table: Path) -> bool:
    """Tell whether a metadata.csv is that of an image's masks."""
    try:
        with open_text(table) as file:
            return file.read(len(HEADER)) == HEADER
    except (OSError, UnicodeDecodeError):
        return False


def is_masks(value: Any) -> bool:
    """Tell whether a JSON is the generator's list of masks."""
    rows = value if isinstance(value, list) else None
    return rows is not None and all(
        isinstance(row, dict) and isinstance(row.get("segmentation"), dict) and "image_id" not in row
        for row in rows[:5]
    )


def is_sa1b(value: Any) -> bool:
    """Tell whether a JSON is an image and its masks: SA-1B's, or Grounded SAM 2's, which has the image's size."""
    if not isinstance(value, dict) or not (isinstance(value.get("image"), dict) or "img_width" in value):
        return False
    return is_masks(value.get("annotations"))


def open_folders(listing: Listing) -> Source:
    """Find the folders of PNGs: those with metadata.csv or, where none has it, all."""
    source = Source({})
    folders = dict.fromkeys(p.parent for p in listing.files if p.name == "metadata.csv" and is_folder(p))
    read = _read_folder
    if not folders:
        folders, read = dict.fromkeys(p.parent for p in listing.named(".png")), _read_pngs
        source.decisions.append("No folder has metadata.csv: all PNGs of a folder are masks of one image, unrated.")
    for folder in folders:
        name = folder.relative_to(listing.root).as_posix()
        source.add(folder.name if name == "." else name, Entry(folder, read))
    return source


def _read_pngs(frame: Frame) -> Found:
    """Read a folder of masks without scores."""
    paths = sorted((p for p in frame.path.iterdir() if p.suffix.lower() == ".png"), key=lambda p: natural(p.stem))
    counts, size = _read_masks(paths, frame)
    return Found(*size, counts=counts)


def _read_masks(paths: Sequence[Path], frame: Frame) -> tuple[list[np.ndarray], Size]:
    """Read black and white PNGs of one image: their run lengths and their size."""
    counts, size = [], frame.photo
    for path in paths:
        pixels, mode = read_pixels(path, frame)
        if pixels.ndim != 2 or not np.isin(pixels, (0, pixels.max(initial=0))).all():
            raise InputError(f"{path} is of the kind {mode}; expected black and white")
        its = (pixels.shape[1], pixels.shape[0])
        if counts and its != size:
            raise InputError(f"{path} is {its[0]}x{its[1]}, another mask of its image {size[0]}x{size[1]}")
        size = its
        counts.append(encode(pixels > 0))
    return counts, size


def _read_folder(frame: Frame) -> Found:
    path = frame.path / "metadata.csv"
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path)), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); it is damaged, make the masks again") from error
    masks: dict[Path, float] = {}
    for row in rows:
        number = row.get("id") or ""
        mask = frame.path / f"{number}.png"
        if not re.fullmatch(r"\d{1,9}", number) or mask in masks:
            raise InputError(f"{path} names a mask {number!r}; expected the numbers 0, 1, ... once each")
        if not mask.is_file():
            raise InputError(f"{path} has a row for {mask.name}, which is missing; make the masks of this image again")
        masks[mask] = _score(row.get("predicted_iou"), path)
    counts, size = _read_masks(list(masks), frame)
    return Found(*size, counts=counts, scores=list(masks.values()))


def _score(value: Any, path: Path) -> float:
    if value is None:
        return 1.0
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} rates a mask {value!r}; expected a number") from error
    if not abs(score) < 1e30:
        raise InputError(f"{path} rates a mask {value!r}; expected a finite number")
    return score


def open_jsons(listing: Listing, photos: bool) -> Source:
    """Find the JSON files, one an image; `photos`: with an image in them, whose path may be at their start."""
    first = "{" if photos else "["  # the rest is looked at when it is read
    source = jsons(listing, lambda path: start_of(path).lstrip().startswith(first), _read_json)
    found = {name: _photo(entry.path) for name, entry in source.entries.items()}
    times = Counter(found.values())
    source.photos.update({photo: name for name, photo in found.items() if photo and times[photo] == 1})
    return source


def _photo(path: Path) -> str | None:
    """Return the name of the image whose path a JSON has at its start; None for one without."""
    match = re.search(r'"image_path"\s*:\s*("(?:[^"\\]|\\.)+")', start_of(path))
    try:
        return image_name(json.loads(match[1]), path) if match else None
    except ValueError:
        return None


def _read_json(frame: Frame) -> Found:
    value = read_json(frame.path)
    rows = value.get("annotations") if isinstance(value, dict) else value
    return found_in_rows(rows, frame)


def found_in_rows(rows: Any, frame: Frame) -> Found:
    """Read a list of masks with their run lengths."""
    if not isinstance(rows, list):
        raise InputError(f"{frame.path} has no list of masks; export it again")
    counts: list[np.ndarray] = []
    scores, size = [], None
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("segmentation"), dict):
            raise InputError(f"{frame.path} has a mask without run lengths (its 'segmentation'); export it again")
        runs, its = read_runs(row["segmentation"], frame)
        if size is not None and its != size:
            raise InputError(f"{frame.path} has masks of {size[0]}x{size[1]} and {its[0]}x{its[1]}; export it again")
        size = its
        counts.append(runs)
        score = row.get("predicted_iou", row.get("score"))
        scores.append(_score(score[0] if isinstance(score, list) and len(score) == 1 else score, frame.path))
    width, height = size or frame.photo
    return Found(width, height, counts=counts, scores=scores, skipped=Counter())
