"""Pictures of segmentations: stable colours, overlays and contact sheets. Images are uint8 [H, W, 3]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from cgc.errors import InputError
from cgc.segmentation.colors import NOISE_COLOR as NOISE_COLOR
from cgc.segmentation.colors import segment_colors

NUMBER = 0.026
"""Height of an id that is written on a picture, times its diagonal ..."""
ROOM = 0.4
"""... and, times that height, how far all else must be from the middle of it."""


def overlay(photo: NDArray[np.uint8], ids: NDArray[np.integer], alpha: float = 0.55) -> NDArray[np.uint8]:
    """Colour the segments `ids` [H, W] over a photo, with a thin line, light beside dark, between them.

    `alpha` is the share of the colour; the photo under it is grey, so that colours keep their meaning.
    """
    if photo.shape[:2] != ids.shape:
        raise InputError(f"the photo is {photo.shape[:2]} but its id map {ids.shape}; render it at the photo's size")
    found, inverse = np.unique(ids, return_inverse=True)
    colors = segment_colors(found)[inverse.reshape(ids.shape)].astype(np.float32)
    grey = photo.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    mixed = (1 - alpha) * grey[..., None] + alpha * colors
    dark, light = _sides(ids)
    mixed[dark] *= 0.45
    mixed[light] = 0.2 * mixed[light] + 0.8 * 255.0
    return mixed.round().astype(np.uint8)


def number(picture: NDArray[np.uint8], ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Write the id of each segment of `ids` [H, W] on a picture, in the middle of its largest part, where it has room.

    That is the pixel which is farthest from everything else.
    """
    drawn = Image.fromarray(picture)
    pen, size = ImageDraw.Draw(drawn), max(9.0, NUMBER * math.hypot(*ids.shape))
    font = ImageFont.load_default(size)
    for segment, box in enumerate(ndimage.find_objects(np.maximum(ids, 0).astype(np.int32)), 1):
        if box is None:
            continue
        depth = np.asarray(ndimage.distance_transform_edt(np.pad(ids[box] == segment, 1)))
        y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
        if depth[y, x] >= ROOM * size:
            at = (box[1].start + int(x) - 0.5, box[0].start + int(y) - 0.5)
            pen.text(at, str(segment), "white", font, "mm", stroke_width=max(1, round(size / 8)), stroke_fill="black")
    return np.array(drawn)


def mark(photo: NDArray[np.uint8], pixels: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Draw pixels [H, W] red over a grey photo."""
    grey = photo.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    mixed = np.repeat(grey[..., None], 3, axis=2)
    mixed[pixels] = 0.25 * mixed[pixels] + 0.75 * np.array([235.0, 40.0, 40.0], np.float32)
    return mixed.round().astype(np.uint8)


def _sides(ids: NDArray[np.integer]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels right or below of a border, and pixels left or above of one, [H, W] each."""
    after, before = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
    rows, columns = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    after[1:] |= rows
    before[:-1] |= rows
    after[:, 1:] |= columns
    before[:, :-1] |= columns
    return after, before


def contact_sheet(images: Sequence[NDArray[np.uint8]], columns: int, *, gap: int = 8) -> NDArray[np.uint8]:
    """Lay images of any sizes on a white grid, each in the middle of its cell, row by row."""
    if not images or columns < 1:
        raise InputError("a contact sheet needs at least one image and one column")
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top = gap + (i // columns) * (height + gap) + (height - image.shape[0]) // 2
        left = gap + (i % columns) * (width + gap) + (width - image.shape[1]) // 2
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet
