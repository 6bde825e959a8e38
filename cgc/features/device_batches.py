"""Batches that lie where the rasteriser works: on its device while they fit, in page-locked memory of the host past it.

Notation: P pixels, U Gaussians that they show, E entries of W, D channels; a part is up to PART entries of a row.

A step reads W by pixel (W F) and by Gaussian (W^T g), both as sums over entries that lie side by side: one kernel
each, no atomics, so that a run repeats bit for bit, and no table [E, D] in between. A Gaussian of the background can be
in every pixel, which one group of threads would walk alone while the others wait; so rows are cut into parts whose sums
are summed. The layout is CSR and not [P, K], K the weights kept of a pixel: of 24 a pixel has 15 to 20, so that padding
would cost a third more, and W^T would need atomics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from cgc.device import PageLocked
from cgc.features.batches import Batch
from cgc.rasterize.base import Contributions

PART = 64  # entries: a row of 8,192 is 128 parts, so the longest chain of additions is 192

T = TypeVar("T")


class Sums(NamedTuple):
    """A sparse matrix as rows of entries, which are cut into parts. Memory: 8 B an entry, 8 a part, 4 a row.

    ids [E] int32 (columns) and weights [E] float32; starts [Q + 1] int32 the first entry of each part, numbers [Q]
    int32 0 to Q - 1, and rows [R + 1] int32 the first part of each row.
    """

    ids: Tensor
    weights: Tensor
    starts: Tensor
    numbers: Tensor
    rows: Tensor

    def times(self, x: Tensor) -> Tensor:
        """Return the matrix times x [columns, D] float32, [R, D], summed in one order always."""
        if not len(self.ids):
            return x.new_zeros(len(self.rows) - 1, x.shape[1])
        parts = embedding_bag(
            self.ids, x, self.starts, mode="sum", per_sample_weights=self.weights, include_last_offset=True
        )  # [Q, D]
        return embedding_bag(self.numbers, parts, self.rows, mode="sum", include_last_offset=True)


def cut_rows(indptr: Tensor, ids: Tensor, weights: Tensor) -> Sums:
    """Cut the rows of a CSR matrix into parts; indptr [R + 1] int64, ids and weights [E]. Waits once."""
    counts = indptr.diff()
    begins = torch.repeat_interleave(indptr[:-1], counts, output_size=len(ids))  # of each entry's row
    first = (torch.arange(len(ids), device=ids.device) - begins) % PART == 0
    starts = torch.cat([first.nonzero()[:, 0], indptr[-1:]]).int()
    rows = torch.cat([indptr.new_zeros(1), ((counts + PART - 1) // PART).cumsum(0)]).int()
    return Sums(ids.int(), weights.float(), starts, torch.arange(len(starts) - 1, device=ids.device).int(), rows)


@dataclass(frozen=True)
class DeviceBatch(Batch):
    """A batch for `DeviceLearner`: W by pixel and by Gaussian, and how many pixels each mask has, [M] float32.

    It is worked on at `home`, wherever it is kept. `mask_ids` stay on the host: they are names. Memory: 16 B an entry
    of W, 24 B a pixel, 16 B a Gaussian of U.
    """

    by_pixel: Sums
    by_gaussian: Sums
    sizes: Tensor
    home: torch.device

    @cached_property
    def counts(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many of the pixels each mask has, [M] int64."""
        return self.sizes.cpu().numpy().astype(np.int64)

    def _send(self, x: Tensor) -> Tensor:
        return x.to(self.home, non_blocking=True)

    def at_home(self) -> DeviceBatch:
        """Return the batch on its device: itself where it is there, else a copy that is begun and not waited for."""
        return self if self.gaussians.device == self.home else _moved(self, self._send)


