"""Videos of SAM 2 and 3: a folder an object, one .npz of all frames, one a frame. An object has one id in all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from cgc.errors import InputError
from cgc.masks.id_maps import MAX_ID
from cgc.masks.image_masks import encode
from cgc.masks.importers.arrays import Array, read_arrays
from cgc.masks.importers.base import Entry, Found, Frame, Listing, Source, read_pixels
from cgc.masks.importers.stacks import binary_planes, ids_from, object_ids, open_arrays, read_stack

_OBJECT = re.compile(r"\d{1,9}")
_KEY = re.compile(r"(?:frame_?)?(\d{1,9})(?:[/_-](?:obj_?)?(\d{1,9}))?")


def open_objects(listing: Listing) -> Source:
    """Find PNGs in a folder an object, named by its id: 001/00000.png."""
    frames: dict[str, list[tuple[int, Path]]] = {}
    skipped = 0
    for path in listing.named(".png"):
        name = path.relative_to(listing.root)
        if len(name.parts) < 2 or not _OBJECT.fullmatch(name.parts[0]):
            skipped += 1
            continue
        frame = Path(*name.parts[1:]).with_suffix("").as_posix()
        frames.setdefault(frame, []).append((_object(int(name.parts[0]), path), path))
    source = Source({}, tracked=True)
    shift = _shift({number for parts in frames.values() for number, _ in parts}, source)
    for name, parts in frames.items():
        if len({number for number, _ in parts}) < len(parts):
            raise InputError(f"{listing.root} has two folders of one object for the frame {name}; keep one of them")
        source.add(name, Entry(listing.root, partial(_read_objects, parts, shift)))
    objects = {number for parts in frames.values() for number, _ in parts}
    source.decisions.append(f"{len(objects)} objects were found, a folder each.")
    if skipped:
        source.decisions.append(f"{skipped} PNGs that lie in no folder of an object were skipped.")
    return source


def _object(number: int, path: Path) -> int:
    if not 0 <= number < MAX_ID:
        raise InputError(f"{path} is of the object {number}; ids that are the same in every view go to {MAX_ID - 1}")
    return number


def _shift(objects: set[int | None], source: Source) -> int:
    """Return what is added to ids: 1 where an object is 0, which means unassigned."""
    if 0 not in objects:
        return 0
    source.decisions.append("An object has the id 0, which means unassigned: 1 was added to all ids.")
    return 1


def _read_objects(parts: Sequence[tuple[int, Path]], shift: int, frame: Frame) -> Found:
    counts, size = [], None
    for _, path in parts:
        own = Frame(frame.view, path, frame.resize)
        pixels, mode = read_pixels(path, own)
        if pixels.ndim != 2:
            raise InputError(f"{path} is of the kind {mode}; expected one channel, not 0 inside the object")
        if size is not None and pixels.shape != size:
            raise InputError(f"{path} is {list(pixels.shape)} where another object of its frame is {list(size)}")
        size = pixels.shape
        counts.append(encode(pixels > 0))
    assert size is not None
    return Found(size[1], size[0], counts=counts, object_ids=[number + shift for number, _ in parts])


def open_stacks(listing: Listing, suffixes: tuple[str, ...], tracked: bool) -> Source:
    """Find stacks of masks, a file a frame; `tracked`: each says which object its masks are of, as SAM 3's do."""
    source = open_arrays(listing, suffixes, tracked)
    if not tracked:
        return source
    objects: set[int | None] = set()
    for entry in source.entries.values():
        own = object_ids(read_arrays(entry.path), entry.path)
        if own is None:
            raise InputError(f"{entry.path} does not say which object a mask is of (out_obj_ids); leave out --tracked")
        objects.update(_object(number, entry.path) for number in own)
    read = partial(_read_stack, _shift(objects, source))
    source.entries = {name: Entry(entry.path, read) for name, entry in source.entries.items()}
    return source


