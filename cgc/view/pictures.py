"""Pictures of segmentations: stable colours, overlays and contact sheets. Images are uint8 [H, W, 3]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgc.errors import InputError

NOISE_COLOR = (64, 64, 68)
"""Colour of what is in no segment."""

_GOLDEN = 0.6180339887498949  # multiples of it, mod 1, spread evenly however many are taken
_SILVER = 0.4142135623730950  # the same for a second coordinate, independent of the first
_LIGHTNESS = (0.50, 0.86)
_CHROMA = (0.20, 0.13)
_FIRST_HUE = 0.42  # turns; id 1 is a warm orange

_LMS_FROM_OKLAB = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_RGB_FROM_LMS = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def segment_colors(ids: ArrayLike) -> NDArray[np.uint8]:
    """Give every segment id [n] its colour [n, 3], always the same one; 0 and below are dark grey.

    Hues are multiples of the golden ratio in Oklab (Ottosson 2020), where equal steps look equal; lightness
    varies too, so that hundreds of segments can be told apart.
    """
    ids = np.asarray(ids, np.int64)
    hue = 2 * np.pi * ((ids * _GOLDEN + _FIRST_HUE) % 1.0)
    level = (ids * _SILVER) % 1.0
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * level
    chroma = _CHROMA[0] + (_CHROMA[1] - _CHROMA[0]) * level  # light colours hold less chroma in sRGB
    oklab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)  # [n, 3]
    linear = np.clip((oklab @ _LMS_FROM_OKLAB.T) ** 3 @ _RGB_FROM_LMS.T, 0.0, 1.0)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colors = (srgb * 255.0).round().astype(np.uint8)
    return np.where((ids > 0)[..., None], colors, np.array(NOISE_COLOR, np.uint8))


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


def contact_sheet(
    images: Sequence[NDArray[np.uint8]], columns: int, *, gap: int = 8, background: int = 255
) -> NDArray[np.uint8]:
    """Lay images of any sizes on a grid, each in the middle of its cell, row by row."""
    if not images or columns < 1:
        raise InputError("a contact sheet needs at least one image and one column")
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), background, np.uint8)
    for i, image in enumerate(images):
        top = gap + (i // columns) * (height + gap) + (height - image.shape[0]) // 2
        left = gap + (i % columns) * (width + gap) + (width - image.shape[1]) // 2
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet
