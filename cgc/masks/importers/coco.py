"""COCO: a JSON for all images or a split, with polygons or run lengths; and panoptic JSON beside a folder of PNGs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cgc.errors import InputError, some
from cgc.masks.image_masks import encode
from cgc.masks.importers.base import Entry, Found, Frame, Listing, Source, is_whole, read_json
from cgc.masks.importers.pngs import colour_numbers
from cgc.masks.importers.polygons import fill, read_points
from cgc.masks.importers.rle import read_runs


def is_coco(value: Any) -> bool:
    """Tell whether a JSON is COCO's, of instances or panoptic."""
    return (
        isinstance(value, dict) and isinstance(value.get("images"), list) and isinstance(value.get("annotations"), list)
    )


def is_panoptic(value: Any) -> bool:
    """Tell whether a JSON is COCO's panoptic one."""
    rows = value.get("annotations") if isinstance(value, dict) else None
    return isinstance(rows, list) and any(isinstance(r, dict) and "segments_info" in r for r in rows[:5])


def is_results(value: Any) -> bool:
    """Tell whether a JSON is a list of COCO detections, which does not name its images."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "image_id" in value[0]


def _fitting(listing: Listing, test: Any, what: str) -> list[tuple[Path, dict[str, Any]]]:
    fitting = [(path, value) for path in listing.named(".json") if test(value := read_json(path))]
    if not fitting:
        raise InputError(f"expected a {what} JSON for all images in {listing.root}, found none; give the file itself")
    return fitting


def image_name(file_name: Any, path: Path) -> str:
    """Return the name that a file_name gives to match a view by; it is never opened."""
    if not isinstance(file_name, str) or not file_name:
        raise InputError(f"{path} has an image with the file_name {file_name!r}; expected a file's name")
    name = PurePosixPath(file_name.replace("\\", "/"))
    safe = name if not name.is_absolute() and ".." not in name.parts else PurePosixPath(name.name)
    return safe.with_suffix("").as_posix() if safe.name else "."


def photos(listing: Listing) -> set[str]:
    """Return the file names, without folders, of the images that COCO JSONs are of."""
    values = [value for path in listing.named(".json") if is_coco(value := read_json(path))]
    names = [image.get("file_name") for value in values for image in value["images"] if isinstance(image, dict)]
    return {name.replace("\\", "/").rsplit("/", 1)[-1] for name in names if isinstance(name, str)}


def _photo_name(image: dict[str, Any], path: Path) -> str:
    """Return the name of an image's photo, before Roboflow made NAME_jpg.rf.HASH.jpg of NAME.jpg."""
    name = image_name(image.get("file_name"), path)
    renamed = re.fullmatch(r"(.+)_[A-Za-z]+\.rf\.[0-9A-Za-z]+", name)
    if renamed is None:
        return name
    extra = image.get("extra")
    own = extra.get("name") if isinstance(extra, dict) else None
    return image_name(own, path) if isinstance(own, str) and own else renamed[1]


def _images(value: dict[str, Any], path: Path) -> dict[Any, dict[str, Any]]:
    images: dict[Any, dict[str, Any]] = {}
    for image in value["images"]:
        key = image.get("id") if isinstance(image, dict) else None
        if not isinstance(key, (int, str)) or key in images:
            raise InputError(f"{path} has an image with the id {key!r}; expected a number of its own for every image")
        images[key] = image
    return images


def _rows_of(value: dict[str, Any], images: dict[Any, Any], path: Path) -> dict[Any, list[dict[str, Any]]]:
    rows: dict[Any, list[dict[str, Any]]] = {key: [] for key in images}
    for row in value["annotations"]:
        key = row.get("image_id") if isinstance(row, dict) else None
        if not isinstance(key, (int, str)) or key not in images:
            raise InputError(f"{path} has an annotation of the image {key!r}, which is not in its list of images")
        rows[key].append(row)
    return rows


def open_instances(listing: Listing) -> Source:
    """Index the annotations of every image; several JSONs are those of splits, whose images differ."""
    source = Source({})
    found = _fitting(listing, lambda v: is_coco(v) and not is_panoptic(v), "COCO")
    if len(found) > 1:
        names = some(path.relative_to(listing.root) for path, _ in found)
        source.decisions.append(f"{len(found)} COCO JSONs were read as one: {names}.")
    for path, value in found:
        _add_instances(source, path, value)
    return source


def _add_instances(source: Source, path: Path, value: dict[str, Any]) -> None:
    images = _images(value, path)
    rows = _rows_of(value, images, path)
    crowds = True
    if value["annotations"] and all(
        row.get("iscrowd") and isinstance(row.get("segmentation"), dict) for row in value["annotations"]
    ):
        crowds = False
        source.decisions.append("All annotations are run lengths and marked as crowds, as CVAT does: they were taken.")
    for key, image in images.items():
        read = partial(_read_instances, image=image, rows=rows[key], crowds=crowds)
        source.add(_photo_name(image, path), Entry(path, read))