def _read_stack(shift: int, frame: Frame) -> Found:
    found = read_stack(frame)
    return replace(found, object_ids=[number + shift for number in found.object_ids or []])


def is_video(arrays: dict[str, Array]) -> bool:
    """Tell whether the arrays of a .npz are named like frames, or frames and objects."""
    return bool(arrays) and all(_KEY.fullmatch(key) for key in arrays)


def open_npz(listing: Listing) -> Source:
    """Index one .npz: an array a FRAME/OBJECT (masks) or a FRAME (an id map); or one array [F, H, W] of id maps."""
    paths = listing.named(".npz")
    if len(paths) != 1:
        raise InputError(
            f"expected one .npz for all frames in {listing.root}, found {len(paths)}; give the file itself"
        )
    path = paths[0]
    arrays = read_arrays(path)
    source = Source({}, tracked=True, frames=True)
    if len(arrays) == 1 and len(only := next(iter(arrays.values())).shape) == 3 and not is_video(arrays):
        slices = _Slices(next(iter(arrays.values())))
        for number in range(only[0]):
            source.add(str(number), Entry(path, partial(slices.read, number)))
        return source
    groups: dict[int, dict[int | None, Array]] = {}
    for key, array in arrays.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise InputError(f"{path} has an array named {key!r}; expected FRAME/OBJECT or FRAME, as in 12/3")
        number = None if match[2] is None else _object(int(match[2]), path)
        group = groups.setdefault(int(match[1]), {})
        if number in group or (group and (None in group or number is None)):
            raise InputError(f"{path} has {key!r} beside another array of that frame; keep one of them")
        group[number] = array
    shift = _shift({number for group in groups.values() for number in group}, source)
    for number, group in groups.items():
        read = partial(_read_map, group[None]) if None in group else partial(_read_group, group, shift)
        source.add(str(number), Entry(path, read))
    return source


def _plane(array: Array, frame: Frame) -> Array:
    """Check that an array is one picture of the frame's size: [H, W], or with axes of length 1 before."""
    if len(array.shape) < 2 or any(n != 1 for n in array.shape[:-2]):
        raise InputError(f"{frame.path} has {array.key!r} of {list(array.shape)}; expected [H, W] or [1, H, W]")
    frame.check(*array.shape[-1:-3:-1])
    return array


def _read_map(array: Array, frame: Frame) -> Found:
    ids = ids_from(_whole_numbers(next(_plane(array, frame).planes()), frame), frame.path, False)
    return Found(ids.shape[1], ids.shape[0], ids=ids[None])


class _Slices:
    """The id maps of an array [F, H, W], read on from the last one where that comes before."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self._next, self._planes, self._last = 0, iter(array.planes()), np.zeros(0)

    def read(self, number: int, frame: Frame) -> Found:
        """Read one frame's."""
        frame.check(*self._array.shape[-1:-3:-1])
        if number < self._next - 1:
            self._next, self._planes = 0, iter(self._array.planes())
        while self._next <= number:
            self._last = next(self._planes)
            self._next += 1
        ids = ids_from(_whole_numbers(self._last, frame), frame.path, False)
        return Found(ids.shape[1], ids.shape[0], ids=ids[None])


def _whole_numbers(plane: np.ndarray, frame: Frame) -> np.ndarray:
    if plane.dtype.kind not in "iub":
        raise InputError(f"{frame.path} holds ids of type {plane.dtype}; expected whole numbers")
    return plane


def _read_group(group: dict[int | None, Array], shift: int, frame: Frame) -> Found:
    counts, sizes = [], set()
    for array in group.values():
        counts.extend(encode(mask) for mask in binary_planes(_plane(array, frame)))
        sizes.add(array.shape[-2:])
    if len(sizes) > 1:
        raise InputError(f"{frame.path} has masks of {len(sizes)} sizes in one frame; save it again")
    height, width = sizes.pop()
    return Found(width, height, counts=counts, object_ids=[n + shift for n in group if n is not None])
