"""Several photos at once: each process renders one, of Gaussians that all of them hold.

A process finds which of its own Gaussians a camera may see and lends them, as they are and with their colours from
there, 11 + 3 numbers each, to the process that renders it; what comes back is the gradient of each. So a process holds,
beside its share of all Gaussians with Adam's state, only what its view sees, as in gsplat's distributed mode (Zhao et
al. 2024, arXiv 2406.18533), which sends them projected. Gradients of a step's photos are added in the order of the
photos, and guests stand in the order of their numbers, so that the sums are those of one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cgc import parallel
from cgc.appearance.shards import Shards
from cgc.splats.types import Splats

GEOMETRY = 11  # numbers of a Gaussian without colour


def pack(splats: Splats, values: Tensor) -> Tensor:
    """Return raw geometry and values [n, D] or [C, n, D] as rows [n, 11 + C D]."""
    values = values if values.ndim == 2 else values.permute(1, 0, 2).flatten(1)
    return torch.cat([splats.means, splats.quats, splats.log_scales, splats.logit_opacities[:, None], values], 1)


def unpack(rows: Tensor, cameras: int) -> tuple[Splats, Tensor]:
    """Return what `pack` took, for so many cameras; the splats have no colour of their own."""
    means, quats, scales, opacities = rows[:, :GEOMETRY].split([3, 4, 3, 1], 1)
    values = rows[:, GEOMETRY:].reshape(len(rows), cameras, -1).permute(1, 0, 2)
    splats = Splats(means, quats, scales, opacities[:, 0], means.new_zeros(len(rows), 1, 3))
    return splats, values[0] if cameras == 1 else values


class Loan:
    """Rows lent by all processes for one photo a process: `guests` [M, W] are those that came here, a leaf."""

    def __init__(self, shards: Shards, index: Sequence[Tensor], rows: Sequence[Tensor]) -> None:
        """Lend own Gaussians index[r], with numbers rows[r] that have a graph, to process r, as far as there are."""
        self._index, self._rows = index, rows
        self._counts = [len(some) for some in rows] + [0] * (parallel.here()[1] - len(rows))
        came, self._came = parallel.swap(torch.cat([some.detach() for some in rows]), self._counts)
        numbers, _ = parallel.swap(shards.numbers[torch.cat(list(index))], self._counts)
        self._order = numbers.argsort()
        self.guests = came[self._order].requires_grad_()

    def settle(self, norms: Tensor | None, seen: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Hand the guests' gradients back, and of each two numbers [M]; add the gradients of what was lent.

        Yield for each photo of the round its `index`, and what came back of the two numbers.
        """
        guests, width = self.guests, self.guests.shape[1]
        back = guests.new_zeros(len(guests), width + 2)
        if guests.grad is not None:
            back[self._order, :width] = guests.grad
        for column, value in ((width, norms), (width + 1, seen)):
            if value is not None:
                back[self._order, column] = value.to(back.dtype)
        returned, _ = parallel.swap(back, self._came)
        for index, rows, part in zip(self._index, self._rows, returned.split(self._counts)):
            rows.backward(part[:, :width])
            yield index, part[:, width], part[:, width + 1]
