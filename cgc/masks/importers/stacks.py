"""Arrays of masks, a file an image: id maps [H, W], levels of them [L, H, W], stacks of masks [M, H, W] or [H, W, M].

Who writes them: Mask R-CNN and its kin (torchvision's masks are [N, 1, H, W], 0 to 1), SAGA (.pt), LangSplat (_s.npy,
four levels, -1 = unassigned), Grounded SAM 2 (mask_NAME.npy, tracked), SAM 3 (out_binary_masks, and out_obj_ids that
say which object each mask is).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cgc.errors import InputError
from cgc.masks.image_masks import encode
from cgc.masks.importers.arrays import Array, read_arrays
from cgc.masks.importers.base import Entry, Found, Frame, Listing, Source

MASKS = ("masks", "pred_masks", "mask", "segmentation", "segmentations", "ids", "labels_map", "arr_0", "")
SCORES = ("scores", "score", "iou_preds", "predicted_iou", "ious", "out_probs")
OBJECTS = ("out_obj_ids", "obj_ids", "object_ids")
MOST = 65535
"""Masks of one image."""
_GLANCE = 2**28
"""Pixels of the largest picture that is looked at to tell ids from masks."""


def open_arrays(
    listing: Listing, suffixes: tuple[str, ...], tracked: bool, ending: str = "", minus: bool = False
) -> Source:
    """Find array files whose names end with `ending`; `minus`: -1 is unassigned, and 0 an id."""
    source, skipped = Source({}, tracked), []
    for path in listing.named(*suffixes):
        if listing.name(path).endswith(ending):
            name = listing.name(path).removesuffix(ending) if ending else listing.name(path)
            source.add(name, Entry(path, lambda frame: read_stack(frame, minus)))
        else:
            skipped.append(path.name)
    if skipped:
        source.decisions.append(f"{len(skipped)} files whose name does not end in {ending} were skipped.")
    return source


def masks_of(arrays: dict[str, Array], path: Path) -> Array:
    """Return the array that holds masks: by its name, or the only one of two axes or more."""
    for key in MASKS:
        if key in arrays and len(arrays[key].shape) >= 2:
            return arrays[key]
    flat = [array for array in arrays.values() if len(array.shape) >= 2 and array.shape[-1] != 4]
    if len(flat) == 1:
        return flat[0]
    shapes = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items()) or "nothing"
    raise InputError(f"{path} holds {shapes}; expected one array named masks, [M, H, W] or [H, W]")


def is_ids(array: Array) -> bool:
    """Tell whether an array is an id map, or levels of them: whole numbers that are not 0 and 1 (or 255) alone."""
    if array.dtype.kind not in "iu":
        return False
    if len(_squeezed(array).shape) == 2:
        return True
    if len(array.shape) != 3 or not 0 < array.shape[1] * array.shape[2] < _GLANCE:
        return False
    return not np.isin(next(array.planes(), 0), (0, 1, 255)).all()


def _squeezed(array: Array) -> Array:
    """Drop axes of length 1 but for the last two: [N, 1, H, W] becomes [N, H, W]."""
    lead = tuple(n for n in array.shape[:-2] if n != 1) if len(array.shape) > 2 else ()
    shape = lead + array.shape[-2:]
    values = None if array.values is None else array.values.reshape(shape)
    return replace(array, shape=shape, values=values)


def read_stack(frame: Frame, minus: bool = False) -> Found:
    """Read one image's array."""
    arrays = read_arrays(frame.path)
    array = _oriented(_squeezed(masks_of(arrays, frame.path)), frame)
    width, height = frame.check(*array.shape[-1:-3:-1])
    number = array.shape[0] if len(array.shape) == 3 else 1
    if number > MOST:
        raise InputError(f"{frame.path} holds {number:,} masks of one image; expected at most {MOST:,}")
    objects = object_ids(arrays, frame.path)
    if number == 0:
        return Found(width, height, counts=[], scores=[], object_ids=objects)
    if objects is None and array.dtype.kind in "iu" and (minus or is_ids(array)):
        levels = [ids_from(plane, frame.path, minus) for plane in array.planes()]
        return Found(width, height, ids=np.stack(levels))
    if objects is None and len(array.shape) == 2 and array.dtype.kind == "f" and minus is False:
        raise InputError(
            f"{frame.path} holds {list(array.shape)} of {array.dtype}; expected ids that are whole numbers"
        )
    counts = [encode(mask) for mask in binary_planes(array)]
    scores, used = _scores(arrays, len(counts), frame.path)
    if objects is not None and len(objects) != len(counts):
        raise InputError(f"{frame.path} has {len(objects)} ids of objects for {len(counts)} masks; expected one each")
    others = [key for key in arrays if key not in (array.key, used, *OBJECTS)]
    skipped = Counter({f"arrays {', '.join(others)} were not used": 1} if others else {})
    return Found(width, height, counts=counts, scores=scores, object_ids=objects, skipped=skipped)


