"""All masks of one image, overlapping and nested as segmenters give them, and the flat id map painted from them.

A mask is kept as COCO's run lengths: of its pixels down the columns, the lengths of runs that are alternately outside
and inside, outside first. M masks, H W image size, R atoms: the largest sets of pixels that lie in the same masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy import ndimage
from scipy.sparse import csc_array

from cgc.errors import InputError
from cgc.files import read_arrays, write_beside

INSIDE = 0.9
"""A mask is in another one that has this share of its pixels ..."""
LARGER = 1.1
"""... and is this many times larger: two tries at one thing are no whole and part."""
THIN = 0.3
"""Slivers are cleared from the id map unless that would cost a mask more than this share of its pixels."""
FORMAT = 1
_LONGEST = 7  # characters a number of compressed run lengths: 35 bits


@dataclass(frozen=True)
class ImageMasks:
    """Masks of an image [H, W], largest first.

    counts: run lengths of each mask. scores [M] float32, as the segmenter rates them (1 where it does not). areas [M]
    in pixels. parents [M]: the smallest mask that contains each, -1 for none. levels [M]: how many contain it.
    """

    height: int
    width: int
    counts: tuple[np.ndarray, ...]
    scores: np.ndarray
    areas: np.ndarray
    parents: np.ndarray
    levels: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def from_counts(
        cls, counts: Sequence[np.ndarray], height: int, width: int, scores: Sequence[float] | np.ndarray | None = None
    ) -> ImageMasks:
        """Make it of run lengths; empty masks are left out. InputError where a mask is not of this image."""
        runs = [np.asarray(c) for c in counts]
        for c in runs:
            if c.ndim != 1 or not np.issubdtype(c.dtype, np.integer) or (len(c) and c.min() < 0):
                raise InputError("run lengths of a mask must be a list of whole numbers of 0 or more; export it again")
            if c.sum(dtype=np.int64) != height * width:
                raise InputError(
                    f"a mask's run lengths cover {c.sum(dtype=np.int64):,} pixels where its image is {width}x{height} "
                    f"({width * height:,}); it is of another image, or truncated"
                )
        rated = np.ones(len(runs), np.float32) if scores is None else np.asarray(scores, np.float32)
        if rated.shape != (len(runs),) or not np.isfinite(rated).all():
            raise InputError(f"expected one finite score for each of {len(runs)} masks, got {list(rated.shape)}")
        areas = np.array([c[1::2].sum(dtype=np.int64) for c in runs], np.int64)
        order = np.argsort(-areas, kind="stable")[: int((areas > 0).sum())]
        kept = tuple(runs[i].astype(np.uint32) for i in order)
        parents, levels = _nest(kept, areas[order], height, width)
        return cls(height, width, kept, rated[order], areas[order], parents, levels)

    @classmethod
    def from_masks(
        cls, masks: Iterable[np.ndarray], height: int, width: int, scores: Sequence[float] | np.ndarray | None = None
    ) -> ImageMasks:
        """Make it of pictures [H, W] that are not 0 inside; `masks` may be made one by one, to save memory."""
        counts = []
        for mask in masks:
            if mask.shape != (height, width):
                raise InputError(f"a mask is {list(mask.shape)} where its image is {[height, width]}; make it again")
            counts.append(encode(mask))
        return cls.from_counts(counts, height, width, scores)

    @classmethod
    def from_id_maps(cls, maps: Sequence[np.ndarray]) -> ImageMasks:
        """Make it of id maps [H, W], 0 = unassigned: every id of every map is a mask; equal ones are kept once."""
        height, width = maps[0].shape
        counts: dict[bytes, np.ndarray] = {}
        for ids in maps:
            if ids.shape != (height, width):
                raise InputError(
                    f"one level is {list(ids.shape)}, another {[height, width]}; they must be equally large"
                )
            for c in _encode_ids(ids):
                counts.setdefault(c.tobytes(), c)
        return cls.from_counts(list(counts.values()), height, width)

    def mask(self, index: int) -> np.ndarray:
        """Return one mask, [H, W] bool."""
        return decode(self.counts[index], self.height, self.width)

    def flat(self, min_area: int = 0, level: int | None = None) -> np.ndarray:
        """Paint the masks large to small into one id map [H, W] int32: pixels take the smallest mask that has them.

        Ids count from 1 in the order of the masks. Masks of less than `min_area` pixels are left out, and so are those
        nested deeper than `level` (None: none). Slivers that painting leaves of a mask, under three pixels wide, are
        cleared to 0.
        """
        return self.paint(min_area, level)[0]

    def paint(self, min_area: int = 0, level: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the id map of `flat`, and which mask each id is, [ids + 1] int32; -1 for id 0."""
        chosen = np.flatnonzero((self.areas >= min_area) & (self.levels <= (len(self) if level is None else level)))
        if not len(chosen):
            return np.zeros((self.height, self.width), np.int32), np.array([-1], np.int32)
        atoms, inside = _atoms([self.counts[i] for i in chosen], self.height, self.width)
        # the masks are sorted by size, so the smallest of an atom is its last
        last, member = np.zeros(int(atoms.max()) + 1, np.int32), inside.tocoo()  # [R]
        np.maximum.at(last, member.row, member.col + 1)
        ids = last[atoms]
        ids = _clear_slivers(ids, np.append(0, self.areas[chosen]))
        present = np.bincount(ids.ravel(), minlength=len(chosen) + 1) > 0
        present[0] = False
        painted = np.append(-1, chosen[present[1:]]).astype(np.int32)
        return np.where(present, np.cumsum(present), 0).astype(np.int32)[ids], painted

    def save(self, path: Path | str, painted: np.ndarray | None = None, **facts: str) -> None:
        """Write it, compressed, whole or not at all; `facts` are kept beside, and which masks were `painted`."""
        lengths = np.array([len(c) for c in self.counts], np.int64)
        runs = np.concatenate([*self.counts, np.zeros(0, np.uint32)]).astype(np.uint32)
        columns: dict[str, Any] = {f"fact_{k}": np.array(v) for k, v in facts.items()}
        if painted is not None:
            own = np.arange(len(self))
            columns["wholes"] = np.append(-1, np.where(self.parents >= 0, self.parents, own))[painted + 1] + 1
        with write_beside(path) as temporary:
            np.savez_compressed(
                temporary, format=np.array(FORMAT), size=np.array([self.height, self.width]), runs=runs,
                lengths=lengths, scores=self.scores, parents=self.parents, levels=self.levels, **columns,
            )  # fmt: skip

    @classmethod
    def load(cls, path: Path | str) -> ImageMasks:
        """Read what `save` wrote; InputError where it is broken."""
        data = _read(path)
        try:
            height, width = (int(x) for x in data["size"])
            ends = np.cumsum(data["lengths"])
            if int(data["format"]) != FORMAT or len(ends) != len(data["scores"]):
                raise ValueError("columns do not fit together")
            counts = tuple(np.split(data["runs"].astype(np.uint32).ravel(), ends[:-1])) if len(ends) else ()
            made = cls.from_counts(counts, height, width, data["scores"])
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"the masks {path} are broken ({error}); make them again") from error
        return made