def split_on_device(
    view: int, weights: Contributions, masks: Tensor, mask_ids: Sequence[np.ndarray], sizes: Sequence[int]
) -> Iterator[DeviceBatch]:
    """Yield the batches of a view: `sizes` rows of W each, one batch after the other; masks [P] int64 of all rows.

    mask_ids [M] are those of each batch.
    """
    ends = np.cumsum([0, *sizes])
    bounds = weights.indptr[torch.from_numpy(ends).to(weights.indptr.device)].tolist()
    for k, names in enumerate(mask_ids):
        begin, end, first, last = *ends[k : k + 2].tolist(), *bounds[k : k + 2]
        indptr = weights.indptr[begin : end + 1] - first
        values, own = weights.weights[first:last].float(), masks[begin:end]
        gaussians, ids, by_gaussian = _by_gaussian(indptr, weights.ids[first:last], values)
        counts = torch.zeros(len(names), device=own.device).index_add_(
            0, own, torch.ones_like(own, dtype=torch.float32)
        )
        part = replace(
            weights, indptr=indptr, ids=ids, weights=values, pixels=weights.pixels[begin:end],
            n_gaussians=len(gaussians), remainder=None, transposed=None,
        )  # fmt: skip
        by_pixel = cut_rows(indptr, ids, values)
        yield DeviceBatch(
            view, gaussians, part, own, torch.from_numpy(names), by_pixel, by_gaussian, counts, own.device
        )


def _by_gaussian(indptr: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Sums]:
    """Return the Gaussians [U] int32 of a matrix, rising, its ids [E] int32 as numbers of these, and its transpose."""
    rising, order = ids.sort(stable=True)
    new = torch.ones_like(rising, dtype=torch.bool)
    new[1:] = rising[1:] != rising[:-1]
    first = new.nonzero()[:, 0]
    numbers = torch.empty_like(ids, dtype=torch.int32)
    numbers[order] = (new.cumsum(0) - 1).int()
    pixels = torch.arange(len(indptr) - 1, dtype=torch.int32, device=ids.device)
    pixels = torch.repeat_interleave(pixels, indptr.diff(), output_size=len(ids))
    starts = torch.cat([first, first.new_full((1,), len(ids))])
    return rising[first].int(), numbers, cut_rows(starts, pixels[order], weights[order])


class DevicePool:
    """Keeps batches on their device up to a limit, and past it in memory of the host that a GPU reads by itself."""

    def __init__(self, limit_gb: float) -> None:
        """Take up to `limit_gb` GB of the device."""
        self._left, self._locked = limit_gb * 1e9, PageLocked()
        self.batches: list[DeviceBatch] = []
        """What was kept, in the order it came."""

    def keep(self, batch: DeviceBatch) -> None:
        """Keep a batch."""
        size = size_of(batch)
        if size <= self._left:
            self._left -= size
            self.batches.append(batch)
        else:
            self.batches.append(_moved(batch, self._locked.copy))


def size_of(value: Any) -> int:
    """Return the bytes of all tensors that something is made of; one that is there twice counts once."""
    return sum({x.data_ptr(): x.numel() * x.element_size() for x in _tensors(value)}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    parts = [getattr(value, f.name) for f in fields(value)] if _made_of(value) else []
    for part in value if isinstance(value, tuple) else parts:
        yield from _tensors(part)


def _made_of(value: Any) -> bool:
    return is_dataclass(value)


def _moved(value: T, copy: Callable[[Tensor], Tensor]) -> T:
    """Return something with copies of all of its tensors but the `mask_ids`."""
    done: dict[int, Tensor] = {}  # what shares memory goes on sharing it

    def move(x: Any) -> Any:
        if isinstance(x, Tensor):
            if id(x) not in done:
                done[id(x)] = copy(x)
            return done[id(x)]
        if isinstance(x, tuple):
            return type(x)(*map(move, x))
        if _made_of(x):
            return replace(x, **{f.name: move(getattr(x, f.name)) for f in fields(x) if f.name != "mask_ids"})
        return x

    return move(value)