def object_ids(arrays: dict[str, Array], path: Path) -> list[int] | None:
    """Return which object each mask is of; None where no array says so."""
    for key in OBJECTS:
        if key in arrays:
            shape, dtype = arrays[key].shape, arrays[key].dtype
            if len(shape) != 1 or dtype.kind not in "iu":
                raise InputError(f"{path} has {key} {list(shape)} of {dtype}; expected a whole number for each mask")
            return [int(number) for number in arrays[key].whole()]
    return None


def ids_from(plane: np.ndarray, path: Path, minus: bool) -> np.ndarray:
    """Return an id map with 0 = unassigned, int64."""
    if plane.dtype.kind == "u" and plane.size and plane.max() > 2**62:
        raise InputError(f"{path} holds the id {plane.max()}; expected ids below 2^62")
    ids = plane.astype(np.int64) + int(minus)
    if ids.size and ids.min() < 0:
        raise InputError(
            f"{path} holds the id {ids.min() - int(minus)}; expected ids of 0 (unassigned) and more"
            + ("" if minus else ", or --format langsplat where -1 means unassigned and 0 is an id")
        )
    return ids


def binary_planes(array: Array) -> Iterator[np.ndarray]:
    """Give the masks [H, W] bool of a stack: bool, 0 and 1 (or 255), or shares of 0 to 1 of which half is inside."""
    for plane in array.planes():
        if plane.dtype.kind == "b":
            yield plane
        elif plane.dtype.kind in "iu":
            if not np.isin(plane, (0, 1, 255)).all():
                raise InputError(f"{array.path} holds masks with values other than 0 and 1 (or 255); save them as bool")
            yield plane > 0
        elif plane.dtype.kind == "f":
            if not (np.isfinite(plane).all() and plane.min() >= 0 and plane.max() <= 1):
                raise InputError(
                    f"{array.path} holds masks with values outside 0 to 1, or NaN; save shares (after the sigmoid) or "
                    "bool"
                )
            yield plane >= 0.5
        else:
            raise InputError(f"{array.path} holds an array of {array.dtype}; expected masks of type bool")


def _oriented(array: Array, frame: Frame) -> Array:
    """Return the array with its size in the last two axes: [H, W, M] is turned where that alone fits the view."""
    shape = array.shape
    if len(shape) not in (2, 3) or (min(shape[-2:]) < 1 and len(shape) == 2):
        raise InputError(f"{frame.path} holds an array of {list(shape)}; expected [H, W], [M, H, W] or [H, W, M]")
    if len(shape) == 2:
        return array
    first, last = frame.fits(shape[2], shape[1]), frame.fits(shape[1], shape[0])
    if (last and not first) or (first == last and shape[2] < min(shape[:2]) and not first):
        frame.check(shape[1], shape[0])
        values = np.moveaxis(array.whole(), -1, 0)
        return replace(array, shape=values.shape, values=values, open=None)
    return array


def _scores(arrays: dict[str, Array], number: int, path: Path) -> tuple[list[float] | None, str | None]:
    for key in SCORES:
        if key in arrays:
            values = arrays[key].whole().astype(float).ravel() if arrays[key].dtype.kind in "iuf" else np.zeros(0)
            if len(values) != number or not np.isfinite(values).all():
                raise InputError(f"{path} has {len(values)} finite {key} for {number} masks; expected one each")
            return values.tolist(), key
    return None, None