class MaskGenerator(Protocol):
    """Make the masks of an image [H, W, 3] uint8. `name` says what it is, for the record."""

    @property
    def name(self) -> str: ...

    def __call__(self, image: np.ndarray) -> ImageMasks: ...


def read_wholes(path: Path | str) -> np.ndarray:
    """Read which mask holds each id of the flat map beside saved masks, numbered from 1, [ids + 1]; 0 for id 0.

    It is the smallest that contains the mask of the id, or that mask itself. InputError where the file has none.
    """
    found = _read(path, "wholes").get("wholes", np.zeros(0))
    numbers = found.ndim == 1 and len(found) and np.issubdtype(found.dtype, np.integer)
    if not numbers or found.min() < 0 or found.max() > np.iinfo(np.int32).max:
        raise InputError(f"the masks {path} do not say which parts are of what; make them again")
    return found


def read_facts(path: Path | str) -> dict[str, str]:
    """Read the facts that were kept beside saved masks; none where the file is missing or broken."""
    try:
        data = _read(path)
    except InputError:
        return {}
    return {k[5:]: str(v) for k, v in data.items() if k.startswith("fact_")}


def encode(mask: np.ndarray) -> np.ndarray:
    """Return the run lengths of a picture [H, W] that is not 0 inside, uint32."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], edges, [len(flat)]])
    counts = np.diff(bounds)
    return (np.concatenate([[0], counts]) if len(flat) and flat[0] else counts).astype(np.uint32)


def decode(counts: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the picture [H, W] bool of run lengths."""
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts.astype(np.int64)).reshape(width, height).T


def from_text(text: str) -> np.ndarray:
    """Decode COCO's compressed run lengths, int64; ValueError says what is wrong with them.

    The text has six bits a character, from "0" on: five of the number, low ones first, and one that says that more
    follow; the highest of the last five is the sign. From the fourth run on, the difference to the run before last is
    kept.
    """
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError as error:
        raise ValueError("hold characters of what is no run length") from error
    if len(codes) and (codes.min() < 0 or codes.max() > 63):
        raise ValueError("hold characters of what is no run length")
    last = (codes & 32) == 0
    if len(codes) and not last[-1]:
        raise ValueError("end within a run, in the middle of a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    if len(ends) and (ends - starts).max() >= _LONGEST:
        raise ValueError("hold a number of more than 35 bits")
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts) if len(ends) else np.zeros(0, np.int64)
    negative = (codes[ends] & 16) > 0
    numbers = numbers - np.where(negative, np.int64(1) << (5 * (ends - starts + 1)), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _encode_ids(ids: np.ndarray) -> list[np.ndarray]:
    """Return the run lengths of every id over 0 of an id map, in one go over its pixels."""
    flat = ids.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]) if len(flat) else np.zeros(0, np.int64)
    ends, owners = np.append(starts[1:], len(flat)), flat[starts]
    order = np.argsort(owners, kind="stable")
    order = order[owners[order] > 0]
    found = []
    for group in np.split(order, np.flatnonzero(np.diff(owners[order])) + 1) if len(order) else []:
        bounds = np.stack([starts[group], ends[group]], 1).ravel()  # outside .. start, inside .. end, ...
        counts = np.diff(np.concatenate([[0], bounds, [len(flat)]]))
        found.append((counts if counts[-1] else counts[:-1]).astype(np.uint32))
    return found


