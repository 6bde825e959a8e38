"""PNG id maps: grey or palette, of trackers (Gaussian Grouping, DEVA, Gaga, SAM 2), and a colour an object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cgc.errors import InputError
from cgc.masks.id_maps import MAX_ID, read_id_map
from cgc.masks.importers.base import Entry, Found, Frame, Listing, Source, image_header, read_pixels

_COLOURFUL = 256
_SMOOTH = 16
"""A picture of over 256 colours that has less than 16 pixels a colour is a photo, or was smoothed."""


def open_ids(listing: Listing, tracked: bool) -> Source:
    """Find PNG id maps."""
    source = Source({}, tracked)
    for path in listing.named(".png"):
        source.add(listing.name(path), Entry(path, lambda frame: _read_ids(frame)))
    return source


def _read_ids(frame: Frame) -> Found:
    width, height = frame.check(*image_header(frame.path)[0])
    return Found(width, height, ids=read_id_map(frame.path)[None])


def open_colours(listing: Listing, tracked: bool) -> Source:
    """Find RGB PNGs; where colours are tracked, ids are numbers in the sorted list of all files' colours."""
    source = Source({}, tracked)
    paths = listing.named(".png")
    table = _all_colours(paths) if tracked else None
    for path in paths:
        source.add(listing.name(path), Entry(path, lambda frame: _read_colours(frame, table)))
    if table is not None:
        source.decisions.append(f"{len(table)} colours of all files are the ids 1 to {len(table)}, sorted.")
    return source


def _all_colours(paths: Sequence[Path]) -> np.ndarray:
    colours = np.zeros(0, np.int64)
    for path in paths:
        colours = np.union1d(colours, colour_numbers(path))
        if len(colours) > MAX_ID + 1:
            raise InputError(
                f"the masks have over {MAX_ID:,} colours in all, and at most {MAX_ID:,} ids can be the same in every "
                "view; leave out --tracked, or make masks of fewer objects"
            )
    return colours[colours > 0]


def _read_colours(frame: Frame, table: np.ndarray | None) -> Found:
    ids = colour_numbers(frame.path, frame)
    if table is not None:
        ids = np.where(ids > 0, np.searchsorted(table, ids) + 1, 0)
    return Found(ids.shape[1], ids.shape[0], ids=ids[None])


def colour_numbers(path: Path, frame: Frame | None = None) -> np.ndarray:
    """Return R + 256 G + 65536 B of every pixel, [h, w] int64; transparent pixels are 0, as black ones are."""
    pixels, mode = read_pixels(path, frame)
    if mode not in ("RGB", "RGBA"):
        raise InputError(f"the mask {path} is of the kind {mode}; expected RGB, a colour for every object")
    numbers = pixels[..., :3].astype(np.int64) @ np.array([1, 256, 65536])
    if mode == "RGBA":
        if not np.isin(pixels[..., 3], (0, 255)).all():
            raise InputError(f"the mask {path} is half transparent somewhere; export it without smoothed borders")
        numbers = np.where(pixels[..., 3] > 0, numbers, 0)
    colours = len(np.unique(numbers))
    if colours > _COLOURFUL and colours * _SMOOTH > numbers.size:
        raise InputError(
            f"{path} has {colours:,} colours in {numbers.size:,} pixels: it is a photo, or a mask with smoothed "
            "borders; expected one flat colour for every object, so export it without anti-aliasing"
        )
    return numbers
