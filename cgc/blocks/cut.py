"""Cut a scene into blocks with margins: which Gaussians are lifted and clustered together.

Notation: N Gaussians, B blocks. Positions are halved along their widest axis, again and again, by number: every
Gaussian is in the core of exactly one block, cores are equally large up to one Gaussian, and no direction has to be
called up (a city is widest along the ground, so it is the ground that is cut). A block is its core and all that lies
within a margin of the core's box: two Gaussians nearer to each other than the margin of either one's block share a
block. Blocks are cut further into cells, the units that are read from the disk and looked for in a view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cgc.errors import InputError

CELL = 8192  # Gaussians of a cell at most
LEAST = 100  # Gaussians of a block: fewer make no clusters
SPREAD = 20_000  # positions that the widest axis is found from
ENDS = 1.0, 99.0  # percentiles between which a set is so long: floaters do not count


@dataclass(frozen=True)
class Cut:
    """`order` [N] int64 lists the Gaussians, block after block and cell after cell.

    cells [cells + 1] int64: where in `order` each cell begins; blocks [B + 1] int64: the first cell of each block.
    """

    order: np.ndarray
    cells: np.ndarray
    blocks: np.ndarray

    @property
    def n_blocks(self) -> int:
        """B, the number of blocks."""
        return len(self.blocks) - 1

    def core(self, block: int) -> slice:
        """Return where in `order` the Gaussians of a block's core are."""
        return slice(int(self.cells[self.blocks[block]]), int(self.cells[self.blocks[block + 1]]))


def check_size(gaussians: int) -> None:
    """Raise InputError for blocks that are too small to be clustered; 0 cuts nothing."""
    if 0 < gaussians < LEAST:
        raise InputError(
            f"blocks.gaussians is {gaussians} where 0 (never cut) or a whole number of at least {LEAST} was expected; "
            "a block of 1,000,000 takes about 1.5 GB"
        )


def cut(means: np.ndarray, most: int) -> Cut:
    """Cut positions [N, 3], N > 0, into blocks of at most `most`. Deterministic. Memory: 16 B a Gaussian."""
    check_size(most)
    n = len(means)
    order = np.arange(n)
    blocks = -(-n // most) if most else 1
    core_ends = _halve(means, order, 0, n, blocks)
    cells, first_cells = [0], [0]
    for begin, end in zip([0, *core_ends], core_ends):
        cells += _halve(means, order, begin, end, -(-(end - begin) // CELL))
        first_cells.append(len(cells) - 1)
    return Cut(order, np.array(cells), np.array(first_cells))


def _halve(means: np.ndarray, order: np.ndarray, begin: int, end: int, parts: int) -> list[int]:
    """Sort order[begin:end] into so many parts, each half of what it came from in space; return the ends of these."""
    if parts < 2:
        return [end]
    first = parts // 2
    middle = begin + (end - begin) * first // parts
    axis = int(np.argmax(sides(means[order[begin : end : 1 + (end - begin) // SPREAD]])))
    order[begin:end] = order[begin:end][np.argsort(means[order[begin:end], axis], kind="stable")]
    return _halve(means, order, begin, middle, first) + _halve(means, order, middle, end, parts - first)


def sides(means: np.ndarray) -> np.ndarray:
    """Return how long positions [n, 3], n > 0, are along each axis, [3], without the few that lie farthest out."""
    low, high = np.percentile(means, ENDS, axis=0)
    return high - low


def is_near(means: np.ndarray, low: np.ndarray, high: np.ndarray, margin: float) -> np.ndarray:
    """Say which positions [n, 3] lie within the margin of a box, [n] bool."""
    apart = np.maximum(np.maximum(low - means, means - high), 0)
    return np.einsum("nc,nc->n", apart, apart) <= margin**2
