"""LabelMe: a JSON an image with polygons, rectangles, circles and masks; a group is one object."""

from __future__ import annotations

import base64
import binascii
import io
from collections import Counter
from typing import Any

import numpy as np
from PIL import Image

from cgc.errors import InputError
from cgc.masks.image_masks import encode
from cgc.masks.importers.base import Found, Frame, Listing, Source, jsons, read_json
from cgc.masks.importers.polygons import disc, fill, read_points
from cgc.scene.images import UNREADABLE

_CORNERS = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2, "oriented_rectangle": 4, "rotation": 4}


def is_labelme(value: Any) -> bool:
    """Tell whether a JSON is LabelMe's."""
    return isinstance(value, dict) and isinstance(value.get("shapes"), list)


def open_labelme(listing: Listing) -> Source:
    """Find LabelMe's JSON files; an image's name is its JSON's, whatever path is written inside."""
    return jsons(listing, lambda path: is_labelme(read_json(path)), _read)


def _read(frame: Frame) -> Found:
    value = read_json(frame.path)
    if not is_labelme(value):
        raise InputError(f"{frame.path} has no list of shapes; expected a JSON of LabelMe")
    skipped: Counter[str] = Counter()
    width, height = value.get("imageWidth"), value.get("imageHeight")
    if width is None and height is None:
        width, height = frame.photo
        skipped["sizes that the JSON does not give were taken from the photo"] += 1
    width, height = frame.check(width, height)
    masks: dict[Any, np.ndarray] = {}
    for index, shape in enumerate(value["shapes"]):
        if not isinstance(shape, dict):
            raise InputError(f"{frame.path} has a shape that is {type(shape).__name__}; export it again")
        mask = _draw(shape, width, height, frame, skipped)
        if mask is not None:
            group = shape.get("group_id")
            key = index if group is None else (str(shape.get("label")), str(group))
            masks[key] = masks[key] | mask if key in masks else mask
    return Found(width, height, counts=[encode(mask) for mask in masks.values()], skipped=skipped)


def _draw(shape: dict[str, Any], width: int, height: int, frame: Frame, skipped: Counter[str]) -> np.ndarray | None:
    """Return a shape's mask; None for one that has no area, counted in `skipped`."""
    kind = shape.get("shape_type") or "polygon"
    if not isinstance(kind, str) or kind not in _CORNERS:
        skipped[f"shapes of the kind {kind!r}, which have no area, were left out"] += 1
        return None
    points = read_points(shape.get("points"), frame.path)
    if len(points) < _CORNERS[kind]:
        skipped[f"shapes of the kind {kind!r} with too few points were left out"] += 1
        return None
    if kind == "circle":
        (x, y), edge = points[0], points[1]
        return disc(x, y, float(np.hypot(*(edge - (x, y)))), width, height)
    if kind == "mask":
        return _place(shape.get("mask"), points, width, height, frame)
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    return fill(points, width, height)


def _place(text: Any, points: np.ndarray, width: int, height: int, frame: Frame) -> np.ndarray:
    """Return the mask of a PNG, written as base64, whose first pixel lies at the first point."""
    broken = f"{frame.path} has a shape of the kind 'mask' that "
    if not isinstance(text, str):
        raise InputError(f"{broken}has no picture; export it again")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            if image.width > width or image.height > height:
                raise InputError(f"{broken}is {image.width}x{image.height} in an image of {width}x{height}")
            pixels = np.asarray(image)
    except (binascii.Error, *UNREADABLE) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{broken}cannot be read ({error}); export it again") from error
    x, y = (int(v) for v in np.clip(np.round(points.min(0)), -1e6, 1e6))
    if pixels.ndim != 2 or x < 0 or y < 0 or x + pixels.shape[1] > width or y + pixels.shape[0] > height:
        raise InputError(f"{broken}lies outside its image of {width}x{height}; export it again")
    mask = np.zeros((height, width), bool)
    mask[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels > 0
    return mask