def _read_instances(frame: Frame, image: dict[str, Any], rows: Sequence[dict[str, Any]], crowds: bool) -> Found:
    """Read the masks of an image; `crowds`: "iscrowd" means that, and not just that a mask is run lengths."""
    width, height = frame.check(image.get("width"), image.get("height"))
    counts, scores = [], []
    skipped: Counter[str] = Counter()
    for row in rows:
        if crowds and row.get("iscrowd"):
            skipped["crowd regions, which are several objects at once, were left out"] += 1
            continue
        runs = _runs(row.get("segmentation"), width, height, frame)
        if runs is None:
            skipped["annotations without an outline of three points or more were left out"] += 1
            continue
        counts.append(runs)
        score = row.get("score", 1.0)
        if not isinstance(score, (int, float)) or not abs(score) < 1e30:
            raise InputError(f"{frame.path} rates a mask {score!r}; expected a number")
        scores.append(float(score))
    return Found(width, height, counts=counts, scores=scores, skipped=skipped)


def _runs(segmentation: Any, width: int, height: int, frame: Frame) -> np.ndarray | None:
    if isinstance(segmentation, dict):
        runs, size = read_runs(segmentation, frame)
        if size != (width, height):
            raise InputError(
                f"{frame.path} has run lengths of {size[0]}x{size[1]} for {frame.view.name}, an image that it says is "
                f"{width}x{height}; export it again"
            )
        return runs
    if segmentation is not None and not isinstance(segmentation, list):
        raise InputError(f"{frame.path} has a segmentation of the kind {type(segmentation).__name__}; export it again")
    parts = segmentation or []
    if parts and not isinstance(parts[0], list):  # one polygon that is not in a list of its own
        parts = [parts]
    outlines = [points for part in parts if len(points := read_points(part, frame.path)) >= 3]
    if not outlines:
        return None
    mask = np.zeros((height, width), bool)
    for points in outlines:
        mask |= fill(points, width, height)
    return encode(mask)


def open_panoptic(listing: Listing) -> Source:
    """Find the PNGs of a panoptic JSON: beside it, in the folder of its name, or anywhere below the given folder."""
    found = _fitting(listing, is_panoptic, "panoptic COCO")
    if len(found) > 1:
        raise InputError(f"expected one panoptic JSON in {listing.root}, found {len(found)}; give the file itself")
    path, value = found[0]
    images = _images(value, path) if isinstance(value.get("images"), list) else {}
    source = Source({})
    for row in value["annotations"]:
        png = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(png, str) or not png or PurePosixPath(png).is_absolute() or ".." in PurePosixPath(png).parts:
            raise InputError(f"{path} names the PNG {png!r}; expected the name of a file beside it")
        segments = row.get("segments_info")
        if not isinstance(segments, list):
            raise InputError(f"{path} has no segments_info for {png}; export it again")
        image = images.get(row.get("image_id")) if isinstance(row.get("image_id"), (int, str)) else None
        name = image_name(image.get("file_name") if image else png, path)
        mask = _png_of(png, path)
        source.add(name, Entry(mask, lambda frame, s=segments: _read_panoptic(frame, s)))
    return source


def _png_of(png: str, path: Path) -> Path:
    for folder in (path.parent, path.with_suffix(""), path.parent / path.stem.replace("panoptic_", "")):
        if (folder / png).is_file():
            return folder / png
    below = [p for p in sorted(path.parent.rglob(PurePosixPath(png).name)) if p.is_file()]
    if len(below) == 1:
        return below[0]
    raise InputError(
        f"{path} names the PNG {png}, which is not in {path.parent} or {path.with_suffix('')}; copy it there"
    )


def _read_panoptic(frame: Frame, segments: Sequence[Any]) -> Found:
    numbers = colour_numbers(frame.path, frame)
    skipped: Counter[str] = Counter()
    kept = []
    for segment in segments:
        number = segment.get("id") if isinstance(segment, dict) else None
        if not is_whole(number) or not 0 <= number < 2**24:
            raise InputError(f"the panoptic JSON gives {frame.path} a segment with the id {number!r}; export it again")
        if segment.get("iscrowd"):
            skipped["crowd regions, which are several objects at once, were left out"] += 1
        else:
            kept.append(number)
    ids = np.where(np.isin(numbers, np.array(kept, np.int64)), numbers, 0)
    if ((numbers > 0) & ~np.isin(numbers, [s["id"] for s in segments])).any():
        skipped["pictures have colours that are no segment in the JSON: they are unassigned"] += 1
    return Found(ids.shape[1], ids.shape[0], ids=ids[None], skipped=skipped)
