"""GARField's sam_data.hdf5: of every training photo, by number, the masks that each pixel lies in [H, W, L], or -1."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np

from cgc.errors import InputError
from cgc.masks.image_masks import encode
from cgc.masks.importers.base import Entry, Found, Frame, Listing, Source

SUFFIXES = (".h5", ".hdf5")
_DEEPEST = 1024


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise InputError("reading GARField's .hdf5 needs the package h5py: pip install h5py") from error


def open_garfield(listing: Listing) -> Source:
    """Index the photos of one file."""
    paths = listing.named(*SUFFIXES)
    if len(paths) != 1:
        raise InputError(f"expected one .hdf5 file in {listing.root}, found {len(paths)}; give the file itself")
    path = paths[0]
    found = []
    try:
        with _h5py().File(path, "r") as file:
            for model in file:
                group = file[model].get("pixel_level_keys") if hasattr(file[model], "get") else None
                if group is not None:
                    found.append((f"{model}/pixel_level_keys", sorted(group, key=str)))
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); it is truncated or no HDF5 file") from error
    if len(found) != 1:
        raise InputError(f"{path} has masks of {len(found)} models (MODEL/pixel_level_keys); expected those of one")
    group, numbers = found[0]
    source = Source({}, frames=True)
    for number in numbers:
        source.add(number, Entry(path, partial(_read, f"{group}/{number}")))
    source.decisions.append(
        "WARNING: GARField numbers its training photos only; they were taken to be all views in the order of names."
    )
    return source


def _read(key: str, frame: Frame) -> Found:
    try:
        with _h5py().File(frame.path, "r") as file:
            data = file[key]
            if len(data.shape) != 3 or data.dtype.kind not in "iu" or data.shape[2] > _DEEPEST:
                raise InputError(f"{frame.path} has {key} of {list(data.shape)}; expected whole numbers [H, W, L]")
            width, height = frame.check(data.shape[1], data.shape[0])
            keys = data[...]
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{frame.path} cannot be read ({error}); it is truncated or damaged") from error
    counts = [encode((keys == number).any(-1)) for number in np.unique(keys) if number >= 0]
    return Found(width, height, counts=counts)