def _atoms(counts: Sequence[np.ndarray], height: int, width: int) -> tuple[np.ndarray, csc_array]:
    """Return the atom of every pixel, [H, W], and which masks have each atom, sparse [R, M] of ones.

    Every mask has a random number of 64 bits; a pixel's is the exclusive or of those of its masks. Two sets of masks
    with one number have a chance of about R^2 / 2^65.
    """
    size = height * width
    keys = np.random.default_rng(0).integers(1, 2**63, len(counts), np.uint64)
    change = np.zeros(size + 1, np.uint64)
    bounds = [np.cumsum(c, dtype=np.int64) for c in counts]
    for key, bound in zip(keys, bounds):
        edges, times = np.unique(bound, return_counts=True)  # runs of length 0 toggle twice
        edges = edges[times % 2 == 1]
        change[edges[edges < size]] ^= key
    number = np.bitwise_xor.accumulate(change[:size])
    _, first, atoms = np.unique(number, return_index=True, return_inverse=True)
    order = np.argsort(first)
    found = [_between(np.searchsorted(first[order], b)) for b in bounds]  # an atom is where its first pixel is
    ends = np.concatenate([[0], np.cumsum([len(f) for f in found])])
    ones = np.ones(ends[-1])
    inside = csc_array((ones, order[np.concatenate(found)], ends), shape=(len(first), len(bounds)))
    return atoms.reshape(width, height).T, inside


def _between(bounds: np.ndarray) -> np.ndarray:
    """Return the whole numbers from bounds[0] up to bounds[1], from bounds[2] up to bounds[3], and so on."""
    starts, ends = bounds[0::2][: len(bounds) // 2], bounds[1::2]
    lengths = ends - starts
    return np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)


def _nest(counts: Sequence[np.ndarray], areas: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each mask's parent (-1: none) and level; the masks are sorted by size, largest first."""
    n = len(counts)
    if not n:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    atoms, inside = _atoms(counts, height, width)
    pixels = np.bincount(atoms.ravel()).astype(float)
    shared = (inside.T @ inside.multiply(pixels[:, None])).tocoo()  # [M, M] pixels in both
    contains = (shared.data >= INSIDE * areas[shared.col]) & (areas[shared.row] >= LARGER * areas[shared.col])
    parents = np.full(n, -1, np.int32)
    np.maximum.at(parents, shared.col[contains], shared.row[contains])  # the smallest comes last
    levels = np.zeros(n, np.int32)
    for i, parent in enumerate(parents):  # parents come first
        levels[i] = levels[parent] + 1 if parent >= 0 else 0
    return parents, levels


def _clear_slivers(ids: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Set pixels to 0 that no 3x3 window of their id alone has, but for masks that are thin themselves."""
    if min(ids.shape) < 3:
        return ids
    pure = ndimage.minimum_filter(ids, 3) == ndimage.maximum_filter(ids, 3)
    thin = (ndimage.binary_dilation(pure, np.ones((3, 3), bool)) == 0) & (ids > 0)
    lost = np.bincount(ids[thin], minlength=len(areas))
    return np.where(thin & (lost <= THIN * areas)[ids], 0, ids)


def bounding_box(counts: np.ndarray, height: int) -> tuple[int, int, int, int]:
    """Return x, y, width, height of a mask that is not empty, in pixels."""
    bounds = np.cumsum(counts, dtype=np.int64)
    first, last = bounds[0::2][: len(counts) // 2], bounds[1::2] - 1
    left, right = int(first[0] // height), int(last[-1] // height)
    tall = (last // height > first // height).any()  # a run over the end of a column touches both edges
    top = 0 if tall else int((first % height).min())
    bottom = height - 1 if tall else int((last % height).max())
    return left, top, right - left + 1, bottom - top + 1


def _read(path: Path | str, *names: str) -> dict[str, np.ndarray]:
    try:
        return read_arrays(path, *names)
    except ValueError as error:
        raise InputError(f"the masks {path} cannot be read ({error}); make them again") from error
