"""Which Gaussians each of several processes holds, and how they hand each other what they need.

Gaussians are numbered as in one process: the number follows from the order in which they came to be. Process r of R
begins with the numbers r, r + R, ..; a copy stays where its original is. A process keeps its Gaussians in the order of
their numbers, with their share of Adam's state. In one process everything here is what it is for all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgc import parallel


class Shards:
    """Who holds which of the `total` Gaussians; `many` says whether there is more than one process."""

    def __init__(self, total: int, device: torch.device) -> None:
        self._rank, self._size = parallel.here()
        self.many, self._device = self._size > 1, device
        self.deal(total)

    def deal(self, total: int) -> None:
        """Hand out that many Gaussians anew."""
        self._own(torch.arange(total, device=self._device) % self._size)

    def _own(self, owners: Tensor) -> None:
        self._owners, self.total = owners.to(torch.int16), len(owners)  # [N]
        everything = torch.arange(self.total, device=self._device)
        self.numbers = everything[self._owners == self._rank] if self.many else everything  # own ones [n], rising

    def own(self, whole: Tensor) -> Tensor:
        """Return the own rows of what all Gaussians have, [N, ...]."""
        return whole[self.numbers] if self.many else whole

    def whole(self, own: Tensor) -> Tensor:
        """Return what all Gaussians have, [N, ...], in every process; `own` is what its own ones have, [n, ...]."""
        if not self.many:
            return own
        kind = torch.uint8 if own.dtype == torch.bool else own.dtype
        counts = torch.bincount(self._owners.int(), minlength=self._size).tolist()
        parts = [own.new_empty(n, *own.shape[1:], dtype=kind) for n in counts]
        parts[self._rank] = own.detach().to(kind).contiguous()
        parallel.broadcast(*((part, rank) for rank, part in enumerate(parts)))
        return self._in_order(parts).to(own.dtype)

    def agreed(self, found: Tensor) -> Tensor:
        """Return what the first process has found, in every process; all must have found as much.

        A GPU adds floating-point numbers in an order that changes from run to run, so what follows from sums (a draw by
        weights) may differ between processes that know the same.
        """
        if self.many:
            parallel.broadcast((found, 0))
        return found

    def gather(self, own: Tensor) -> Tensor | None:
        """Return the same in the memory of the first process alone; None in the others."""
        if not self.many:
            return own.detach()
        parts = parallel.gather([own.detach().cpu().numpy()])
        return self._in_order([torch.from_numpy(part) for (part,) in parts]) if parts else None

    def _in_order(self, parts: list[Tensor]) -> Tensor:
        owners = self._owners.to(parts[0].device)
        made = parts[0].new_empty(self.total, *parts[0].shape[1:])
        for rank, part in enumerate(parts):
            made[owners == rank] = part
        return made

    def follow(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Let Gaussian i become a copy of the one that was source[i], [N'] numbers, for all processes alike.

        Return which of the N' are own ones, [n'] numbers, and of which own row each is a copy, [n'].
        """
        if not self.many:
            self._own(torch.zeros_like(source))
            return self.numbers, source
        place = (self._owners == self._rank).cumsum(0) - 1  # [N] the row of each own one
        self._own(self._owners[source])
        return self.numbers, place[source[self.numbers]]
